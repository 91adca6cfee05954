"""The check of exercise 7.6: mask and channels of the frames that are given.

Solution and hints are in `lesson_07.py`.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks import (
    Mistake,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    randn,
    require,
    split_result,
)
from course_lib.pipelines.frame_condition import FrameCondition

CASES = (  # what it is for, (b, c, n), stride, frames in all
    ("interpolation, key frames four apart", (2, 3, 4), 4, 13),
    ("continuation, the first four of sixteen", (3, 2, 4), 1, 16),
    ("key frames three apart", (1, 4, 3), 3, 7),
    ("all frames given", (2, 2, 3), 1, 3),
)


def _check_mask(mask: Tensor, expected: Tensor, stride: int, case: str) -> None:
    b, f = expected.shape
    require(
        mask.shape != (f,),
        f"{case}: your mask is ({f},), one for all clips. Each clip has its own row, (b, f): "
        "mask.expand(b, -1).",
    )
    require(
        mask.shape == (b, f),
        f"{case}: the mask is to be (b, f), that is {(b, f)}; yours is {tuple(mask.shape)}.",
    )
    mask, order = mask.bool(), torch.arange(f).expand(b, -1)
    mistakes = (
        (~expected, "the mask is inverted. It is True where a frame is given: the network is told "
                    "what it has, not what is to be generated."),
        (order % stride == stride - 1,
         f"off by one. The first given frame is frame 0, the next frame {stride}: frame k·stride, "
         "not the last one of each stride."),
        (order % (stride + 1) == 0,
         f"off by one in the stride. From one given frame to the next it is {stride} frames, with "
         f"{stride - 1} between them; yours are {stride + 1} apart."),
    )  # fmt: skip
    for wrong, message in mistakes:
        is_this = torch.equal(mask, wrong) and not torch.equal(mask, expected)
        require(not is_this, f"{case}: {message}")
    got, target = ("".join(".x"[value] for value in rows[0].int()) for rows in (mask, expected))
    require(
        torch.equal(mask, expected),
        f"{case}: given frames (x) are {target}, in your mask {got}.",
    )


def _channel_mistakes(given: Tensor, condition: FrameCondition, stride: int) -> list[Mistake]:
    c, f = given.shape[1], condition.frames.shape[2]
    right, mask = condition.channels(), condition.channels()[:, -1:]
    frames = right[:, :c]
    repeated = given.repeat_interleave(stride, dim=2)[:, :, :f]
    mistakes = [
        (torch.cat([mask, frames], dim=1),
         "The mask is the first channel. It comes last: a weight trained for a latent's channel "
         "would get the mask."),
        (frames, "The mask is missing: without it a black frame that is given and a frame that is "
                 "not look alike. Append it, as channel c."),
        (torch.cat([frames, 1 - mask], dim=1),
         "The mask that you return is right, but the channel has it inverted."),
    ]  # fmt: skip
    if repeated.shape[2] == f:
        mistakes.append(
            (torch.cat([repeated, mask], dim=1),
             "You repeat each given frame until the next one. Frames that are not given are zeros: "
             "what lies between is for the network to say.")
        )  # fmt: skip
    return mistakes


def _check_channels(
    channels: Tensor, given: Tensor, condition: FrameCondition, stride: int, case: str
) -> None:
    expected, c = condition.channels(), given.shape[1]
    is_given = condition.pixel_mask
    if channels.shape == expected.shape and not is_close(channels, expected):
        frames = channels[:, :c]
        others = torch.where(is_given, 0, frames).abs().max()
        kept = is_close(torch.where(is_given, frames, 0), expected[:, :c])
        is_right_but_there = kept and is_close(channels[:, c:], expected[:, c:]) and others > 0
        require(
            not is_right_but_there or _repeats(frames, given),
            f"{case}: frames that are not given hold other values than 0 (noise?). The noise has "
            "its own channels; here stands only what is known.",
        )
    mistakes = _channel_mistakes(given, condition, stride)
    diagnose(channels, expected, mistakes, f"{case}, channels")


def _repeats(frames: Tensor, given: Tensor) -> bool:
    """Whether every frame equals one of the given ones."""
    differences = (frames[:, :, :, None] - given[:, :, None]).abs().amax(dim=(1, 4, 5))
    return bool((differences.amin(dim=2) < 1e-6).all())


def verify_given_frames(attempt: Callable) -> Iterator[str]:
    """Checks mask and channels of key frames and of the beginning of a clip."""
    for i, (case, (b, c, n), stride, num_frames) in enumerate(CASES):
        given = randn(40 + i, b, c, n, 3, 2)
        condition = (
            FrameCondition.prefix(given, num_frames)
            if stride == 1
            else FrameCondition.keyframes(given, stride)
        )
        result = call_on_copies(attempt, given=given, num_frames=num_frames, stride=stride)
        mask, channels = split_result(result, "mask, channels", case)
        require(
            mask.ndim < channels.ndim,
            f"{case}: you returned the channels first. The order is mask, channels.",
        )
        is_bool = isinstance(result[0], Tensor | np.ndarray) and "bool" in str(result[0].dtype)
        require(
            is_bool,
            f"{case}: the mask is to be booleans (b, f); got {describe_value(result[0])}. As "
            "numbers it would select frames 0 and 1 in `frames[mask]`.",
        )
        _check_mask(mask, condition.mask, stride, case)
        _check_channels(channels, given, condition, stride, case)
        yield f"{case}: mask and channels as FrameCondition gives them"
