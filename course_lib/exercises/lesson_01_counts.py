"""The checks of exercises 1.1, 1.2 and 1.4, which ask for whole numbers.

Solutions and hints are in `lesson_01.py`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from numbers import Real

import torch
from torch import Tensor, nn

from course_lib.lab.checks import as_number, as_tensor, call, describe_value, require
from course_lib.nn.convolution import r2plus1d_midplanes
from course_lib.nn.profiling import receptive_field

CountMistakes = list[tuple[int, str]]
"""The number that each mistake leads to, and what to say about it."""


def _whole_number(result: object, case: str) -> Real:
    """The one number that an exercise asks for, as a sentence where it is something else."""
    number = as_number(result)
    require(
        isinstance(number, Real) and not isinstance(number, bool),
        f"{case}: you returned {describe_value(result)}; expected one whole number",
    )
    return number


def _require_count(number: Real, expected: int, mistakes: CountMistakes, case: str) -> None:
    """As `diagnose_number`, without a word on ratios: counts are no multiples of each other."""
    message = next((text for value, text in mistakes if value == number), "")
    require(number == expected, f"{case}: got {number:.6g}, expected {expected}. {message}".strip())


# 1.1 -------------------------------------------------------------------------------------------


def _shape_mistakes(axes: list[tuple[int, int, int, int]]) -> list[tuple[list[int], str]]:
    """What likely slips return for axes of (size, kernel, stride, padding)."""
    right = [(n + 2 * p - k) // s + 1 for n, k, s, p in axes]
    return [
        ([(n + p - k) // s + 1 for n, k, s, p in axes],
         "You add the padding once: padding is added on both sides."),
        ([m - 1 for m in right], "The + 1 is missing: (n + 2 p - k) // s counts the steps from one "
                                 "place to the next, and the first place comes on top. A window "
                                 "as long as the axis stands in one place, not in none."),
        ([(n - k) // s + 1 for n, k, s, p in axes],
         "The padding does not enter: it lengthens the axis by p on both sides."),
        ([n + 2 * p - k + 1 for n, k, s, p in axes],
         "The stride does not enter: a window that moves s at a time skips the places between."),
        ([-((k - n - 2 * p) // s) + 1 for n, k, s, p in axes],
         "You round up, but half a window is no window; round down (//)."),
        ([(n + 2 * p - k + 1) // s for n, k, s, p in axes],
         "The + 1 comes after the division: the first place always counts, the stride thins out "
         "the others."),
        (right[::-1], "The axes are in reverse order: frames, height, width."),
    ]  # fmt: skip


def verify_output_shape(attempt: Callable) -> Iterator[str]:
    """Checks five convolutions."""
    for shape, kernel_size, stride, padding in (
        ((16, 64, 64), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
        ((16, 64, 64), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((8, 32, 48), (3, 7, 7), (1, 2, 2), (1, 3, 3)),
        ((7, 33, 20), (5, 3, 2), (2, 3, 1), (2, 0, 1)),
        ((1, 9, 9), (1, 3, 3), (1, 2, 2), (0, 0, 0)),
    ):
        conv = nn.Conv3d(1, 1, kernel_size, stride, padding, device="meta")
        expected = list(conv(torch.empty(1, 1, *shape, device="meta")).shape[2:])
        case = f"shape={shape}, kernel_size={kernel_size}, stride={stride}, padding={padding}"
        result = call(attempt, shape, kernel_size, stride, padding)
        sizes = as_tensor(result)
        got = f"for {case} you returned {describe_value(result)}"
        is_numeric = isinstance(sizes, Tensor) and sizes.ndim <= 1
        require(is_numeric, f"{got}; expected three numbers (frames, height, width)")
        require(sizes.ndim == 1, f"{got}: one number. Do it for all three axes and return a tuple")
        require(
            len(sizes) != 5,
            f"{got}: five numbers. Batch and channels are not asked for: (frames, height, width)",
        )
        require(len(sizes) == 3, f"{got}; expected three numbers (frames, height, width)")
        require(not (sizes % 1).any(), f"{got}: half a window is no window; round down (//)")
        axes = list(zip(shape, kernel_size, stride, padding, strict=True))
        message = next((text for x, text in _shape_mistakes(axes) if x == sizes.tolist()), "")
        require(sizes.tolist() == expected, f"{got}, expected {tuple(expected)}. {message}".strip())
    yield "agrees with torch.nn.Conv3d, with odd sizes, strides and one frame too"


# 1.2 -------------------------------------------------------------------------------------------


def _field_mistakes(kernel_sizes: list[int], strides: list[int]) -> CountMistakes:
    """What likely slips return."""
    steps = list(itertools.accumulate(strides, lambda step, stride: step * stride))
    before = [1, *steps[:-1]]
    last = [1, *strides[:-1]]

    def field(steps, start=1, overlap=1):
        return start + sum(
            (k - overlap) * step for k, step in zip(kernel_sizes, steps, strict=True)
        )

    ones = [1] * len(strides)
    overlapping = (
        "Neighbouring windows overlap: a layer of 3 frames adds 2 new ones, k - 1, to what the "
        "layer above sees"
    )
    return [
        (field(ones), "The strides do not enter: a stride makes every later layer's step longer."),
        (field(steps), "A layer's stride lengthens the steps after it, not its own."),
        (field(last), "You take the stride of the layer before only. Strides multiply: after two "
                      "layers with stride 2, one step is four input frames."),
        (sum(kernel_sizes), f"That is the sum of the kernels. {overlapping}."),
        (field(before, start=0, overlap=0), f"{overlapping}."),
        (field(before, overlap=0), f"{overlapping}."),
        (field(before, start=0), "Start from 1: without any layer an output sees one frame, its "
                                 "own."),
        (math.prod(kernel_sizes), f"That is the product of the kernels. {overlapping}."),
    ]  # fmt: skip


def verify_temporal_receptive_field(attempt: Callable) -> Iterator[str]:
    """Checks five stacks of layers."""
    for kernel_sizes, strides in (
        ([3], [1]),
        ([3, 3, 3], [1, 1, 1]),
        ([3, 3], [2, 1]),
        ([3, 3, 3, 5], [1, 2, 2, 1]),
        ([1, 3], [4, 1]),
    ):
        case = f"the number of frames for kernel_sizes={kernel_sizes}, strides={strides}"
        number = _whole_number(call(attempt, kernel_sizes, strides), case)
        expected = receptive_field(kernel_sizes, strides)
        _require_count(number, expected, _field_mistakes(kernel_sizes, strides), case)
    yield "right for five stacks, with and without strides"


# 1.4 -------------------------------------------------------------------------------------------


def verify_midplanes(attempt: Callable) -> Iterator[str]:
    """Checks six pairs of kernels."""
    for in_channels, out_channels, t, d in (
        (64, 64, 3, 3),
        (64, 128, 3, 3),
        (8, 16, 3, 3),
        (3, 16, 3, 7),
        (16, 8, 5, 3),
        (2, 1, 3, 1),
    ):
        case = (
            f"M for in_channels={in_channels}, out_channels={out_channels}, kernel_t={t}, "
            f"kernel_s={d}"
        )
        result = _whole_number(call(attempt, in_channels, out_channels, t, d), case)
        require(
            not result % 1,
            f"{case}: you returned {result!r}: channels come whole; round down",
        )
        expected = r2plus1d_midplanes(in_channels, out_channels, t, d)
        swapped = t * d**2 * in_channels * out_channels // (d**2 * out_channels + t * in_channels)
        mistakes = [
            (swapped, "The spatial kernel maps Cin to M and the temporal one M to Cout, so d² "
                      "belongs to Cin and t to Cout."),
            (t * d * in_channels * out_channels // (d * in_channels + t * out_channels),
             "The kernel is d x d pixels: d² weights, not d."),
            (expected + 1, "That has more weights than the full kernel; round down."),
        ]  # fmt: skip
        _require_count(result, expected, mistakes, case)
    yield (
        "gives 144 channels for (64, 64), as in the paper's formula, and never more weights than "
        "the 3D kernel"
    )
