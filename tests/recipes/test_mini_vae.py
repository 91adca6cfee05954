"""mini-vae's recipe: its loss term by term, the unit of its latents, and what it may not see."""

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from course_lib.metrics import perceptual_distance
from course_lib.papers.latent_diffusion import encode
from course_lib.recipes import mini_clip, mini_vae
from course_lib.recipes.recipe import Settings
from course_lib.world import World

SMALL = Settings(steps=3, batch=2, lr=1e-3)


class Copy(torch.nn.Module):
    """An autoencoder that gives back what it gets, shifted, at a price."""

    def __init__(self, shift, divergence):
        super().__init__()
        self.shift, self.divergence = shift, torch.tensor(divergence)

    def forward(self, images, noise):
        return images + self.shift, self.divergence


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mini_vae.Autoencoding().eval()


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(1)
    return mini_clip.build().eval().requires_grad_(False)


def test_batches_are_pure():
    one, again = (mini_vae.batches(3, SMALL) for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert one["images"].shape == (2, 3, 64, 64) and one["noise"].shape == (2, 16, 8, 8)


def test_the_forward_pass_draws_from_the_posterior(model):
    batch = mini_vae.batches(0, SMALL)
    with torch.no_grad():
        posterior = model.vae.encode(batch["images"]).latent_dist
        drawn, divergence = model(batch["images"], batch["noise"])
        again, _ = model(batch["images"], torch.zeros_like(batch["noise"]))
    torch.testing.assert_close(
        drawn, model.vae.decode(posterior.mean + posterior.std * batch["noise"]).sample
    )
    torch.testing.assert_close(again, model.vae.decode(posterior.mode()).sample)
    expected = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum(dim=(1, 2, 3))
    torch.testing.assert_close(divergence, expected)


def test_the_loss_of_a_perfect_copy_is_the_price_of_its_latents(clip, monkeypatch):
    monkeypatch.setattr(mini_vae, "_tower", lambda device: clip)
    batch = mini_vae.batches(0, SMALL)
    loss = mini_vae.loss(Copy(0.0, [300.0, 100.0]), batch, torch.Generator())
    assert loss == pytest.approx(mini_vae.BOTTLENECK * 200 / (3 * 64 * 64), rel=1e-4)
    images = batch["images"]
    looks = perceptual_distance(
        mini_vae.maps(clip, images + 0.1), mini_vae.maps(clip, images)
    ).mean()
    loss = mini_vae.loss(Copy(0.1, [0.0, 0.0]), batch, torch.Generator())
    assert looks > 0 and loss - 0.01 == pytest.approx(
        mini_vae.LOOKS * looks.item(), rel=1e-3, abs=1e-8
    )


def test_looks_teach_the_network_and_not_the_tower(model, clip, monkeypatch):
    monkeypatch.setattr(mini_vae, "_tower", lambda device: clip)
    batch = mini_vae.batches(0, SMALL)
    gradients = []
    for weight in (mini_vae.LOOKS, 0.0):
        monkeypatch.setattr(mini_vae, "LOOKS", weight)
        model.zero_grad()
        mini_vae.loss(model, batch, torch.Generator()).backward()
        gradients.append(model.vae.encoder.conv_in.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[1].abs().max()
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_maps_are_the_towers_layers_without_the_class_token(clip):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = mini_vae.maps(clip, images)
    assert len(found) == mini_clip.LAYERS and all(layer.shape == (2, 128, 8, 8) for layer in found)
    last = clip.vision_model(images).last_hidden_state  # (b, 1 + 64, d)
    torch.testing.assert_close(found[-1][:, :, 2, 5], last[:, 1 + 2 * 8 + 5])


def test_the_scale_brings_the_latents_to_unit_variance():
    torch.manual_seed(2)
    model = mini_vae.Autoencoding().eval()
    mini_vae.scale(model, SMALL)
    images = World("train", frames=1, anytime=True, seed=42).batch(range(32)).video[:, :, 0]
    with torch.no_grad():
        assert encode(model.vae, images).std().item() == pytest.approx(1, rel=1e-3)


def test_reconstruction_goes_frame_by_frame(model):
    video = World("test", frames=3).batch(range(2)).video
    with torch.no_grad():
        again = mini_vae.reconstructed(model.vae, video)
        one = mini_vae.reconstructed(model.vae, video[1:, :, 2:])
    assert again.shape == video.shape
    torch.testing.assert_close(again[1:, :, 2:], one, atol=1e-5, rtol=0)


def test_the_folder_is_an_autoencoder_of_diffusers(model, tmp_path):
    mini_vae.RECIPE.save(model, tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert again.config.latent_channels == 16 and len(again.config.block_out_channels) == 4


def test_what_is_measured_again_is_what_was_trained(model, tmp_path):
    mini_vae.RECIPE.save(model, tmp_path)
    trained = mini_vae.RECIPE.trained(AutoencoderKL.from_pretrained(tmp_path))
    assert type(trained) is mini_vae.Autoencoding
    for name, value in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value.half().float()), name
