"""Lesson 03's experiments: equal clips for all arms, what a shuffle is, where the seams are."""

from dataclasses import replace

import pytest
import torch

from course_lib.claims import vdm
from course_lib.diffusion import alpha_sigma_at, convert_prediction
from course_lib.world import World, render, subset_of

pytestmark = pytest.mark.usefixtures("tiny")


def clean(batch):
    level = alpha_sigma_at(vdm.pixel_video_scheduler(), batch["t"])
    return convert_prediction(batch["target"], batch["x_t"], level, "v_prediction").x0


def test_images_are_appended_and_nothing_else_changes(batches):
    """Equal clips, timesteps and noise in every arm; the images are frames of the same clips."""
    for num_images in (0, 3):
        vdm.train_arm("relative", num_images, 0, 0.001)
    clips = vdm.load_clips("train", vdm.TRAINING.num_examples, 0, **vdm.CLIP_KWARGS)
    frames = clips.video.transpose(1, 2).flatten(0, 1)
    for plain, joint in zip(*batches, strict=True):
        assert torch.equal(plain["t"], joint["t"]) and "is_image" not in plain
        assert torch.equal(plain["x_t"], joint["x_t"][:, :, :8])
        assert torch.equal(plain["target"], joint["target"][:, :, :8])
        assert joint["is_image"].tolist() == [[False] * 8 + [True] * 3] * 2
        for image in clean(joint)[:, :, 8:].transpose(1, 2).flatten(0, 1):
            assert (frames - image).abs().amax(dim=(1, 2, 3)).min() < 1e-2


def test_test_clips_are_not_in_the_training_set():
    samplers = [
        World(split, seed=seed, **vdm.CLIP_KWARGS).sampler
        for split, seed in (("train", 0), ("test", 1000))
    ]
    train, test = ([sampler(index) for index in range(200)] for sampler in samplers)
    assert not set(train) & set(test)
    assert all(subset_of(scene.subject, scene.motion) == "base" for scene in train + test)


class SmoothnessNet(torch.nn.Module):
    """Its error grows with the difference between neighbouring frames, or is constant."""

    device = torch.device("cpu")

    def __init__(self, order_matters):
        super().__init__()
        self.order_matters = order_matters

    def forward(self, x, t, text):
        level = alpha_sigma_at(vdm.pixel_video_scheduler(), t[:1])
        dims = (1, 2, 3, 4)
        error = x.diff(dim=2).abs().mean(dim=dims, keepdim=True) if self.order_matters else 0.1
        v = convert_prediction(torch.zeros_like(x) + error, x, level, "sample").v
        return type("Output", (), {"sample": v})


def test_a_net_that_depends_on_order_tells_a_clip_from_its_shuffle(monkeypatch):
    smooth = torch.linspace(0, 1, 8)[None, None, :, None, None] * torch.ones(40, 3, 8, 4, 4)
    monkeypatch.setattr(vdm, "sample_noise", lambda shape, generator: torch.zeros(shape))
    # Both predict the same for all frames: a brighter prediction is worse for dark clips
    sensitive, blind = (
        vdm.shuffle_discrimination(
            SmoothnessNet(order_matters), -smooth, torch.Generator().manual_seed(0)
        )
        for order_matters in (True, False)
    )
    assert sensitive["shuffle_discrimination"] == 1 and blind["shuffle_discrimination"] == 0.5
    assert blind["shuffle_error_ratio"] == pytest.approx(1, abs=1e-5)


def test_without_positions_clip_and_shuffle_are_the_same():
    """A real network: equal up to rounding, even with temporal layers that are not zero."""
    for positions, is_equal in (("none", True), ("relative", False)):
        torch.manual_seed(0)
        model = vdm.build_model(positions).eval()
        for name, parameter in model.named_parameters():
            if "temporal" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        # Seven clips: no half of them
        video = vdm.load_clips("test", 7, 1000, **vdm.CLIP_KWARGS).video
        metrics = vdm.shuffle_discrimination(model, video, torch.Generator().manual_seed(0))
        assert (metrics["shuffle_discrimination"] == 0.5) == is_equal
        assert (abs(metrics["shuffle_error_ratio"] - 1) < 1e-5) == is_equal


