"""Each bad input has its own message; good input passes in any precision."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import validation
from course_lib.metrics import Flicker
from course_lib.validation import clips_to_uint8, images_to_uint8, to_numpy, to_uint8
from course_lib.world import World

GOOD = torch.linspace(-1, 1, 2 * 3 * 4 * 8 * 8).reshape(2, 3, 4, 8, 8)


def with_value(value):
    video = GOOD.clone()
    video[0, 0, 0, 0, 0] = value
    return video


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_good_videos_pass(dtype):
    validation.check_video("video", GOOD.to(dtype), min_frames=4, min_size=8)
    validation.check_images("images", GOOD[:, :, 0].to(dtype))
    validation.check_pair(("a", "b"), GOOD.to(dtype), -GOOD.to(dtype), min_size=8)


def test_rounding_errors_pass_and_no_more():
    validation.check_video("video", with_value(1.0009))
    message = r"video: expected values in \[-1, 1\], got -0.9987 to 1.002; if a model overshoots"
    with pytest.raises(ValueError, match=message):
        validation.check_video("video", with_value(1.002))


BAD_VIDEOS = [
    (
        GOOD[0],
        r"expected \(b, c, f, h, w\), got shape \(3, 4, 8, 8\); .* batch axis: video\[None\]",
    ),
    (GOOD[None], r"video: expected \(b, c, f, h, w\), got shape \(1, 2, 3, 4, 8, 8\)$"),
    (GOOD[:0], r"video: expected no empty axis, got shape \(0, 3, 4, 8, 8\)"),
    (GOOD[:, :, :0], r"video: expected no empty axis, got shape \(2, 3, 0, 8, 8\)"),
    (GOOD.to(torch.uint8), r"floating point, got torch.uint8; convert with video / 127.5 - 1"),
    (GOOD.long(), r"video: expected floating point, got torch.int64$"),
    (
        127.5 * (GOOD + 1),
        r"in \[-1, 1\], got 0 to 255; if it is in \[0, 255\], use video / 127.5 - 1",
    ),
    (2 * GOOD, r"expected values in \[-1, 1\], got -2 to 2; .* use video.clamp\(-1, 1\)$"),
    (with_value(math.nan), r"video: expected finite values, got 1 of 1536 NaN or infinite"),
    (with_value(-math.inf), r"video: expected finite values, got 1 of 1536 NaN or infinite"),
    (GOOD[:, :, :2], "video: expected at least 3 frames, got 2"),
    (GOOD[..., :5], "video: expected at least 7x7 pixels, got 8x5"),
]


@pytest.mark.parametrize(("video", "message"), BAD_VIDEOS)
def test_a_bad_video_is_refused(video, message):
    with pytest.raises(ValueError, match=message):
        validation.check_video("video", video, min_frames=3, min_size=7)


def test_bad_images_are_refused():
    message = r"images: expected \(b, c, h, w\), got shape \(2, 3, 4, 8, 8\)$"
    with pytest.raises(ValueError, match=message):
        validation.check_images("images", GOOD)
    with pytest.raises(ValueError, match=r"images: expected values in \[-1, 1\], got -2 to"):
        validation.check_images("images", 2 * GOOD[:, :, 0])


def test_a_pair_has_one_shape():
    message = r"truth: expected the shape of video, \(2, 3, 4, 8, 8\), got \(2, 3, 3, 8, 8\)"
    with pytest.raises(ValueError, match=message):
        validation.check_pair(("video", "truth"), GOOD, GOOD[:, :, :3])
    with pytest.raises(ValueError, match="truth: expected finite"):
        validation.check_pair(("video", "truth"), GOOD, with_value(math.nan))


def test_features_are_a_finite_matrix():
    assert validation.check_tensor("x", torch.full((3, 2), 1e6), "(n, d)") == (1e6, 1e6)
    with pytest.raises(ValueError, match=r"x: expected \(n, d\), got shape \(3,\)$"):
        validation.check_tensor("x", torch.zeros(3), "(n, d)")
    with pytest.raises(ValueError, match="x: expected finite values, got 2 of 4"):
        x = torch.tensor([[math.nan, 0.0], [0.0, math.inf]])
        validation.check_tensor("x", x, "(n, d)")


def test_a_count_states_the_minimum():
    validation.check_count("real clips", 2, 2)
    with pytest.raises(ValueError, match="real clips: expected at least 2, got 1"):
        validation.check_count("real clips", 1, 2)


def test_there_is_one_prompt_per_clip():
    validation.check_prompts("prompts", ["a fox", "a bus"], 2)
    message = "prompts: expected a list of 3 prompts, one per clip, got "
    with pytest.raises(ValueError, match=message + "2"):
        validation.check_prompts("prompts", ["a fox", "a bus"], 3)
    with pytest.raises(ValueError, match=message + "one string"):
        validation.check_prompts("prompts", "fox", 3)


def test_an_argument_that_depends_on_a_setting():
    validation.check_provided("flow", GOOD, "flow='exact'", True)
    validation.check_provided("flow", None, "flow='exact'", False)
    with pytest.raises(ValueError, match="flow: expected a value with flow='exact', got None"):
        validation.check_provided("flow", None, "flow='exact'", True)
    with pytest.raises(ValueError, match="flow: expected None unless flow='exact', got a value"):
        validation.check_provided("flow", GOOD, "flow='exact'", False)


def test_a_net_in_training_mode_is_refused():
    validation.check_net("net", nn.Dropout().eval())
    validation.check_net("net", abs)
    message = r"net: expected a network in evaluation mode, got training mode; call .eval\(\)"
    with pytest.raises(ValueError, match=message):
        validation.check_net("net", nn.Dropout())


def test_inputs_are_unchanged():
    before = GOOD.clone()
    validation.check_video("video", GOOD)
    clips_to_uint8(GOOD)
    assert torch.equal(GOOD, before) and not GOOD.requires_grad


# Videos in [0, 1]

IN_UNIT_RANGE = (GOOD + 1) / 2
UNIT_RANGE_MESSAGE = (
    r"video: all values lie in \[0, 1\]; expected \[-1, 1\]. "
    r"If it is in \[0, 1\], use video \* 2 - 1"
)


def test_a_video_in_0_1_gives_a_warning_that_a_metric_passes_on():
    with pytest.warns(UserWarning, match=UNIT_RANGE_MESSAGE):
        validation.check_video("video", IN_UNIT_RANGE)
    with pytest.warns(UserWarning, match=UNIT_RANGE_MESSAGE):
        Flicker().update(IN_UNIT_RANGE)


def test_one_negative_value_in_the_batch_is_enough():
    validation.check_video("video", torch.cat([IN_UNIT_RANGE, GOOD]))


def test_videos_of_low_contrast_give_no_warning():
    validation.check_video("video", IN_UNIT_RANGE / 2 + 0.5)
    validation.check_video("video", torch.zeros_like(GOOD))
    validation.check_video("video", torch.ones_like(GOOD))


@pytest.mark.parametrize("size", [32, 64])
def test_no_clip_of_the_world_gives_a_warning(size):
    clips = World("test", subset="all", size=size, num_frames=2, seed=3).batch(range(100))
    for clip in clips.video.split(1):
        validation.check_video("video", clip)


# Displays: levels 0 … 255


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 3),
    c=st.sampled_from([1, 3]),
    f=st.integers(1, 5),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_size_and_float_dtype(b, c, f, h, w, dtype):
    generator = torch.Generator().manual_seed(f)
    video = (torch.rand(b, c, f, h, w, generator=generator) * 2 - 1).to(dtype)
    levels = clips_to_uint8(video.requires_grad_())
    expected = ((video.detach().float() + 1) * 127.5).round().to(torch.uint8).expand(b, 3, f, h, w)
    np.testing.assert_array_equal(levels, expected.permute(0, 2, 3, 4, 1).numpy())
    np.testing.assert_array_equal(clips_to_uint8(video[0]), levels[:1])
    np.testing.assert_array_equal(images_to_uint8(video[:, :, 0]), levels[:, 0])


def test_a_numpy_array_is_as_good():
    video = np.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
    np.testing.assert_array_equal(clips_to_uint8(video), clips_to_uint8(torch.from_numpy(video)))
    reverse = video[::-1]
    reverse.flags.writeable = False
    np.testing.assert_array_equal(clips_to_uint8(reverse), clips_to_uint8(reverse.copy()))


def test_the_ends_of_the_range():
    ends = torch.tensor([-1.0, 0.0, 1.0, 1.0009]).view(1, 1, 1, 4)
    assert clips_to_uint8(ends)[0, 0, 0, :, 0].tolist() == [0, 128, 255, 255]


def test_every_level_comes_back():
    levels = torch.arange(256.0)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))


BAD_CLIPS = {
    "an image": (
        (3, 8, 8),
        r"video: expected one clip .* got shape \(3, 8, 8\); .*use show_images\(image\[None\]\)",
    ),
    "six axes": (
        (1, 1, 3, 2, 8, 8),
        r"expected one clip .* or clips \(b, c, f, h, w\), got shape \(1, 1, 3, 2, 8, 8\)$",
    ),
    "frames first": (
        (2, 16, 3, 8, 8),
        r"looks like \(b, f, c, h, w\), use video.permute\(0, 2, 1, 3, 4\)",
    ),
    "frames first, one clip": (
        (16, 3, 8, 8),
        r"looks like \(f, c, h, w\), use video.permute\(1, 0, 2, 3\)",
    ),
    "channels last": (
        (2, 16, 8, 8, 3),
        r"looks like \(b, f, h, w, c\), use video.permute\(0, 4, 1, 2, 3\)",
    ),
    "latents": (
        (2, 4, 16, 8, 8),
        r"video: expected \(b, c, f, h, w\) with 1 or 3 channels, got shape \(2, 4, 16, 8, 8\)$",
    ),
    "empty": ((0, 3, 2, 8, 8), r"video: expected no empty axis, got shape \(0, 3, 2, 8, 8\)"),
    "no frame": ((3, 0, 8, 8), r"no empty axis, got shape \(1, 3, 0, 8, 8\)"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_shapes_are_refused_with_the_remedy(case):
    shape, message = BAD_CLIPS[case]
    with pytest.raises(ValueError, match=message):
        clips_to_uint8(torch.zeros(shape))


BAD_VALUES = {
    "bytes": (
        torch.tensor(0, dtype=torch.uint8),
        r"clip: expected floating point, got torch.uint8; convert with clip / 127.5 - 1",
    ),
    "integers": (torch.tensor(0), r"clip: expected floating point, got torch.int64$"),
    "0 to 255": (
        torch.tensor(200.0),
        r"got 200 to 200; if it is in \[0, 255\], use clip / 127.5 - 1",
    ),
    "overshoot": (torch.tensor(-1.2), r"got -1.2 to -1.2; .* use clip.clamp\(-1, 1\)"),
    "just beyond": (torch.tensor(1.002), r"clip: expected values in \[-1, 1\]"),
    "nan": (torch.tensor(torch.nan), r"expected finite values, got 192 of 192 NaN or infinite"),
    "infinite": (torch.tensor(torch.inf), r"expected finite values"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_with_the_remedy(case):
    value, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=message):
        clips_to_uint8(value.expand(3, 1, 8, 8), "clip")


def test_to_numpy_takes_any_float_tensor_and_refuses_a_list():
    values = to_numpy(torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True), "flow")
    assert values.dtype == np.float32 and values.shape == (2, 3)
    message = "flow: expected a torch tensor or a NumPy array, got list"
    with pytest.raises(ValueError, match=message):
        to_numpy([0.0], "flow")
    with pytest.raises(ValueError, match="flow: expected finite values, got 1 of 2"):
        to_numpy(np.array([math.nan, 0.0]), "flow")


def test_the_permute_in_the_message_works():
    for order in ("b f c h w", "b f h w c"):
        sizes = dict(zip("bcfhw", (2, 3, 16, 8, 9), strict=True))
        video = torch.zeros([sizes[axis] for axis in order.split()])
        with pytest.raises(ValueError) as caught:
            clips_to_uint8(video)
        permutation = re.search(r"permute\((.*?)\)", str(caught.value))[1]
        permuted = video.permute([int(i) for i in permutation.split(",")])
        assert permuted.shape == (2, 3, 16, 8, 9)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8), r"images: expected \(b, c, h, w\), got .* batch axis: images\[None\]"),
        ((2, 3, 4, 8, 8), r"images: expected \(b, c, h, w\), got shape \(2, 3, 4, 8, 8\)$"),
        ((2, 8, 9, 3), r"looks like \(b, h, w, c\), use images.permute\(0, 3, 1, 2\)"),
    ],
)
def test_bad_images_for_display_are_refused_with_the_remedy(shape, message):
    with pytest.raises(ValueError, match=message):
        images_to_uint8(torch.zeros(shape))


# Numbers, choices, dtypes


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2)])
def test_numbers_inside_the_interval_pass(value):
    validation.check_number("scale", value)
    validation.check_number("scale", value, at_least=2, at_most=2)
    validation.check_number("scale", value, above=1.9, below=2.1)


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (math.nan, {}, "a finite number, got nan"),
        (math.inf, {}, "a finite number, got inf"),
        (math.nan, {"at_least": 0}, "a finite number at least 0, got nan"),
        (np.float32("nan"), {"below": 1}, "a finite number below 1, got"),
        (True, {}, "a finite number, got True"),
        ("2", {}, "a finite number, got '2'"),
        (None, {}, "a finite number, got None"),
        (torch.tensor(1.0), {}, "a finite number, got tensor"),
        (-1e-9, {"at_least": 0}, "a finite number at least 0, got -1e-09"),
        (0, {"above": 0}, "a finite number above 0, got 0"),
        (1.5, {"at_least": 0, "at_most": 1}, "a finite number at least 0 and at most 1, got 1.5"),
        (1, {"below": 1}, "a finite number below 1, got 1"),
    ],
)
def test_other_numbers_are_refused(value, limits, message):
    with pytest.raises(ValueError, match=re.escape(f"scale: expected {message}")):
        validation.check_number("scale", value, **limits)


def test_an_unknown_choice_is_refused_with_the_known_ones():
    validation.check_choice("style", "b", iter("abc"))
    with pytest.raises(ValueError, match=re.escape("style: expected one of a, b, c, got 'd'")):
        validation.check_choice("style", "d", iter("abc"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_point_tensors_pass_whatever_they_hold(dtype):
    tensor = torch.full((1, 2, 3), math.nan, dtype=dtype)
    validation.check_float("x", tensor)
    validation.check_float("x", tensor, "(b, l, d)")


@pytest.mark.parametrize(
    ("tensor", "axes", "message"),
    [
        (torch.zeros(2, dtype=torch.int64), None, "floating point, got torch.int64"),
        (torch.zeros(2, dtype=torch.uint8), None, "convert with x / 127.5 - 1"),
        (torch.zeros(2, dtype=torch.bool), None, "floating point, got torch.bool"),
        (np.zeros(2), None, "a torch tensor, got ndarray"),
        (1.0, None, "a torch tensor, got float"),
        (torch.zeros(3, 4), "(b, l, d)", "a single one needs a batch axis: x[None]"),
        (torch.zeros(1, 1, 3, 4), "(b, l, d)", "(b, l, d), got shape (1, 1, 3, 4)"),
    ],
)
def test_other_tensors_are_refused(tensor, axes, message):
    with pytest.raises(ValueError, match="x: expected .*" + re.escape(message)):
        inspect.unwrap(validation.check_float)("x", tensor, axes)
