"""Every bad input has its own sentence; good input passes in any precision."""

import math

import pytest
import torch
from torch import nn

from course_lib.metrics import inputs

GOOD = torch.linspace(-1, 1, 2 * 3 * 4 * 8 * 8).reshape(2, 3, 4, 8, 8)


def with_value(value):
    video = GOOD.clone()
    video[0, 0, 0, 0, 0] = value
    return video


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_good_videos_pass(dtype):
    inputs.check_video("video", GOOD.to(dtype), min_frames=4, min_size=8)
    inputs.check_images("images", GOOD[:, :, 0].to(dtype), min_size=8)
    inputs.check_pair(("a", "b"), GOOD.to(dtype), -GOOD.to(dtype))


def test_rounding_errors_pass_and_no_more():
    inputs.check_video("video", with_value(1.0009))
    with pytest.raises(
        ValueError, match=r"video: expected values in \[-1, 1\], got -0.9987 to 1.002$"
    ):
        inputs.check_video("video", with_value(1.002))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            GOOD[0],
            r"video: expected \(b, c, f, h, w\).*got shape \(3, 4, 8, 8\); one alone needs a batch axis: video\[",
        ),
        (GOOD[None], r"video: expected \(b, c, f, h, w\).*got shape \(1, 2, 3, 4, 8, 8\)$"),
        (GOOD[:0], r"no axis empty, got shape \(0, 3, 4, 8, 8\)"),
        (GOOD[:, :, :0], r"no axis empty, got shape \(2, 3, 0, 8, 8\)"),
        (
            GOOD.to(torch.uint8),
            r"video: expected floating point, got torch.uint8; convert with video / 127.5 - 1",
        ),
        (GOOD.long(), r"video: expected floating point, got torch.int64$"),
        (
            127.5 * (GOOD + 1),
            r"expected values in \[-1, 1\], got 0 to 255; if it is \[0, 255\], convert with video / 127",
        ),
        (2 * GOOD, r"expected values in \[-1, 1\], got -2 to 2$"),
        (with_value(math.nan), r"video: expected finite values, got 1 of 1536 NaN or infinite"),
        (with_value(-math.inf), r"video: expected finite values, got 1 of 1536 NaN or infinite"),
        (GOOD[:, :, :2], "video: expected at least 3 frames, got 2"),
        (GOOD[..., :5], "video: expected at least 7x7 pixels, got 8x5"),
    ],
)
def test_a_bad_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        inputs.check_video("video", video, min_frames=3, min_size=7)


def test_bad_images_are_refused():
    with pytest.raises(
        ValueError, match=r"images: expected \(b, c, h, w\).*got shape \(2, 3, 4, 8, 8\)$"
    ):
        inputs.check_images("images", GOOD)
    with pytest.raises(ValueError, match="images: expected at least 9x9 pixels, got 8x8"):
        inputs.check_images("images", GOOD[:, :, 0], min_size=9)


def test_a_pair_has_one_shape():
    with pytest.raises(
        ValueError,
        match=r"truth: expected the shape of video, \(2, 3, 4, 8, 8\), got \(2, 3, 3, 8, 8\)",
    ):
        inputs.check_pair(("video", "truth"), GOOD, GOOD[:, :, :3])
    with pytest.raises(ValueError, match="truth: expected finite"):
        inputs.check_pair(("video", "truth"), GOOD, with_value(math.nan))


def test_features_are_a_finite_matrix():
    inputs.check_features("x", torch.full((3, 2), 1e6))
    with pytest.raises(ValueError, match=r"x: expected \(n, d\).*got shape \(3,\)$"):
        inputs.check_features("x", torch.zeros(3))
    with pytest.raises(ValueError, match="x: expected finite values, got 2 of 4"):
        inputs.check_features("x", torch.tensor([[math.nan, 0.0], [0.0, math.inf]]))


def test_a_count_names_what_is_needed():
    inputs.check_count("real clips", 2, 2)
    with pytest.raises(ValueError, match="real clips: expected at least 2, got 1"):
        inputs.check_count("real clips", 1, 2)


def test_a_net_in_training_mode_is_refused():
    inputs.check_net("net", nn.Dropout().eval())
    inputs.check_net("net", abs)
    with pytest.raises(
        ValueError, match=r"net: expected a network in evaluation mode; call .eval\(\)"
    ):
        inputs.check_net("net", nn.Dropout())


def test_inputs_are_left_alone():
    before = GOOD.clone()
    inputs.check_video("video", GOOD)
    assert torch.equal(GOOD, before) and not GOOD.requires_grad
