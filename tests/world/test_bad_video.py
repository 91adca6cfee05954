"""Videos and strengths that no function of the world can use are refused by name."""

import copy
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from course_lib.world import (
    DEFECTS,
    STYLES,
    World,
    canny_edges,
    inject_defects,
    inject_random_defects,
    load_video,
    render,
)
from course_lib.world.checks import check_clips
from course_lib.world.corruption import (
    CORRUPTIONS,
    blur,
    elastic_distortion,
    freeze,
    h264,
    hard_cut,
    jpeg,
    noise,
    reverse,
    shift_hue,
    shuffle,
    swap_halves,
)
from course_lib.world.defects import is_static
from course_lib.world.film import from_uint8
from course_lib.world.ood import OOD_KINDS, make_ood_clips

NAN, INF = math.nan, math.inf


def generator():
    return torch.Generator().manual_seed(0)


OF_FRAMES = {
    "blur": lambda video: blur(video, 1),
    "noise": lambda video: noise(video, 0.1, generator()),
    "shift_hue": lambda video: shift_hue(video, 0.1),
    "jpeg": lambda video: jpeg(video, 50),
    "h264": lambda video: h264(video, 20),
    "elastic": lambda video: elastic_distortion(video, 1, generator(), consistent=True),
    "still elastic": lambda video: elastic_distortion(video, 0, generator(), consistent=True),
    "canny": canny_edges,
    **STYLES,
}
OF_TIME = {
    "freeze": freeze,
    "reverse": reverse,
    "shuffle": lambda video: shuffle(video, generator()),
    "swap_halves": swap_halves,
    "hard_cut": hard_cut,
}
EVERY = OF_FRAMES | OF_TIME
VALUES_COUNT = ("noise", "shift_hue", "jpeg", "h264", "canny", *STYLES)


@pytest.fixture(scope="module")
def clips():
    return World("test", subset="all", num_frames=4, size=32).batch(range(4))


@pytest.mark.parametrize("name", EVERY)
def test_a_video_is_a_batch_of_floats(clips, name):
    for dtype in (torch.uint8, torch.int64, torch.bool):
        with pytest.raises(ValueError, match="video: expected floating point, got torch"):
            EVERY[name](clips.video.mul(100).add(100).to(dtype))
    for video in (clips.video[0], clips.video[None], clips.video[0, 0]):
        with pytest.raises(ValueError, match=r"video: expected \(b, c, f, h, w\), got shape"):
            EVERY[name](video)


@pytest.mark.parametrize("name", EVERY)
def test_one_clip_gets_the_hint_of_its_batch_axis(clips, name):
    with pytest.raises(ValueError, match=r"a single one needs a batch axis: video\[None\]"):
        EVERY[name](clips.video[0])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_by_name_refuses_integers_and_one_clip(clips, name):
    for video in (clips.video.mul(100).to(torch.uint8), clips.video[0]):
        with pytest.raises(ValueError, match="video: expected"):
            CORRUPTIONS[name](video, generator())


@pytest.mark.parametrize("name", VALUES_COUNT)
def test_values_are_finite_and_in_range(clips, name):
    for value in (NAN, INF, -INF):
        video = clips.video.clone()
        video[1, 2, 1, 3, 4] = value
        with pytest.raises(ValueError, match="video: expected finite values, got 1 of"):
            EVERY[name](video)
    with pytest.raises(ValueError, match=r"video: expected values in \[-1, 1\].* / 127.5 - 1"):
        EVERY[name](clips.video * 127.5 + 127.5)
    with pytest.warns(UserWarning, match=r"video: all values lie in \[0, 1\]"):
        EVERY[name](clips.video / 2 + 0.5)


@pytest.mark.parametrize("name", ["shift_hue", "jpeg", "h264", "canny", *STYLES])
def test_colours_need_three_channels(clips, name):
    for video in (clips.video[:, :1], clips.video[:, :2], clips.video.repeat(1, 2, 1, 1, 1)):
        with pytest.raises(ValueError, match="video: expected 3 channels, got"):
            EVERY[name](video)


