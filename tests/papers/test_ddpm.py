"""The class-conditional pixel model: its shapes, its schedule, and what it learns from."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel

from course_lib.diffusion import ends_without_signal, guided, initial_noise, prediction_type, sample
from course_lib.papers.ddpm import as_model, build_schedule, build_unet, learn_from, null_class

CLASSES = 5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet(CLASSES, size=16, widths=(8, 32)).eval().requires_grad_(False)


def test_a_class_of_its_own_means_null_class(unet):
    assert null_class(unet).tolist() == [CLASSES]
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([10, 500, 999])
    model = as_model(unet)
    said = [model(x, t, torch.tensor(classes)) for classes in ([0, 1, 2], [0, 1, CLASSES])]
    assert said[0].shape == x.shape
    torch.testing.assert_close(said[0][:2], said[1][:2])
    assert not torch.allclose(said[0][2], said[1][2])


def test_the_unet_sees_patches_and_the_model_pixels(unet):
    """Every number of a picture stands in the patch of its place, and comes back to its pixel."""
    seen = []

    class Echo(torch.nn.Module):
        def forward(self, x, t, class_labels):
            seen.append(x)
            return SimpleNamespace(sample=x)

    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(as_model(Echo())(x, torch.tensor([1, 2]), torch.tensor([0, 0])), x)
    assert seen[0].shape == (2, 12, 2, 3)
    assert set(seen[0][1, :, 1, 2].tolist()) == set(x[1, :, 2:4, 4:6].flatten().tolist())
    assert unet.config.in_channels == unet.config.out_channels == 12


def test_pictures_are_made_of_whole_patches():
    with pytest.raises(ValueError, match="size: expected a multiple of 2, got 33"):
        build_unet(CLASSES, size=33)


def test_it_travels_by_save_pretrained(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path).eval()
    x, t, classes = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.tensor([1, CLASSES])
    torch.testing.assert_close(as_model(again)(x, t, classes), as_model(unet)(x, t, classes))


def test_the_schedule_begins_where_training_ends():
    scheduler = build_schedule()
    assert prediction_type(scheduler) == "v_prediction" and not ends_without_signal(scheduler)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == 999 and scheduler.alphas_cumprod[-1].sqrt() < 1e-3


def test_guided_sampling_stays_in_range_and_obeys_its_generator(unet):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = initial_noise((2, 3, 16, 16), generator)
        model = guided(as_model(unet), null_class(unet), 3.0)
        return [
            *sample(
                model, build_schedule(), noise, torch.tensor([0, 1]), steps=3, generator=generator
            )
        ][-1].x

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert drawn(0).abs().max() <= 1 + 1e-5, "the last step leads to a clipped estimate of x0"


def test_about_a_tenth_of_the_classes_are_forgotten():
    images, classes = torch.zeros(2000, 3, 2, 2), torch.arange(2000) % CLASSES
    nothing = torch.tensor([CLASSES])
    example, told = learn_from(
        build_schedule(), images, classes, nothing, torch.Generator().manual_seed(0)
    )
    forgotten = told == CLASSES
    assert 0.08 < forgotten.double().mean() < 0.12
    assert torch.equal(told[~forgotten], classes[~forgotten])
    assert example.x_t.shape == images.shape and (example.weight == 1).all()
