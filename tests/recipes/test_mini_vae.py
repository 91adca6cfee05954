"""mini-vae's recipe: its loss term by term, the scaling factor, and its folder."""

import pytest
import torch
from diffusers import AutoencoderKL

from course_lib.metrics import perceptual_distance
from course_lib.pipelines.latents import encode
from course_lib.recipes import mini_clip, mini_vae
from course_lib.recipes.perceptual import clip_feature_maps
from course_lib.recipes.recipe import TrainConfig
from course_lib.world import NOVEL_EMOJI, Sampler, World

SMALL = TrainConfig(num_steps=3, batch_size=2, lr=1e-3, eval_samples=80)


class Shift(torch.nn.Module):
    """An autoencoder that returns its input, shifted, with a given KL divergence."""

    def __init__(self, shift, kl):
        super().__init__()
        self.shift, self.kl = shift, torch.tensor(kl)

    def forward(self, images, noise):
        return images + self.shift, self.kl


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mini_vae.VAETrainer().eval()


@pytest.fixture
def clip(untrained_parts):
    return untrained_parts.clip


def test_batches_are_pure():
    batch, again = (mini_vae.make_batch(3, SMALL) for _ in range(2))
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert batch["images"].shape == (2, 3, 64, 64) and batch["noise"].shape == (2, 16, 8, 8)


def test_no_novel_emoji_is_trained_on():
    subjects = {Sampler("train", seed=mini_vae.SEED)(index).subject for index in range(300)}
    assert not subjects & set(NOVEL_EMOJI)


def test_the_forward_pass_samples_the_posterior(model):
    batch = mini_vae.make_batch(0, SMALL)
    with torch.no_grad():
        posterior = model.vae.encode(batch["images"]).latent_dist
        sampled, kl = model(batch["images"], batch["noise"])
        mean, _ = model(batch["images"], torch.zeros_like(batch["noise"]))
        latents = posterior.mean + posterior.std * batch["noise"]
        torch.testing.assert_close(sampled, model.vae.decode(latents).sample)
        torch.testing.assert_close(mean, model.vae.decode(posterior.mode()).sample)
    terms = posterior.mean**2 + posterior.var - 1 - posterior.logvar
    torch.testing.assert_close(kl, 0.5 * terms.sum(dim=(1, 2, 3)))


def test_the_loss_has_three_terms(clip):
    batch = mini_vae.make_batch(0, SMALL)
    loss = mini_vae.loss_fn(Shift(0.0, [300.0, 100.0]), batch, torch.Generator())
    assert loss == pytest.approx(mini_vae.KL_WEIGHT * 200 / (3 * 64 * 64), rel=1e-4)
    images = batch["images"]
    maps = (clip_feature_maps(clip, part) for part in (images + 0.1, images))
    perceptual = mini_vae.PERCEPTUAL_WEIGHT * perceptual_distance(*maps).mean().item()
    loss = mini_vae.loss_fn(Shift(0.1, [0.0, 0.0]), batch, torch.Generator())
    assert perceptual > 0
    assert loss - 0.01 == pytest.approx(perceptual, rel=1e-3, abs=1e-8)


def test_the_perceptual_loss_trains_the_autoencoder_and_not_clip(model, clip, monkeypatch):
    batch = mini_vae.make_batch(0, SMALL)
    gradients = []
    for weight in (mini_vae.PERCEPTUAL_WEIGHT, 0.0):
        monkeypatch.setattr(mini_vae, "PERCEPTUAL_WEIGHT", weight)
        model.zero_grad()
        mini_vae.loss_fn(model, batch, torch.Generator()).backward()
        gradients.append(model.vae.encoder.conv_in.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[1].abs().max()
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_feature_maps_are_clips_layers_without_the_class_token(clip):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = clip_feature_maps(clip, images)
    assert len(maps) == mini_clip.NUM_LAYERS
    assert all(layer.shape == (2, 128, 8, 8) for layer in maps)
    last = clip.vision_model(images).last_hidden_state  # (b, 1 + 64, d)
    torch.testing.assert_close(maps[-1][:, :, 2, 5], last[:, 1 + 2 * 8 + 5])


def test_the_scaling_factor_brings_latents_to_unit_variance():
    torch.manual_seed(2)
    model = mini_vae.VAETrainer().eval()
    mini_vae.fit_scaling_factor(model, SMALL)
    world = World("train", num_frames=1, random_time_offset=True, seed=42)
    images = world.batch(range(80)).video[:, :, 0]
    with torch.no_grad():
        assert encode(model.vae, images).std().item() == pytest.approx(1, rel=1e-3)


def test_videos_are_reconstructed_frame_by_frame(model):
    video = World("test", num_frames=3).batch(range(2)).video
    with torch.no_grad():
        recon = mini_vae.reconstruct(model.vae, video)
        single = mini_vae.reconstruct(model.vae, video[1:, :, 2:])
    assert recon.shape == video.shape
    torch.testing.assert_close(recon[1:, :, 2:], single, atol=1e-5, rtol=0)


def test_every_target_is_measured(model):
    metrics = mini_vae.evaluate(model, SMALL)
    assert set(mini_vae.RECIPE.targets) <= set(metrics)
    assert {"ssim/test", "fid/reconstruction", "scaling_factor"} <= set(metrics)


def test_the_folder_is_an_autoencoder_of_diffusers(model, tmp_path):
    mini_vae.RECIPE.save(model, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    assert loaded.config.latent_channels == 16 and len(loaded.config.block_out_channels) == 4


def test_the_unwrapped_checkpoint_is_the_trained_model(model, tmp_path):
    mini_vae.RECIPE.save(model, tmp_path)
    trained = mini_vae.RECIPE.unwrap_checkpoint(AutoencoderKL.from_pretrained(tmp_path))
    assert type(trained) is mini_vae.VAETrainer
    for name, value in model.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value.half().float()), name