@pytest.mark.parametrize("name", ["shift_hue", "jpeg", "h264", "elastic", "canny"])
def test_what_needs_a_frame_refuses_an_empty_batch(clips, name):
    for video in (clips.video[:0], clips.video[:, :, :0]):
        with pytest.raises(ValueError, match="video: expected no empty axis, got shape"):
            EVERY[name](video)


def test_an_empty_batch_of_noise_and_of_styles_is_empty(clips):
    for name in ("noise", *STYLES):
        assert EVERY[name](clips.video[:0]).shape == (0, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="video: expected no empty axis"):
        check_clips("video", clips.video[:0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", sorted(set(EVERY) - {"canny"}))
def test_half_precision_is_the_rounded_result_of_float32(clips, name, dtype):
    video = clips.video.to(dtype)
    out, expected = EVERY[name](video), EVERY[name](video.float())
    assert out.dtype == dtype
    tolerance = max(3 * torch.finfo(dtype).eps if name == "noise" else torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(out.double(), expected.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [256, 512])
def test_elastic_distortion_of_large_frames_stays_inside(size, dtype):
    """In half precision the CPU's kernel reads beyond the border from about 192 pixels on."""
    video = (torch.rand(1, 3, 1, size, size, generator=generator()) * 2 - 1).to(dtype)
    still = elastic_distortion(video, 0, generator(), consistent=True)
    assert torch.equal(still, video) and still.data_ptr() != video.data_ptr()
    moved, expected = (
        elastic_distortion(v, 1e-3, generator(), consistent=False) for v in (video, video.float())
    )
    assert moved.abs().max() <= 1 and torch.equal(moved, expected.to(dtype))
    assert (moved - video).abs().mean() < 0.01


def test_no_distortion_draws_as_any_other():
    """The clips that follow do not depend on the strength."""
    after = []
    for rms_px in (0, 2):
        numbers = generator()
        elastic_distortion(torch.zeros(2, 3, 4, 8, 8), rms_px, numbers, consistent=False)
        after.append(torch.rand(1, generator=numbers))
    assert torch.equal(*after)


V = torch.zeros(2, 3, 4, 16, 16)


@pytest.mark.parametrize("value", [NAN, INF, -INF, "3", None, True])
@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda v: inspect.unwrap(blur)(V, v), "sigma"),
        (lambda v: inspect.unwrap(noise)(V, v, generator()), "std"),
        (lambda v: inspect.unwrap(shift_hue)(V, v), "hue"),
        (lambda v: inspect.unwrap(jpeg)(V, v), "quality"),
        (lambda v: inspect.unwrap(elastic_distortion)(V, v, generator(), consistent=True), "rms_"),
        (lambda v: inspect.unwrap(canny_edges)(V, v), "sigma"),
        (lambda v: inspect.unwrap(render)([], size=v), "size"),
        (lambda v: inspect.unwrap(load_video)("earth", start=v), "start"),
    ],
)
def test_a_number_is_a_finite_number(function, argument, value):
    with pytest.raises(ValueError, match=f"^{argument}.*: expected"):
        function(value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: blur(V, 0), "sigma: expected a finite number above 0, got 0"),
        (lambda: blur(V, -1), "sigma: expected .*, got -1"),
        (lambda: noise(V, -1, generator()), "std: expected a finite number at least 0, got -1"),
        (lambda: noise(V, -0.1, generator()), "std: expected .*, got -0.1"),
        (lambda: shift_hue(V, 0.6), "hue: expected .* at least -0.5 and at most 0.5, got 0.6"),
        (lambda: shift_hue(V, -0.6), "hue: expected .*, got -0.6"),
        (lambda: jpeg(V, 0), "quality: expected an integer from 1 to 100, got 0"),
        (lambda: jpeg(V, 101), "quality: expected .*, got 101"),
        (lambda: inspect.unwrap(jpeg)(V, 50.0), "quality: expected .*, got 50.0"),
        (lambda: elastic_distortion(V, -1, generator(), consistent=True), "rms_px: .*, got -1"),
        (lambda: canny_edges(V, -1.0), "sigma: expected a finite number at least 0, got -1.0"),
        (lambda: h264(V, -1), "crf: expected an integer from 0 to 51, got -1"),
        (lambda: h264(V, 52), "crf: expected .*, got 52"),
        (lambda: h264(V, 10**9), "crf: expected .*, got 1000000000"),
        (lambda: h264(V[..., 1:], 20), "video: expected .* even height and width, got c=3, h=16"),
        (
            lambda: inspect.unwrap(from_uint8)(np.zeros((1, 2, 2, 3))),
            "frames: expected uint8, got float64",
        ),
    ],
)
def test_a_strength_out_of_range_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        function()


