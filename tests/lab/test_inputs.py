"""What show accepts, and the message for what it does not."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.lab.inputs import checked_clips, checked_images, to_numpy


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 3), c=st.sampled_from([1, 3]), f=st.integers(1, 5),
    h=st.integers(1, 7), w=st.integers(1, 7),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)  # fmt: skip
def test_any_size_and_float_dtype(b, c, f, h, w, dtype):
    video = (torch.rand(b, c, f, h, w, generator=torch.Generator().manual_seed(f)) * 2 - 1).to(
        dtype
    )
    colours = checked_clips(video.requires_grad_())
    expected = ((video.detach().float() + 1) * 127.5).round().to(torch.uint8).expand(b, 3, f, h, w)
    np.testing.assert_array_equal(colours, expected.permute(0, 2, 3, 4, 1).numpy())
    np.testing.assert_array_equal(checked_clips(video[0]), colours[:1])
    np.testing.assert_array_equal(checked_images(video[:, :, 0]), colours[:, 0])


def test_a_numpy_array_is_as_good():
    video = np.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)
    np.testing.assert_array_equal(checked_clips(video), checked_clips(torch.from_numpy(video)))


def test_the_ends_of_the_range():
    ends = torch.tensor([-1.0, 0.0, 1.0, 1.0009]).view(1, 1, 1, 4)
    assert checked_clips(ends)[0, 0, 0, :, 0].tolist() == [0, 128, 255, 255]


BAD_CLIPS = {
    "an image": (
        (3, 8, 8),
        r"got video of shape \(3, 8, 8\), float32.*use show_images\(image\[None\]\)",
    ),
    "six axes": (
        (1, 1, 3, 2, 8, 8),
        r"expected one clip \(c, f, h, w\) or clips .* got .*\(1, 1, 3, 2, 8, 8\)",
    ),
    "frames first": (
        (2, 16, 3, 8, 8),
        r"looks like \(b, f, c, h, w\); use video.permute\(0, 2, 1, 3, 4\)",
    ),
    "frames first, one clip": (
        (16, 3, 8, 8),
        r"looks like \(f, c, h, w\); use video.permute\(1, 0, 2, 3\)",
    ),
    "channels last": (
        (2, 16, 8, 8, 3),
        r"looks like \(b, f, h, w, c\); use video.permute\(0, 4, 1, 2, 3\)",
    ),
    "latents": (
        (2, 4, 16, 8, 8),
        r"with 1 or 3 channels; got video of shape \(2, 4, 16, 8, 8\), .* 0$",
    ),
    "empty": ((0, 3, 2, 8, 8), r"nothing to show; got video of shape \(0, 3, 2, 8, 8\)"),
    "no frame": ((3, 0, 8, 8), r"nothing to show"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_shapes_are_refused_with_the_remedy(case):
    shape, message = BAD_CLIPS[case]
    with pytest.raises(ValueError, match=message):
        checked_clips(torch.zeros(shape))


BAD_VALUES = {
    "bytes": (
        torch.tensor(0, dtype=torch.uint8),
        r"uint8, from 0 to 0: divide uint8 by 127.5 and subtract 1",
    ),
    "integers": (torch.tensor(0), r"must be float; got .*int64.*\.float\(\)"),
    "0 to 255": (torch.tensor(200.0), r"from 200 to 200: looks like 0 … 255: divide by 127.5"),
    "overshoot": (
        torch.tensor(-1.2),
        r"\(tolerance 0.001\); got .*from -1.2 to -1.2: .*video.clamp\(-1, 1\)",
    ),
    "just beyond": (torch.tensor(1.002), r"expected values in \[-1, 1\]"),
    "nan": (
        torch.tensor(torch.nan),
        r"192 of 192 values that are NaN or infinite; .* no finite value",
    ),
    "infinite": (torch.tensor(torch.inf), r"values that are NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_with_the_remedy(case):
    value, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=message):
        checked_clips(value.expand(3, 1, 8, 8))


def test_a_list_is_refused():
    with pytest.raises(ValueError, match="flow must be a torch tensor or a NumPy array; got list"):
        to_numpy([0.0], "flow")


def test_the_permute_in_the_message_works():
    for order in ("b f c h w", "b f h w c"):
        sizes = dict(zip("bcfhw", (2, 3, 16, 8, 9), strict=True))
        video = torch.zeros([sizes[axis] for axis in order.split()])
        with pytest.raises(ValueError) as caught:
            checked_clips(video)
        moves = re.search(r"permute\((.*?)\)", str(caught.value))[1]
        assert video.permute([int(i) for i in moves.split(",")]).shape == (2, 3, 16, 8, 9)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8), r"expected images \(b, c, h, w\); got .*: for one image, images\[None\]"),
        ((2, 3, 4, 8, 8), r"for clips, show_video"),
        ((2, 8, 9, 3), r"looks like \(b, h, w, c\); use images.permute\(0, 3, 1, 2\)"),
    ],
)
def test_bad_images_are_refused_with_the_remedy(shape, message):
    with pytest.raises(ValueError, match=message):
        checked_images(torch.zeros(shape))
