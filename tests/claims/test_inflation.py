"""Lesson 07's experiments: arms get the same clips, what is trained in which, what is measured."""

import pytest
import torch

from course_lib import zoo
from course_lib.claims import common, inflation
from course_lib.diffusion import alpha_sigma_at
from course_lib.nn.temporal_decoder import inflate_decoder
from course_lib.world import subset_of

pytestmark = pytest.mark.usefixtures("tiny")
ARMS = {
    arm.id: arm for arm in (*inflation.TEXT_ARMS, inflation.FULL_FINETUNE, inflation.FROM_SCRATCH)
}


def test_half_of_the_subjects_are_in_no_training_clip():
    groups = (inflation.VIDEO_SUBJECTS, inflation.IMAGE_ONLY_SUBJECTS)
    assert not set(groups[0]) & set(groups[1])
    assert len(groups[0]) == len(groups[1]) == 12
    _, captions = inflation._data(0)
    assert all(any(name in caption for name in groups[0]) for caption in captions)
    for subjects in groups:
        scenes = inflation.real_clips(subjects, 30, 0).scenes
        assert {scene.subject for scene in scenes} <= set(subjects)
        assert {scene.motion for scene in scenes} == set(inflation.MOTIONS)
        assert all(subset_of(scene.subject, scene.motion) == "base" for scene in scenes)


def test_arms_get_the_same_clips_and_noise(batches):
    for id in ("temporal_only", "from_scratch", "temporal_no_text"):
        inflation.train_arm(ARMS[id], 0, 0.001)
    latents, _ = inflation._data(0)
    scheduler = inflation.mini_video.scheduler()
    for temporal, scratch, no_text in zip(*batches, strict=True):
        for name in ("x_t", "t", "target", "frame_index"):
            assert torch.equal(temporal[name], scratch[name])
            assert torch.equal(temporal[name], no_text[name])
        assert torch.equal(temporal["text"], scratch["text"])
        # Without text in the temporal layers there are no token embeddings
        width = no_text["text"].shape[-1]
        assert torch.equal(temporal["text"][..., :width], no_text["text"])
        assert temporal["text"].shape[-1] == 2 * width
        alpha, sigma = alpha_sigma_at(scheduler, temporal["t"]).like(temporal["x_t"])
        x0 = alpha * temporal["x_t"] - sigma * temporal["target"]
        assert all((latents - clip).abs().amax(dim=(1, 2, 3, 4)).min() < 1e-3 for clip in x0)


@pytest.mark.parametrize("id", ARMS)
def test_frozen_weights_stay_and_the_others_change(id):
    torch.manual_seed(3)
    before = inflation.build_arm(ARMS[id]).state_dict()
    after = inflation.train_arm(ARMS[id], 3, 0.012)[0].state_dict()
    image = zoo.load("mini-sd").unet.state_dict()
    is_pretrained = all(
        torch.equal(before[f"spatial.{name}"], value) for name, value in image.items()
    )
    changed = {
        name for name, value in image.items() if not torch.equal(after[f"spatial.{name}"], value)
    }
    assert is_pretrained == (id != "from_scratch")
    projections = {name for name in image if "attn2.to_k" in name or "attn2.to_v" in name}
    expected = dict.fromkeys(("full_finetune", "from_scratch"), set(image))
    expected["temporal_no_text_kv_tuned"] = projections
    assert projections and changed == expected.get(id, set())
    assert any(
        not torch.equal(after[name], value)
        for name, value in before.items()
        if name.startswith("temporal.")
    )


@torch.no_grad()
def test_layers_with_null_text_are_as_large_and_ignore_the_prompt():
    results = {}
    for id in ("temporal_only", "temporal_null_text"):
        unet = inflation.build_arm(ARMS[id]).eval()
        torch.manual_seed(4)
        for parameter in unet.temporal.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        # The image model reads the first half of the text, the temporal layers all of it
        width = unet.text_dim // 2
        text = torch.randn(1, 32, 2 * width)
        other = torch.cat([text[..., :width], torch.randn(1, 32, width)], dim=-1)
        clip = torch.randn(1, unet.spatial.config.in_channels, 4, 8, 8)
        preds = [
            unet(clip, 500, each, frame_index=inflation.FRAME_INDEX[None]).sample
            for each in (text, other)
        ]
        size = sum(parameter.numel() for parameter in unet.parameters())
        results[id] = size, (preds[0] - preds[1]).abs().max().item()
    assert results["temporal_null_text"] == (results["temporal_only"][0], 0)
    assert results["temporal_only"][1] > 1e-3


def test_distances_are_zero_for_equal_clips_and_larger_for_others():
    clips, other = (
        inflation.real_clips(inflation.VIDEO_SUBJECTS, 12, seed).video for seed in (0, 1)
    )
    for distance in (
        lambda a, b: common.fvd(*map(inflation.hold_frames, (a, b))),
        common.frame_fid,
    ):
        assert abs(distance(clips, clips)) < 1e-3 < distance(clips.flip(2), other)
    assert abs(common.frame_fid(clips.flip(2), clips)) < 1e-3  # single frames have no order
    assert common.fvd(*map(inflation.hold_frames, (clips.flip(2), clips))) > 1e-3


@pytest.mark.parametrize("id", ["temporal_only", "from_scratch"])
def test_every_arm_is_measured(id):
    metrics = inflation._run_training(ARMS[id], 0, 0.001)
    for claim in inflation.CLAIMS:
        assert claim.metric in metrics or claim.run is inflation._run_decoder
    assert all(0 <= value <= 1 for name, value in metrics.items() if "accuracy" in name)


def test_the_decoder_is_measured_with_its_temporal_layers_on_and_off(monkeypatch):
    load, decoder = zoo.load, inflate_decoder(zoo.load("mini-vae"))
    for parameter in decoder.temporal.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    monkeypatch.setattr(
        inflation.zoo, "load", lambda name: decoder if name == "temporal-vae" else load(name)
    )
    off, on, noisy_off, noisy_on = (
        inflation._run_decoder(arm, 0, 0.001)
        for arm in (*inflation.DECODER_ARMS, *inflation.NOISY_LATENT_ARMS)
    )
    assert off["frame_diff_ratio"] == pytest.approx(1.0, abs=0.3)
    assert on["fvd"] != pytest.approx(off["fvd"])
    for metrics in (off, on):
        assert metrics["flicker"] == pytest.approx(abs(metrics["frame_diff_ratio"] - 1))
    assert noisy_off["flicker"] > off["flicker"] + 0.3
    assert noisy_on["flicker"] != pytest.approx(noisy_off["flicker"])