def test_both_ends_of_a_strength_are_valid():
    assert torch.equal(noise(V, 0, generator()), V)
    for call, ends in ((jpeg, (1, 100)), (h264, (0, 51)), (shift_hue, (-0.5, 0.5))):
        for end in ends:
            assert call(V, end).shape == V.shape
    assert canny_edges(V, 0.0).shape == (2, 1, 4, 16, 16)


def test_h264_is_the_same_in_every_run():
    """With the codec's assembly, clips like this one differ from call to call."""
    video = World("test", subset="all", num_frames=8).batch([5]).video
    first = h264(video, 40)
    assert all(torch.equal(h264(video, 40), first) for _ in range(4))


# Clips, defects, out-of-distribution clips


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"video": c.video.to(torch.uint8)}, "video: expected floating point"),
        (lambda c: {"video": c.video[0]}, r"video: expected \(b, c, f, h, w\), got shape"),
        (
            lambda c: {"video": c.video[:, :1]},
            r"video: expected shape \(4, 3, 4, 32, 32\), got \(4, 1",
        ),
        (lambda c: {"video": c.video[:1]}, "scenes: expected 1, one per clip, got 4"),
        (lambda c: {"video": c.video[:, :, :1]}, r"path: expected shape \(4, 1, 4\), got \(4, 4"),
        (lambda c: {"scenes": c.scenes[:1]}, "scenes: expected 4, one per clip, got 1"),
        (lambda c: {"path": c.path[:1]}, "path: expected shape"),
        (lambda c: {"alpha": c.alpha[:, :, :1]}, "alpha: expected shape"),
        (lambda c: {"flow_exact": c.flow_exact[:1]}, r"flow_exact: expected shape \(4,\), got"),
    ],
)
def test_the_parts_of_clips_belong_together(clips, change, message):
    other = copy.copy(clips)
    for name, value in change(clips).items():  # the tests' type checker would refuse `replace`
        object.__setattr__(other, name, value)
    with pytest.raises(ValueError, match=message):
        other.__post_init__()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_defects_and_ood_kinds_in_another_dtype(clips, dtype):
    other = replace(clips, video=clips.video.to(dtype))
    reference = replace(clips, video=other.video.float())
    tolerance = {"atol": max(3 * torch.finfo(dtype).eps, 1e-5), "rtol": 0}
    for defect in DEFECTS:
        out, expected = (inject_defects(c, [defect] * 4, generator()) for c in (other, reference))
        assert out.video.dtype == dtype
        torch.testing.assert_close(out.video.float(), expected.video, **tolerance)
    for kind in OOD_KINDS:
        out, expected = (make_ood_clips(c, [kind] * 4, generator())[0] for c in (other, reference))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, **tolerance)


@pytest.mark.parametrize("fraction", [NAN, -0.1, 1.1, "0.5", None])
def test_a_fraction_of_defects_is_in_0_to_1(clips, fraction):
    with pytest.raises(ValueError, match="fraction: expected a finite number at least 0 and at"):
        inspect.unwrap(inject_random_defects)(clips, fraction, generator())


def test_is_static_takes_one_clip_of_floats(clips):
    assert is_static(clips.video[0, :, :1].expand(3, 4, 32, 32))
    for bad in (clips.video, clips.video[0, 0], clips.video[0].to(torch.uint8)):
        with pytest.raises(ValueError, match="clip: expected"):
            is_static(bad)
