"""Centres against planted boxes and the world's truth; the error against shifts that are known."""

import math

import pytest
import torch

from course_lib.metrics import TrajectoryError, centres, subject_centres, subject_masks
from course_lib.world import World


def boxes(*corners, size=32):
    """Masks (1, 1, f, size, size): per frame one box (left, top, right, bottom), or None."""
    masks = torch.zeros(1, 1, len(corners), size, size, dtype=torch.bool)
    for t, corner in enumerate(corners):
        if corner is not None:
            left, top, right, bottom = corner
            masks[0, 0, t, top : bottom + 1, left : right + 1] = True
    return masks


def test_the_centre_of_a_box():
    result = centres(boxes((0, 0, 31, 31), (0, 0, 0, 0), (8, 16, 23, 31), None, size=32))
    corner = 1 / 32 - 1  # the centre of the first pixel
    expected = [[0, 0], [corner, corner], [0, 0.5], [math.nan, math.nan]]
    assert torch.allclose(
        result[0], torch.tensor(expected, dtype=torch.float64), atol=1e-12, equal_nan=True
    )


def test_frames_need_not_be_square():
    masks = torch.zeros(1, 1, 1, 10, 40, dtype=torch.bool)
    masks[..., 5:, :20] = True
    assert centres(masks)[0, 0].tolist() == [-0.5, 0.5]


def pixels_off(clips, video):
    """Mean distance to the truth of every clip, in pixels."""
    away = (subject_centres(video) - clips.path[..., :2]) * video.shape[-1] / 2
    return away.norm(dim=-1).mean(dim=1)  # NaN where a subject was missed


@pytest.mark.parametrize(
    ("size", "frames", "noise", "mean", "most"),
    [(64, 16, 0.0, 1.0, 2.5), (64, 8, 0.05, 1.1, 3.0), (32, 8, 0.0, 0.7, 1.8)],
)
def test_subjects_of_the_world_are_found(size, frames, noise, mean, most):
    clips = World("test", subset="all", seed=12, size=size, num_frames=frames).batch(range(64))
    video = clips.video + noise * torch.randn(
        clips.video.shape, generator=torch.Generator().manual_seed(0)
    )
    off = pixels_off(clips, video.clamp(-1, 1))
    assert off.mean() < mean and off.quantile(0.9) < most


def test_masks_cover_the_subject_and_little_else():
    clips = World("test", subset="all", seed=12).batch(range(32))
    result, truth = subject_masks(clips.video), clips.mask
    assert result.shape == truth.shape and result.dtype == torch.bool
    overlap = (result & truth).sum(dim=(1, 2, 3, 4)) / (result | truth).sum(dim=(1, 2, 3, 4))
    assert overlap.median() > 0.75


def test_an_empty_scene_has_no_subject():
    sky = World("test", backgrounds=["night sky"]).batch(range(1)).video
    border = sky[:, :, :, :3].mean(dim=(3, 4), keepdim=True).expand_as(sky).contiguous()
    border[..., 20:23, 30:33] = 1.0  # a star
    assert not subject_masks(border).any()
    assert subject_centres(border).isnan().all()


@pytest.fixture(scope="module")
def clips():
    return World("test", subset="all", seed=12, motions=["moving left", "moving up"]).batch(
        range(8)
    )


def test_a_shifted_path_is_off_by_the_shift(clips):
    metric = TrajectoryError("given")
    shift = torch.tensor([0.25, 0.0, 0.0, 0.0])  # 8 pixels of 64
    truth = torch.cat([centres(clips.mask), torch.zeros(8, 16, 2)], dim=-1)
    metric.update(clips.video, truth + shift, clips.mask)
    scores = metric.compute()
    assert scores["absolute"].value == pytest.approx(8, abs=1e-5)
    assert scores["shape"].value == pytest.approx(0, abs=1e-5)
    assert scores["detected"].value == 1
    assert str(scores["absolute"]).startswith("trajectory_error_absolute[given] 8 px")


