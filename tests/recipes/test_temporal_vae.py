"""temporal-vae's recipe: its loss term by term, what learns, what it leaves of itself, and what is measured."""

import json

import pytest
import torch
from torch import nn

from course_lib import zoo
from course_lib.nn.temporal_decoder import TemporalAutoencoder, inflate_decoder
from course_lib.papers.latent_diffusion import build_autoencoder
from course_lib.recipes import mini_clip, temporal_vae
from course_lib.recipes.recipe import Settings, save_half
from course_lib.world import Sampler, part_of

SMALL = Settings(steps=3, batch=2, lr=1e-3)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = build_autoencoder((8, 8, 8, 8)).half().float()  # as it would come from a file
    vae.register_to_config(scaling_factor=0.5)
    return vae.eval()


@pytest.fixture
def model(vae):
    return temporal_vae.Decoding(inflate_decoder(vae)).eval()


@pytest.fixture
def clip(monkeypatch):
    torch.manual_seed(1)
    clip = mini_clip.build().eval().requires_grad_(False)
    monkeypatch.setattr(temporal_vae, "_tower", lambda device: clip)
    return clip


def awake(model):
    torch.manual_seed(2)
    for parameter in model.vae.temporal.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_batches_are_pure_and_shake_each_clip_by_its_own_strength():
    one, again = (temporal_vae.batches(3, SMALL) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert one["video"].shape == (2, 3, 16, 64, 64) and one["noise"].shape == (2, 16, 16, 8, 8)
    spread = (
        torch.cat([temporal_vae.batches(number, SMALL)["noise"] for number in range(6)])
        .flatten(1)
        .std(dim=1)
    )
    assert spread.max() <= temporal_vae.SHAKEN * 1.05 and spread.max() / spread.min() > 2
    assert not torch.allclose(one["noise"][:, :, 0], one["noise"][:, :, 1])  # frames shake apart


def test_it_learns_only_from_what_generators_may_see():
    scenes = [Sampler("train", seed=81)(index) for index in range(300)]
    assert all(part_of(scene.subject, scene.motion) == "seen" for scene in scenes)
    assert all(scene.variant % 2 == 0 for scene in scenes)  # the training split


def test_untrained_it_decodes_frame_by_frame(model, vae):
    batch = temporal_vae.batches(0, SMALL)
    with torch.no_grad():
        found = model(batch["video"][:, :, :3], batch["noise"][:, :, :3])
        for frame in range(3):
            latents = (
                vae.encode(batch["video"][:, :, frame]).latent_dist.mode() * 0.5
                + batch["noise"][:, :, frame]
            )
            torch.testing.assert_close(
                found[:, :, frame], vae.decode(latents / 0.5).sample, atol=1e-5, rtol=0
            )


class Shift(nn.Module):
    """Gives back the film, each frame brighter by so much."""

    def __init__(self, *shift):
        super().__init__()
        self.shift = torch.tensor(shift)[:, None, None]

    def forward(self, video, noise):
        return video + self.shift


def test_the_loss_counts_pixels_changes_and_looks(clip, monkeypatch):
    batch = {"video": torch.zeros(1, 3, 2, 64, 64), "noise": torch.zeros(1, 16, 2, 8, 8)}
    shifted, perfect = Shift(0.1, 0.3), Shift(0.0, 0.0)
    monkeypatch.setattr(temporal_vae.mini_vae, "LOOKS", 0.0)
    found = temporal_vae.loss(shifted, batch, torch.Generator())
    # Squares of 0.1 and 0.3, and of their difference
    torch.testing.assert_close(found, torch.tensor((0.01 + 0.09) / 2 + 0.2**2))
    monkeypatch.setattr(temporal_vae.mini_vae, "LOOKS", 1.0)
    assert temporal_vae.loss(shifted, batch, torch.Generator()) > found + 1e-4
    assert temporal_vae.loss(perfect, batch, torch.Generator()) == 0


def test_only_layers_over_time_learn(model, clip):
    batch = {name: part[:1, :, :4] for name, part in temporal_vae.batches(0, SMALL).items()}
    temporal_vae.loss(model, batch, torch.Generator()).backward()
    assert all(parameter.grad is None for parameter in model.vae.spatial.parameters())
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert any(
        parameter.grad.any()
        for parameter in model.vae.temporal.parameters()
        if parameter.grad is not None
    )


def test_the_folder_has_the_layers_over_time_and_says_of_which_autoencoder(
    model, vae, monkeypatch, tmp_path
):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    awake(model)

    def save(folder):
        save_half(vae, folder / "vae")
        (folder / "model_index.json").write_text("{}")

    zoo.store("mini-sd", save, {"evaluation": {}}, "# mini-sd")
    folder = zoo.store(
        "temporal-vae", lambda folder: temporal_vae.save(model, folder), {"evaluation": {}}, "# it"
    )
    assert json.loads((folder / "base.json").read_text())["part"] == "vae"
    with pytest.raises(
        ValueError,
        match="model: expected the weights of mini-sd/vae, on which it is to be built; got",
    ):
        temporal_vae.save(
            temporal_vae.Decoding(inflate_decoder(build_autoencoder((8, 8, 8, 8)))), tmp_path
        )
    loaded = type("Pipeline", (), {"vae": vae, "to": lambda self, device: self})()
    monkeypatch.setattr(
        zoo,
        "_class_of",
        lambda folder: type("Kind", (), {"from_pretrained": lambda *_, **__: loaded}),
    )
    loaded.components = {}
    again = zoo.load("temporal-vae")
    assert isinstance(again, TemporalAutoencoder)
    for name, value in model.vae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value.half().float(), rtol=0, atol=0)
    trained = temporal_vae.RECIPE.trained(again)
    latents = torch.randn(1, 16, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            trained.vae.decode(latents), model.vae.decode(latents), atol=2e-2, rtol=0
        )


