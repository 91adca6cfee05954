"""Exercises of lesson 01, convolutions for video: checks, hints and reference solutions.

The checks of 1.1, 1.2 and 1.4 are in `lesson_01_counts.py`.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.exercises.lesson_01_counts import (
    verify_midplanes,
    verify_output_shape,
    verify_temporal_receptive_field,
)
from course_lib.lab.checks import (
    Exercise,
    as_tensor,
    call,
    call_on_copies,
    describe_value,
    diagnose,
    is_close,
    require,
)
from course_lib.nn.convolution import inflate_kernel

# 1.1 ----------------------------------------------------------------------------------------------


def output_shape(shape, kernel_size, stride, padding):
    """Frames, height and width that come out; the + 1 because the first place costs no step."""
    axes = zip(shape, kernel_size, stride, padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)


# 1.2 ----------------------------------------------------------------------------------------------


def temporal_receptive_field(kernel_sizes, strides):
    """A layer adds kernel - 1 steps because windows overlap; a step is all strides before it."""
    field, step = 1, 1
    for kernel_size, stride in zip(kernel_sizes, strides, strict=True):
        field += (kernel_size - 1) * step
        step *= stride
    return field


# 1.3 ----------------------------------------------------------------------------------------------


def motion_kernel(vx, vy, num_frames=5, size=9, sigma=1.0):
    """A slope that moves by (vx, vy), because an edge with that velocity then stays on it."""
    line = torch.arange(size) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    taps = []
    for t in range(num_frames):
        elapsed = t - num_frames // 2
        dx, dy = x - vx * elapsed, y - vy * elapsed
        taps.append((vx * dx + vy * dy) * torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)))
    return torch.stack(taps)[None, None]


_DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
_OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}
_TRANSPOSED = {"right": "down", "left": "up", "up": "left", "down": "right"}


def _moving_blob(vx: int, vy: int) -> Tensor:
    line = torch.arange(24.0) - 11.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    frames = [torch.exp(-((x - vx * (t - 4)) ** 2 + (y - vy * (t - 4)) ** 2) / 6) for t in range(9)]
    return torch.stack(frames)[None, None]


def _response(kernel: Tensor, velocity: tuple[int, int]) -> float:
    return float(F.conv3d(_moving_blob(*velocity), kernel).square().mean())


def _student_kernel(attempt, velocity: tuple[int, int]) -> Tensor:
    kernel = as_tensor(call(attempt, *velocity))
    is_kernel = isinstance(kernel, Tensor) and kernel.ndim == 5 and kernel.shape[:2] == (1, 1)
    shape = "must be a tensor (1, 1, num_frames, size, size)"
    require(is_kernel, f"motion_kernel{velocity} {shape}, got {describe_value(kernel)}")
    return kernel.float()


def _require_anchor(kernel: Tensor) -> None:
    """The blob of the kernel for (1, 0) must be in the middle in the middle frame."""
    middle = kernel[0, 0, kernel.shape[2] // 2].square()
    weights = middle / middle.sum().clamp(min=1e-12)
    position = float((weights.sum(0) * torch.arange(weights.shape[1])).sum())
    off = position - (weights.shape[1] - 1) / 2
    require(
        abs(off) < 0.9,
        f"the kernel for (1, 0) moves the right way, but in its middle frame its blob is at "
        f"x = {off:+.1f} instead of 0: count time from the middle frame, elapsed = t - num_frames "
        "// 2",
    )


def _verify_motion_kernel(attempt):
    kernels = {name: _student_kernel(attempt, v) for name, v in _DIRECTIONS.items()}
    for kernel in kernels.values():
        require(
            (kernel - kernel[:, :, :1]).abs().max() >= 1e-6,
            "your kernel is the same in every frame: it answers to edges, moving or not. Shift it "
            "in time",
        )
    energy = {
        name: {clip: _response(kernel, v) for clip, v in _DIRECTIONS.items()}
        for name, kernel in kernels.items()
    }
    for name, responses in energy.items():
        best = max(responses, key=responses.get)
        text = (
            f"motion_kernel{_DIRECTIONS[name]} should answer most to a blob moving {name}, but "
            f"prefers {best}"
        )
        require(
            best != _OPPOSITE[name],
            f"{text}: a sign is the wrong way round (where is the blob in frame t?)",
        )
        require(
            best != _TRANSPOSED[name],
            f"{text}: x and y are swapped (the last axis of a kernel is x)",
        )
        require(best == name, text)
    _require_anchor(kernels["right"])
    for name, other in itertools.permutations(kernels, 2):
        ratio = energy[name][name] / energy[name][other]
        require(
            ratio >= 1.5,
            f"the kernel for {name} answers only {ratio:.1f} times as much to {name} as to "
            f"{other}; a slope that moves along with the blob reaches 2",
        )
    yield (
        "each of the four kernels answers to its own direction at least 1.5 times as much as to "
        "any other"
    )
    for faster in ((2, 0), (1, 1)):
        blob_kernels = [_student_kernel(attempt, velocity) for velocity in (faster, (1, 0))]
        fast, plain = (_response(kernel / kernel.norm(), faster) for kernel in blob_kernels)
        require(
            fast >= 1.1 * plain,
            f"a blob that moves by {faster} pixels per frame should please motion_kernel{faster} "
            "more than motion_kernel(1, 0): let the kernel travel as far as the velocity says, "
            "in x and in y",
        )
    yield "speed counts, and so do diagonals"


# 1.4 ----------------------------------------------------------------------------------------------


def midplanes(in_channels, out_channels, kernel_t, kernel_s):
    """t d² Cin Cout = M (d² Cin + t Cout), rounded down because channels come whole."""
    full = kernel_t * kernel_s**2 * in_channels * out_channels
    return full // (kernel_s**2 * in_channels + kernel_t * out_channels)


# 1.5 ----------------------------------------------------------------------------------------------


def inflate_causal(weight, kernel_t):
    """All weight in the last tap, because padded before frame 0 only it sees the present."""
    taps = torch.zeros(*weight.shape[:2], kernel_t, *weight.shape[2:], dtype=weight.dtype)
    taps[:, :, -1] = weight
    return taps


def _verify_inflate_causal(attempt):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for t in (1, 3, 4):
        expected = inflate_kernel(weight, t, "causal")
        third = "The time axis is the third of five: (o, i, kernel_t, h, w)."
        where = "Padded before frame 0 only, that sees"
        mistakes = [
            (expected.flip(2), f"The weight is in the first tap. {where} only the past."),
            (expected.roll(t // 2 + 1, 2), f"The weight is in the middle tap. {where} the future."),
            (inflate_kernel(weight, t, "mean"),
             "The weight is shared by all taps: right on a still clip, a ghost on a moving one."),
            (weight[:, :, None].expand(-1, -1, t, -1, -1),
             "Every tap has the whole weight: frames are added up. Only one tap gets it."),
            (weight, f"The time axis is missing. {third}"),
            (expected.movedim(2, 0), f"Time comes first in yours. {third}"),
            (expected.movedim(2, 1), f"Time comes second in yours. {third}"),
            (expected.movedim(2, -1), f"Time comes last in yours. {third}"),
        ]  # fmt: skip
        diagnose(
            call_on_copies(attempt, weight=weight, kernel_t=t),
            expected,
            mistakes,
            f"the kernel for a weight of shape (4, 3, 3, 3), kernel_t={t}",
        )
    yield "with 1, 3 and 4 taps, so that on every frame it equals the image convolution"


# 1.6 ----------------------------------------------------------------------------------------------


def causal_pseudo3d(video, spatial, temporal):
    """2D, then causal 1D: padded by t - 1, because so much a window of t lacks at frame 0."""
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    video = F.pad(video, (0, 0, 0, 0, t - 1, 0))  # t - 1 frames of zeros before frame 0, none after
    return F.conv3d(video, temporal[:, :, :, None, None])


def _require_padding(result: Tensor, zeros: Tensor, t: int, copies: Tensor, case: str) -> None:
    """Zeros and copies of the first frame before the clip are both right."""
    if is_close(result, zeros.double()) or is_close(result, copies.double()):
        return
    is_late_right = is_close(result[:, :, t - 1 :], zeros[:, :, t - 1 :].double())
    require(
        not is_late_right,
        f"{case}: frames {t - 1} to 6 are right, but the first {t - 1}, which reach back before "
        "frame 0, are not. Zeros stand there, or copies of frame 0",
    )
    mistakes = [(zeros.flip(2), "Time runs backwards in your output.")]
    diagnose(result, zeros, mistakes, f"the output for {case}")


def _verify_causal_pseudo3d(attempt):
    generator = torch.Generator().manual_seed(0)
    for d, t in ((3, 3), (3, 5), (5, 3), (1, 4)):
        video = torch.randn(2, 3, 7, 10, 10, generator=generator)
        spatial = torch.randn(4, 3, d, d, generator=generator)
        temporal = torch.randn(5, 4, t, generator=generator)
        case = f"video (2, 3, 7, 10, 10), spatial kernel {d}x{d}, temporal kernel {t}"
        later = video + (torch.arange(7) >= 4)[:, None, None]
        result, other = (
            as_tensor(call_on_copies(attempt, video=x, spatial=spatial, temporal=temporal))
            for x in (video, later)
        )
        require(
            isinstance(result, Tensor) and result.ndim == 5,
            f"{case}: expected a video (b, o, f, h, w), got {describe_value(result)}",
        )
        require(
            result.shape[2] == 7,
            f"{case}: {result.shape[2]} frames come out of 7. How many frames does a kernel of "
            f"{t} need?",
        )
        zeros = causal_pseudo3d(video, spatial, temporal)
        require(
            result.shape == zeros.shape,
            f"{case}: a video of shape {tuple(result.shape)} comes out, expected "
            f"{tuple(zeros.shape)}: rows and columns are padded by d // 2, frames by nothing else",
        )
        early = (other - result).abs().amax((0, 1, 3, 4))[:4] > 1e-6
        require(
            not early.any(),
            f"{case}: changing frames 4 to 6 changes frame {int(early.int().argmax())} of the "
            "output: it sees the future",
        )
        past = torch.cat([video[:, :, :1].expand(-1, -1, t - 1, -1, -1), video], dim=2)
        copies = causal_pseudo3d(past, spatial, temporal)[:, :, t - 1 :]
        _require_padding(result, zeros, t, copies, case)
    yield (
        "keeps all frames when the temporal kernel is as long as, longer or shorter than the "
        "spatial one"
    )
    yield "sees no future frame"


EXERCISES = (
    Exercise(
        "1.1", "What comes out", 5, 1, verify_output_shape,
        ("Do it for one axis first: 10 frames, a window of 3, no padding. Where can the window "
         "start?",
         "Along one axis: (n + 2 p - k) // s + 1. The // rounds down."),
        output_shape,
    ),
    Exercise(
        "1.2", "How far back does it see?", 10, 3, verify_temporal_receptive_field,
        ("Start from one output and walk down: a 3-tap layer needs 3 of the layer below, that is "
         "2 more.",
         "Keep two numbers while you go through the layers: the field so far, and how long one "
         "step is.",
         "field += (kernel_size - 1) * step, and then step *= stride."),
        temporal_receptive_field,
    ),
    Exercise(
        "1.3", "Any direction", 15, 3, _verify_motion_kernel,
        ("In frame t, elapsed = t - num_frames // 2 steps from the middle one, the point sits at "
         "(vx·elapsed, vy·elapsed).",
         "dx = x - vx·elapsed and dy = y - vy·elapsed are the coordinates that move along with it.",
         "The slope along the velocity is (vx·dx + vy·dy) times the Gaussian of dx, dy."),
        motion_kernel,
    ),
    Exercise(
        "1.4", "The number of midplanes", 5, 2, verify_midplanes,
        ("Count the weights of the full kernel, t·d·d·Cin·Cout, and of the pair, d·d·Cin·M + "
         "t·M·Cout.",
         "Set them equal, solve for M, and use // to round down."),
        midplanes,
    ),
    Exercise(
        "1.5", "Inflate, but causally", 10, 3, _verify_inflate_causal,
        ("A causal convolution with t taps sees frames f - t + 1 … f. Which tap falls on frame f?",
         "torch.zeros of shape (o, i, kernel_t, h, w), then put the weight into taps[:, :, -1]."),
        inflate_causal,
    ),
    Exercise(
        "1.6", "Find the bug", 15, 3, _verify_causal_pseudo3d,
        ("It works when both kernels have the same size. Try a 3x3 spatial kernel with 5 temporal "
         "taps.",
         "Look at the line that pads time. Which kernel's size does it use, and which should it "
         "use?"),
        causal_pseudo3d,
    ),
)  # fmt: skip
