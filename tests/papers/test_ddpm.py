"""The class-conditional pixel model: its shapes, its schedule, its training batch."""

import inspect
from math import inf, nan
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel

from course_lib.diffusion import (
    cfg_model,
    get_prediction_type,
    has_zero_terminal_snr,
    sample,
    sample_noise,
)
from course_lib.papers.ddpm import (
    build_scheduler,
    build_unet,
    null_class,
    training_batch,
    unet_denoiser,
)

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    unet = build_unet(NUM_CLASSES, sample_size=16, block_out_channels=(8, 32))
    return unet.eval().requires_grad_(False)


def test_the_null_class_is_one_more_than_there_are(unet):
    assert null_class(unet).tolist() == [NUM_CLASSES]
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([10, 500, 999])
    model = unet_denoiser(unet)
    labels = ([0, 1, 2], [0, 1, NUM_CLASSES])
    preds = [model(x, t, torch.tensor(classes)) for classes in labels]
    assert preds[0].shape == x.shape
    torch.testing.assert_close(preds[0][:2], preds[1][:2])
    assert not torch.allclose(preds[0][2], preds[1][2])


def test_the_unet_sees_patches_and_the_model_pixels(unet):
    """Every value of an image is in the patch at its position, and returns to its pixel."""
    inputs = []

    class Echo(torch.nn.Module):
        def forward(self, x, t, class_labels):
            inputs.append(x)
            return SimpleNamespace(sample=x)

    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    out = unet_denoiser(Echo())(x, torch.tensor([1, 2]), torch.tensor([0, 0]))
    assert torch.equal(out, x)
    assert inputs[0].shape == (2, 12, 2, 3)
    assert set(inputs[0][1, :, 1, 2].tolist()) == set(x[1, :, 2:4, 4:6].flatten().tolist())
    assert unet.config.in_channels == unet.config.out_channels == 12


def test_images_are_divisible_into_patches():
    with pytest.raises(ValueError, match="sample_size: expected a multiple of 2, got 33"):
        build_unet(NUM_CLASSES, sample_size=33)
    for name, value in (("sample_size", 0), ("num_classes", 0), ("num_classes", True)):
        with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1"):
            build_unet(**{"num_classes": NUM_CLASSES} | {name: value})


def test_save_pretrained_round_trip(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    classes = torch.tensor([1, NUM_CLASSES])
    expected = unet_denoiser(unet)(x, t, classes)
    torch.testing.assert_close(unet_denoiser(loaded)(x, t, classes), expected)


def test_sampling_begins_where_training_ends():
    scheduler = build_scheduler()
    assert get_prediction_type(scheduler) == "v_prediction"
    assert not has_zero_terminal_snr(scheduler)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[0] == 999 and scheduler.alphas_cumprod[-1].sqrt() < 1e-3


def test_guided_sampling_stays_in_range_and_depends_on_its_generator_only(unet):
    def generate(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = sample_noise((2, 3, 16, 16), generator)
        model = cfg_model(unet_denoiser(unet), null_class(unet), 3.0)
        steps = sample(
            model,
            build_scheduler(),
            noise,
            torch.tensor([0, 1]),
            num_inference_steps=3,
            generator=generator,
        )
        return [*steps][-1].x

    assert torch.equal(generate(0), generate(0))
    assert not torch.equal(generate(0), generate(1))
    assert generate(0).abs().max() <= 1 + 1e-5, "the last step leads to a clipped x0"


def test_about_a_tenth_of_the_classes_are_dropped():
    images, classes = torch.zeros(2000, 3, 2, 2), torch.arange(2000) % NUM_CLASSES
    null = torch.tensor([NUM_CLASSES])
    generator = torch.Generator().manual_seed(0)
    batch, labels = training_batch(build_scheduler(), images, classes, null, generator)
    dropped = labels == NUM_CLASSES
    assert 0.08 < dropped.double().mean() < 0.12
    assert torch.equal(labels[~dropped], classes[~dropped])
    assert batch.x_t.shape == images.shape and (batch.weight == 1).all()


IMAGES, CLASSES = torch.zeros(2, 3, 2, 2), torch.tensor([0, NUM_CLASSES - 1])


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (IMAGES.byte(), CLASSES, "images: expected floating point, got torch.uint8"),
        (IMAGES[0], CLASSES, "images: expected .* needs a batch axis"),
        (IMAGES, CLASSES.float(), r"classes: expected integers \(2,\)"),
        (IMAGES, CLASSES > 0, r"classes: expected integers \(2,\)"),
        (IMAGES, CLASSES[:1], r"classes: expected integers \(2,\), .* got \(1,\)"),
        (IMAGES, CLASSES[:, None], r"classes: expected integers \(2,\), .* got \(2, 1\)"),
        (IMAGES, CLASSES - 1, r"classes: expected 0 to 5, the null class, got \[-1, 3\]"),
        (IMAGES, CLASSES + 2, r"classes: expected 0 to 5, the null class, got \[2, 6\]"),
    ],
)
def test_bad_training_batches_are_refused(images, classes, message):
    batch = inspect.unwrap(training_batch)  # without the tests' type checker
    null, generator = torch.tensor([NUM_CLASSES]), torch.Generator()
    with pytest.raises(ValueError, match=f"^{message}"):
        batch(build_scheduler(), images, classes, null, generator)


@pytest.mark.parametrize("prob", [nan, inf, -0.1, 1.1, True])
def test_a_probability_is_0_to_1(prob):
    null, generator = torch.tensor([NUM_CLASSES]), torch.Generator()
    with pytest.raises(ValueError, match="^cond_drop_prob: expected a finite number"):
        training_batch(build_scheduler(), IMAGES, CLASSES, null, generator, prob)
