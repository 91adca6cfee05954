"""Every fault that a person sees moves its own number, and no other."""

from functools import cache

import numpy as np
import pytest
import torch

from course_lib.metrics import RenderingDistance, morphing, nearest_renderings, path_error
from course_lib.world import MOTIONS, Scene, render
from course_lib.world.corruption import remove_top
from course_lib.world.motions import MOTION_INDEX, path

SCENES = [
    Scene("poodle", "moving left", "mint", 3),
    Scene("tractor", "moving up", "desert", 4),
    Scene("red heart", "standing still", "grass", 5),
    Scene("owl", "moving right", "sunset", 6),
]


@cache
def clips():
    return render(SCENES, num_frames=6)


def measure(video):
    metric = RenderingDistance()
    metric.update(video, clips().captions)
    return metric.per_clip()


@cache
def real():
    return measure(clips().video)


def test_real_clips_lack_nothing():
    values = real()
    assert (values["psnr"] > 38).all() and (values["subject_kept"] == 1).all()
    assert (values["path_error"] < 0.3).all() and (values["morphing"] < 0.01).all()


def test_a_missing_head_is_noticed():
    values = measure(remove_top(clips()))
    assert (values["psnr"] < real()["psnr"] - 12).all()
    # always missing is no change
    assert (values["morphing"] < 0.05).all()


def test_a_head_that_comes_and_goes_is_morphing():
    video = clips().video.clone()
    headless = remove_top(clips())
    video[:, :, ::2] = headless[:, :, ::2]
    values, constant = measure(video), measure(headless)
    assert (values["morphing"] > 0.01 + 1.5 * constant["morphing"]).all()
    assert (values["psnr"] > constant["psnr"]).all()


def test_a_subject_that_turns_into_another_is_not_kept():
    others = [Scene("snail", s.motion, s.background, s.variant) for s in SCENES]
    video = clips().video.clone()
    video[:, :, 3:] = render(others, num_frames=6).video[:, :, 3:]
    assert (measure(video)["subject_kept"] == 0).all()


def test_a_shaking_subject_leaves_its_path():
    """Frames 1, 3 and 5 are 4 pixels lower: the path's error is half of that."""
    video = clips().video.clone()
    video[:, :, 1::2] = video[:, :, 1::2].roll(4, dims=3)
    values = measure(video)
    still = [row for row, s in enumerate(SCENES) if s.motion != "moving up"]
    assert values["path_error"][still] == pytest.approx([2.0] * len(still), abs=0.3)
    assert (values["psnr"] > 25).all() and (values["morphing"] < 0.05).all()


def test_blur_and_noise_lower_the_psnr():
    noise = 0.1 * torch.randn(clips().video.shape, generator=torch.Generator().manual_seed(0))
    values = measure((clips().video + noise).clamp(-1, 1))
    # the noise's own PSNR: 20 log10(2 / 0.1)
    assert values["psnr"] == pytest.approx([26.0] * 4, abs=1.0)


def test_a_net_adds_its_distance():
    metric = RenderingDistance(lambda images: [images], "pixels")
    metric.update(clips().video, clips().captions)
    scores = metric.compute()
    assert scores["perceptual"].name == "nearest_rendering_perceptual[pixels]"
    assert 0 <= scores["perceptual"].value < 0.01


def test_single_frames_have_no_motion():
    metric = RenderingDistance()
    metric.update(clips().video[:, :, :1], clips().image_captions)
    values = metric.per_clip()
    assert values["path_error"].isnan().all() and values["morphing"].isnan().all()
    assert metric.compute()["morphing"].n == 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_paths_of_the_world_have_no_error(motion):
    """Bouncing is searched on a grid of periods and phases."""
    motions = np.full(5, MOTION_INDEX[motion])
    poses = torch.from_numpy(path(motions, np.arange(5), 16, 8))
    errors = torch.stack([path_error(pose, motion) for pose in poses])
    assert errors.max() < (0.2 if motion == "bouncing" else 1e-9)


@pytest.mark.parametrize(
    ("motion", "other"),
    [("moving left", "standing still"), ("moving up", "moving left"), ("bouncing", "moving up")],
)
def test_the_path_of_another_motion_has_an_error(motion, other):
    pose = torch.from_numpy(path(np.array([MOTION_INDEX[motion]]), np.array([7]), 16, 8))[0]
    assert path_error(pose, other) > 3


def test_the_error_of_a_planted_deviation():
    """Six pixels in one of 16 frames, away from the fitted mean: sqrt(36 · 15 / 16²)."""
    pose = torch.zeros(16, 4, dtype=torch.float64)
    pose[3, 0] = 6 / 32
    assert path_error(pose, "standing still") == pytest.approx((36 * 15 / 256) ** 0.5)


def test_morphing_is_measured_in_the_coordinates_of_the_sprite():
    """A stain that moves with its subject is none, one that stays in the frame is."""
    nearest = nearest_renderings(clips().video, clips().captions)
    with_subject, in_frame = clips().video.clone(), clips().video.clone()
    for row, positions in enumerate(clips().path):
        for t, (x, y) in enumerate(positions[:, :2].tolist()):
            left, top = (round((value + 1) * 32) - 4 for value in (x, y))
            with_subject[row, :, t, top : top + 8, left : left + 8] = -1
    in_frame[:, :, :, 28:36, 28:36] = -1
    moves = torch.tensor([scene.motion != "standing still" for scene in SCENES])
    stain, stays = (morphing(video, nearest)[moves] for video in (with_subject, in_frame))
    assert (stain < 0.7 * stays).all()


@pytest.mark.parametrize(
    ("pose", "motion", "fps", "match"),
    [
        (torch.zeros(4), "moving left", 8, "pose: "),
        (torch.zeros(4, 2), "moving left", 8, "pose: "),
        (torch.zeros(4, 4), "flying", 8, "motion: "),
        (torch.zeros(4, 4), "moving left", 0, "fps: "),
    ],
)
def test_bad_paths_are_refused(pose, motion, fps, match):
    with pytest.raises(ValueError, match=match):
        path_error(pose, motion, fps)


def test_videos_of_another_shape_are_refused():
    nearest = nearest_renderings(clips().video[:1, :, :1], clips().captions[:1])
    with pytest.raises(ValueError, match="video: "):
        morphing(clips().video[:1], nearest)