def test_every_arm_is_measured():
    for arm in vdm.IMAGES_ARMS:
        metrics = vdm._run_joint_training(arm, 0, 0.002)
        assert metrics["fvd"] > 0 and metrics["frame_fid"] > 0
    for arm in vdm.POSITION_ARMS:
        assert 0 <= vdm._run_positions(arm, 0, 0.002)["shuffle_discrimination"] <= 1


def test_one_training_serves_two_claims():
    model, _ = vdm.train_arm("relative", 0, 0, 0.001)
    assert vdm.train_arm("relative", 0, 0, 0.001)[0] is model
    assert vdm.train_arm("none", 0, 0, 0.001)[0] is not model


def test_hard_motions_start_from_equal_noise_under_both_kinds_of_guidance(monkeypatch):
    """A model that generates the prompts, but with text guidance everything stands still."""
    calls, hard = [], {"spinning", "bouncing"}

    def generate(model, prompts, generator, temporal_guidance_scale):
        calls.append((prompts, generator.initial_seed()))
        world = World("test", seed=1003, size=32, **vdm.vdm.WORLD_KWARGS).batch(range(320))
        scenes = [scene for scene in world.scenes if scene.motion in hard][: len(prompts)]
        still = [replace(scene, motion="standing still") for scene in scenes]
        return render(still if temporal_guidance_scale is None else scenes, size=32).video

    monkeypatch.setattr(vdm.vdm, "generate", generate)
    monkeypatch.setattr(vdm.zoo, "load_cached", lambda name: None)
    text, temporal = (vdm._run_guidance(arm, 3, 0.5) for arm in vdm.GUIDANCE_ARMS)
    assert calls[0] == calls[1] and len(calls[0][0]) == 32 and calls[0][1] == 3
    assert all(" spinning " in prompt or " bouncing " in prompt for prompt in calls[0][0])
    assert text["motion_accuracy"] < 0.1 and temporal["motion_accuracy"] > 0.9
    assert min(text["subject_accuracy"], temporal["subject_accuracy"]) > 0.9


@pytest.mark.parametrize("arm", vdm.CONDITIONING_ARMS, ids=lambda arm: arm.id)
def test_a_seam_is_where_a_block_begins(arm, monkeypatch):
    """Differences of 3 where blocks of 12 meet, and of 1 where an emoji's own image changes."""
    kwargs = {}

    def generate(model, prompts, generator, **options):
        kwargs.update(options)
        diffs = torch.tensor(
            [3.0 if k in (15, 27) else 1.0 if k % 4 == 3 else 0.0 for k in range(39)]
        )
        line = torch.cat([torch.zeros(1), diffs.cumsum(0)])
        return line.view(1, 1, 40, 1, 1).expand(len(prompts), 3, 40, 32, 32) / 100

    monkeypatch.setattr(vdm.vdm, "generate", generate)
    monkeypatch.setattr(vdm.zoo, "load_cached", lambda name: None)
    monkeypatch.setattr(vdm, "NUM_EXTENDED", 4)
    assert vdm._run_extension(arm, 0, 1.0)["seam_ratio"] == pytest.approx(3)
    assert kwargs == {"fps": 32, "num_frames": 40, "reconstruction_weight": arm.value}


def test_real_clips_have_no_seams():
    """At 32 frames per second an emoji's image changes with every fourth frame, seam or not."""
    world = World("test", size=32, num_frames=64, fps=32, seed=1, **vdm.vdm.WORLD_KWARGS)
    video = world.batch(range(24)).video
    assert vdm.seam_ratio(video) == pytest.approx(1, abs=0.1)
    diffs = video.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))[15:]
    assert diffs[4::12].mean() > 1.5 * diffs[1::4].mean()
