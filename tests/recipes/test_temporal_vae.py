"""temporal-vae's recipe: its loss term by term, what is trained and stored, and its metrics."""

import json

import pytest
import torch
from torch import nn

from course_lib import zoo
from course_lib.nn.temporal_decoder import TemporalAutoencoder, inflate_decoder
from course_lib.papers.latent_diffusion import LATENT_CHANNELS, build_autoencoder
from course_lib.recipes import temporal_vae
from course_lib.recipes.recipe import TrainConfig, save_fp16
from course_lib.world import Sampler, subset_of

SMALL = TrainConfig(num_steps=3, batch_size=2, lr=1e-3, eval_samples=16)
KINDS = ("clean_latents", "noisy_latents")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = build_autoencoder((8, 8, 8, 8)).half().float()  # as it would come from a file
    vae.register_to_config(scaling_factor=0.5)
    return vae.eval()


@pytest.fixture
def model(vae):
    return temporal_vae.DecoderTrainer(inflate_decoder(vae)).eval()


@pytest.fixture
def clip(untrained_parts):
    return untrained_parts.clip


def randomize_temporal(model):
    torch.manual_seed(2)
    for parameter in model.vae.temporal.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_batches_are_pure_and_noise_has_its_own_strength_in_every_clip():
    batch, again = (temporal_vae.make_batch(3, SMALL) for _ in range(2))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["video"].shape == (2, 3, 16, 64, 64)
    assert batch["noise"].shape == (2, LATENT_CHANNELS, 16, 8, 8)
    noise = torch.cat([temporal_vae.make_batch(number, SMALL)["noise"] for number in range(6)])
    std = noise.flatten(1).std(dim=1)
    assert std.max() <= temporal_vae.LATENT_NOISE_STD * 1.05 and std.max() / std.min() > 2
    assert not torch.allclose(batch["noise"][:, :, 0], batch["noise"][:, :, 1])


def test_it_is_trained_on_the_base_subset():
    scenes = [Sampler("train", seed=temporal_vae.SEED)(index) for index in range(300)]
    assert all(subset_of(scene.subject, scene.motion) == "base" for scene in scenes)
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_untrained_it_decodes_frame_by_frame(model, vae):
    batch = temporal_vae.make_batch(0, SMALL)
    with torch.no_grad():
        out = model(batch["video"][:, :, :3], batch["noise"][:, :, :3])
        for frame in range(3):
            latents = vae.encode(batch["video"][:, :, frame]).latent_dist.mode() * 0.5
            expected = vae.decode((latents + batch["noise"][:, :, frame]) / 0.5).sample
            torch.testing.assert_close(out[:, :, frame], expected, atol=1e-5, rtol=0)


class Brighten(nn.Module):
    """Returns the video with a constant added to each frame."""

    def __init__(self, *shift):
        super().__init__()
        self.shift = torch.tensor(shift)[:, None, None]

    def forward(self, video, noise):
        return video + self.shift


def test_the_loss_has_three_terms(clip, monkeypatch):
    batch = {
        "video": torch.zeros(1, 3, 2, 64, 64),
        "noise": torch.zeros(1, LATENT_CHANNELS, 2, 8, 8),
    }
    shifted, perfect = Brighten(0.1, 0.3), Brighten(0.0, 0.0)
    monkeypatch.setattr(temporal_vae, "PERCEPTUAL_WEIGHT", 0.0)
    loss = temporal_vae.loss_fn(shifted, batch, torch.Generator())
    # Squares of 0.1 and 0.3, and of their difference
    torch.testing.assert_close(loss, torch.tensor((0.01 + 0.09) / 2 + 0.2**2))
    monkeypatch.setattr(temporal_vae, "PERCEPTUAL_WEIGHT", 1.0)
    assert temporal_vae.loss_fn(shifted, batch, torch.Generator()) > loss + 1e-4
    assert temporal_vae.loss_fn(perfect, batch, torch.Generator()) == 0