def test_clips_go_through_and_are_shaken_alike(model):
    awake(model)
    video = temporal_vae.batches(0, SMALL)["video"][:, :, :3]
    with torch.no_grad():
        plain, apart = (
            temporal_vae.reconstructed(model.vae, video, temporal_scale=scale) for scale in (1, 0)
        )
        shaken, again = (temporal_vae.reconstructed(model.vae, video, 0.5) for _ in range(2))
    torch.testing.assert_close(
        plain, model.vae.decode(model.vae.encode(video)).clamp(-1, 1), atol=1e-5, rtol=0
    )
    assert not torch.allclose(plain, apart, atol=1e-3) and not torch.allclose(
        plain, shaken, atol=1e-3
    )
    torch.testing.assert_close(shaken, again)


def test_changes_are_a_mean_over_all_pixels():
    video = torch.zeros(2, 3, 3, 4, 4)
    video[:, :, 1] = 0.5
    assert temporal_vae.changes(video) == pytest.approx(0.25)  # of intensities from 0 to 1


def test_every_bar_is_measured(model):
    found = temporal_vae.evaluate(model, SMALL)
    assert (
        len(found) == 2 * (2 * 3 + 2) + 1
    )  # both kinds of latents, both ways: three numbers; two that compare; floor
    assert set(temporal_vae.RECIPE.bars) < set(found)
    for kind in ("latents as they are", "latents shaken"):
        # Untrained, both ways are one
        assert found[f"PSNR gained together, dB, {kind}"] == pytest.approx(0, abs=1e-3)
        assert found[f"FVD together, times that frame by frame, {kind}"] == pytest.approx(
            1, abs=1e-2
        )
    assert (
        found["PSNR, dB, together, latents shaken"]
        != found["PSNR, dB, together, latents as they are"]
    )


def test_both_ways_are_compared_the_right_way_round(model, monkeypatch):
    """A decoder that is perfect when it sees time, and paints grey when it does not."""

    def decoded(vae, video, strength, temporal_scale):
        return video * (temporal_scale or 0.5)

    monkeypatch.setattr(temporal_vae, "reconstructed", decoded)
    found = temporal_vae.evaluate(model, SMALL)
    for kind in ("latents as they are", "latents shaken"):
        assert found[f"PSNR gained together, dB, {kind}"] > 20
        assert found[f"FVD together, times that frame by frame, {kind}"] == pytest.approx(
            0, abs=1e-3
        )
        assert found[f"changes, times the film's own, frame by frame, {kind}"] == pytest.approx(
            0.5, rel=1e-3
        )
