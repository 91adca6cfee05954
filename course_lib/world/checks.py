"""Checks and number formats that several parts of the world share."""

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.validation import check_float, check_video, require

CLIPS_AXES = "(b, c, f, h, w)"


def check_clips(name: str, video: Tensor, *, may_be_empty: bool = False) -> None:
    """Check a batch of clips as `validation.check_video`.

    Args:
        name: argument of the caller, for the message.
        video: expected to be (b, c, f, h, w), floating point, finite and in [-1, 1].
        may_be_empty: let a batch without values pass.

    Raises:
        ValueError: if `video` is anything else.
    """
    check_float(name, video, CLIPS_AXES)
    if video.numel() > 0 or not may_be_empty:
        check_video(name, video)


def check_rgb(name: str, video: Tensor, *, may_be_empty: bool = False) -> None:
    """As `check_clips`, with three channels."""
    check_clips(name, video, may_be_empty=may_be_empty)
    require(video.shape[1] == 3, name, "3 channels", video.shape[1])


def at_least_float32(tensor: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The same numbers in float32, for kernels that are inexact or unsound in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