def test_only_temporal_layers_are_trained(model, clip):
    batch = {name: part[:1, :, :4] for name, part in temporal_vae.make_batch(0, SMALL).items()}
    temporal_vae.loss_fn(model, batch, torch.Generator()).backward()
    assert all(parameter.grad is None for parameter in model.vae.spatial.parameters())
    assert all(parameter.grad is None for parameter in clip.parameters())
    gradients = [p.grad for p in model.vae.temporal.parameters() if p.grad is not None]
    assert any(gradient.any() for gradient in gradients)


def test_the_folder_has_the_temporal_layers_and_names_its_autoencoder(
    model, vae, monkeypatch, tmp_path
):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    randomize_temporal(model)

    def save(folder):
        save_fp16(vae, folder / "vae")
        (folder / "model_index.json").write_text("{}", encoding="utf-8")

    metadata = {"evaluation": {}}
    zoo.store("mini-sd", save, metadata, "# mini-sd")
    folder = zoo.store(
        "temporal-vae", lambda folder: temporal_vae.save(model, folder), metadata, "# it"
    )
    assert json.loads((folder / "base.json").read_text(encoding="utf-8"))["part"] == "vae"
    other = temporal_vae.DecoderTrainer(inflate_decoder(build_autoencoder((8, 8, 8, 8))))
    with pytest.raises(ValueError, match="model: expected the weights of mini-sd/vae"):
        temporal_vae.save(other, tmp_path)
    loaded = zoo.load_temporal_layers(vae, folder)
    assert isinstance(loaded, TemporalAutoencoder)
    for name, value in model.vae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float(), rtol=0, atol=0)
    trained = temporal_vae.RECIPE.unwrap_checkpoint(loaded)
    latents = torch.randn(1, LATENT_CHANNELS, 3, 8, 8)
    with torch.no_grad():
        expected = model.vae.decode(latents)
        torch.testing.assert_close(trained.vae.decode(latents), expected, atol=2e-2, rtol=0)


def test_equal_clips_get_equal_noise(model):
    randomize_temporal(model)
    video = temporal_vae.make_batch(0, SMALL)["video"][:, :, :3]
    with torch.no_grad():
        joint, per_frame = (
            temporal_vae.reconstruct(model.vae, video, temporal_scale=scale) for scale in (1, 0)
        )
        noisy, again = (temporal_vae.reconstruct(model.vae, video, 0.5) for _ in range(2))
        expected = model.vae.decode(model.vae.encode(video)).clamp(-1, 1)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(joint, per_frame, atol=1e-3)
    assert not torch.allclose(joint, noisy, atol=1e-3)
    torch.testing.assert_close(noisy, again)


def test_the_frame_difference_is_a_mean_over_all_pixels():
    video = torch.zeros(2, 3, 3, 4, 4)
    video[:, :, 1] = 0.5
    # of intensities from 0 to 1
    assert temporal_vae.mean_frame_diff(video) == pytest.approx(0.25)


def test_every_target_is_measured(model):
    metrics = temporal_vae.evaluate(model, SMALL)
    assert len(metrics) == 2 * (2 * 3 + 2) + 1  # 3 metrics per decoding, 2 comparisons; floor
    assert set(temporal_vae.RECIPE.targets) < set(metrics)
    for kind in KINDS:  # untrained, both decodings are the same
        assert metrics[f"psnr_gain_db/{kind}"] == pytest.approx(0, abs=1e-3)
        assert metrics[f"fvd_ratio/{kind}"] == pytest.approx(1, abs=1e-2)
    assert metrics["psnr_db/joint/noisy_latents"] != metrics["psnr_db/joint/clean_latents"]


def test_gain_and_ratio_compare_joint_with_per_frame_decoding(model, monkeypatch):
    """A decoder that is perfect jointly, and darkens everything frame by frame."""

    def reconstruct(vae, video, latent_noise_std, temporal_scale):
        return video * (temporal_scale or 0.5)

    monkeypatch.setattr(temporal_vae, "reconstruct", reconstruct)
    metrics = temporal_vae.evaluate(model, SMALL)
    for kind in KINDS:
        assert metrics[f"psnr_gain_db/{kind}"] > 20
        assert metrics[f"fvd_ratio/{kind}"] == pytest.approx(0, abs=1e-3)
        assert metrics[f"frame_diff_ratio/per_frame/{kind}"] == pytest.approx(0.5, rel=1e-3)