def test_true_clips_keep_their_path_and_others_do_not(clips):
    scores = []
    for path in (clips.path, clips.path.flip(1), clips.path.roll(1, dims=0)):
        metric = TrajectoryError()
        metric.update(clips.video, path)
        scores.append(metric.compute())
    own, backwards, swapped = scores
    assert own["absolute"].value < 1.5 and own["shape"].value < 0.8
    assert own["absolute"].name == "trajectory_error_absolute[border]" and own["absolute"].n == 8
    for other in (backwards, swapped):
        assert (
            other["absolute"].value > 4 * own["absolute"].value
            and other["shape"].value > 4 * own["shape"].value
        )


def test_frames_without_a_subject_are_told_and_do_not_count():
    video = torch.zeros(2, 3, 4, 32, 32)
    path = torch.zeros(2, 4, 2)
    masks = torch.cat(
        [boxes((8, 16, 23, 31), None, (8, 16, 23, 31), None), boxes(None, None, None, None)]
    )
    metric = TrajectoryError("given")
    metric.update(video, path, masks)
    scores = metric.compute()
    assert (
        scores["absolute"].value == pytest.approx(8) and scores["absolute"].n == 1
    )  # half of 16 pixels down
    assert scores["detected"].value == 0.25 and scores["detected"].n == 2
    metric.reset()
    metric.update(video[1:], path[1:], masks[1:])
    assert math.isnan(metric.compute()["absolute"].value) and metric.compute()["absolute"].n == 0


@pytest.mark.parametrize("sizes", [(8,), (3, 5), (1,) * 8])
def test_batches_do_not_matter(clips, sizes):
    full, parts = TrajectoryError(), TrajectoryError()
    full.update(clips.video, clips.path)
    for video, path in zip(clips.video.split(sizes), clips.path.split(sizes), strict=True):
        parts.update(video, path)
    for key, values in full.per_clip().items():
        assert torch.equal(parts.per_clip()[key], values)


VIDEO, PATH, MASKS = (
    torch.zeros(2, 3, 4, 16, 16),
    torch.zeros(2, 4, 2),
    torch.zeros(2, 1, 4, 16, 16, dtype=torch.bool),
)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrajectoryError("sam"), "masks: expected 'border' or 'given', got 'sam'"),
        (
            lambda: TrajectoryError().update(VIDEO, PATH, MASKS),
            "masks: expected None unless masks='given', got a value",
        ),
        (
            lambda: TrajectoryError("given").update(VIDEO, PATH),
            "masks: expected a value with masks='given', got None",
        ),
        (
            lambda: TrajectoryError("given").update(VIDEO, PATH, MASKS[:1]),
            r"masks: expected bool of \(2, 1, 4, 16, 16\)",
        ),
        (
            lambda: TrajectoryError("given").update(VIDEO, PATH, MASKS.float()),
            "masks: expected bool",
        ),
        (
            lambda: TrajectoryError().update(VIDEO, PATH[:, :3]),
            r"path: expected \(b, f, 2\) or more = \(2, 4, 2\)",
        ),
        (
            lambda: TrajectoryError().update(VIDEO, PATH[..., :1]),
            r"path: expected \(b, f, 2\) or more",
        ),
        (lambda: TrajectoryError().update(VIDEO, PATH / 0), "path: expected finite values"),
        (lambda: TrajectoryError().update(VIDEO + 2, PATH), r"video: expected values in \[-1, 1\]"),
        (lambda: subject_masks(VIDEO[..., :8]), "video: expected at least 16x16 pixels"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("farthest", [2.1, 15.0, -63.0])
def test_a_path_in_pixels_is_refused(farthest):
    path = PATH.clone()
    path[1, 2, 0] = farthest
    with pytest.raises(ValueError, match=r"path: expected x and y in \[-1, 1\], got up to"):
        TrajectoryError().update(VIDEO, path)


def test_a_path_may_leave_the_frame_and_have_other_columns():
    metric = TrajectoryError("given")
    metric.update(VIDEO, torch.cat([PATH + 1.9, PATH + 90], dim=-1), ~MASKS)
    assert metric.compute()["absolute"].value == pytest.approx(1.9 * 8 * 2**0.5)


@pytest.mark.parametrize(
    "masks", [MASKS.float(), MASKS.byte(), MASKS[0], MASKS[:, :0], MASKS.expand(-1, 3, -1, -1, -1)]
)
def test_centres_are_those_of_bool_masks(masks):
    with pytest.raises(ValueError, match=r"masks: expected bool of \(b, 1, f, h, w\), got"):
        centres(masks)
