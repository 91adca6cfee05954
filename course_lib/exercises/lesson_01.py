"""Exercises of lesson 01, convolutions for video: their checks, hints and reference solutions."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.lab.checks.compare import Wrong, same
from course_lib.lab.checks.engine import Exercise, call
from course_lib.nn.convolution import inflate_kernel, middle_width, receptive_field

# 1.1 ------------------------------------------------------------------------------------------------------------------


def output_shape(shape, kernel, stride, padding):
    """Frames, height and width after a convolution: along each axis, count the windows that fit."""
    return tuple(
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
    )


def _verify_output_shape(attempt):
    cases = [
        ((16, 64, 64), (3, 3, 3), (1, 1, 1), (0, 0, 0)),
        ((16, 64, 64), (3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((8, 32, 48), (3, 7, 7), (1, 2, 2), (1, 3, 3)),
        ((7, 33, 20), (5, 3, 2), (2, 3, 1), (2, 0, 1)),
        ((1, 9, 9), (1, 3, 3), (1, 2, 2), (0, 0, 0)),
    ]
    for shape, kernel, stride, padding in cases:
        conv = nn.Conv3d(1, 1, kernel, stride, padding, device="meta")
        expected = tuple(conv(torch.empty(1, 1, *shape, device="meta")).shape[2:])
        told = f"shape={shape}, kernel={kernel}, stride={stride}, padding={padding}"
        got = call(attempt, shape, kernel, stride, padding)
        if not isinstance(got, tuple | list) or len(got) != 3:
            raise Wrong(
                f"for {told} you returned {got!r}; expected three numbers (frames, height, width)"
            )
        if any(n % 1 for n in got):
            raise Wrong(
                f"for {told} you returned {tuple(got)}: half a window is no window; round down"
            )
        plain = tuple(
            (n + p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True)
        )
        if tuple(got) == plain != expected:
            raise Wrong(
                f"for {told} you returned {plain}, torch makes {expected}: padding is added on both sides"
            )
        same(tuple(int(n) for n in got), expected, "the output shape", input=told)
    yield f"agrees with torch.nn.Conv3d in {len(cases)} cases, with odd sizes, strides and one frame"


# 1.2 ------------------------------------------------------------------------------------------------------------------


def frames_seen(kernels, strides):
    """Each layer adds (kernel - 1) steps; a step is as long as the product of the strides before it."""
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


def _verify_frames_seen(attempt):
    cases = [
        ([3], [1]),
        ([3, 3, 3], [1, 1, 1]),
        ([3, 3], [2, 1]),
        ([3, 3, 3, 5], [1, 2, 2, 1]),
        ([1, 3], [4, 1]),
    ]
    for kernels, strides in cases:
        told = f"kernels={kernels}, strides={strides}"
        got = call(attempt, kernels, strides)
        expected = receptive_field(kernels, strides)
        if got == receptive_field(kernels) != expected:
            raise Wrong(
                f"for {told} you returned {got}: a stride makes every later layer's step longer"
            )
        late = 1
        step = 1
        for kernel, stride in zip(kernels, strides, strict=True):
            step *= stride
            late += (kernel - 1) * step
        if got == late != expected:
            raise Wrong(
                f"for {told} you returned {got}: a layer's stride lengthens the steps after it, not its own"
            )
        same(got, expected, "the number of frames", input=told)
    yield f"right for {len(cases)} stacks, with and without strides"


# 1.3 ------------------------------------------------------------------------------------------------------------------


def motion_kernel(vx, vy, frames=5, size=9, sigma=1.0):
    """A blob's slope along its velocity, moved by (vx, vy) pixels each frame: (1, 1, frames, size, size)."""
    line = torch.arange(size) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    taps = []
    for t in range(frames):
        along = t - frames // 2
        dx, dy = x - vx * along, y - vy * along
        taps.append((vx * dx + vy * dy) * torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)))
    return torch.stack(taps)[None, None]


_DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def _moving_blob(vx: int, vy: int) -> Tensor:
    line = torch.arange(24.0) - 11.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    frames = [torch.exp(-((x - vx * (t - 4)) ** 2 + (y - vy * (t - 4)) ** 2) / 6) for t in range(9)]
    return torch.stack(frames)[None, None]


def _verify_motion_kernel(attempt):
    kernels = {name: call(attempt, *velocity) for name, velocity in _DIRECTIONS.items()}
    for name, kernel in kernels.items():
        if not isinstance(kernel, Tensor) or kernel.ndim != 5 or kernel.shape[:2] != (1, 1):
            raise Wrong(
                f"motion_kernel{_DIRECTIONS[name]} must be a tensor (1, 1, frames, size, size)"
            )
        if (kernel - kernel[:, :, :1]).abs().max() < 1e-6:
            raise Wrong(
                "your kernel is the same in every frame: it answers to edges, moving or not. Shift it in time"
            )
    energy = {
        (kernel, clip): float(
            F.conv3d(_moving_blob(*velocity), kernels[kernel].float()).square().mean()
        )
        for kernel in kernels
        for clip, velocity in _DIRECTIONS.items()
    }
    opposite = {"right": "left", "left": "right", "up": "down", "down": "up"}
    turned = {"right": "down", "left": "up", "up": "left", "down": "right"}
    for name in kernels:
        best = max(_DIRECTIONS, key=lambda clip: energy[name, clip])  # noqa: B023
        told = f"motion_kernel{_DIRECTIONS[name]} should answer most to a blob moving {name}"
        if best == opposite[name]:
            raise Wrong(
                f"{told}, but prefers {best}: a sign is the wrong way round (where is the blob in frame t?)"
            )
        if best == turned[name]:
            raise Wrong(
                f"{told}, but prefers {best}: x and y are swapped (the last axis of a kernel is x)"
            )
        if best != name:
            raise Wrong(f"{told}, but prefers {best}")
    for name, other in itertools.permutations(kernels, 2):
        if energy[name, name] < 1.5 * energy[name, other]:
            ratio = energy[name, name] / energy[name, other]
            raise Wrong(
                f"the kernel for {name} answers only {ratio:.1f} times as much to {name} as to {other}; "
                "a slope that moves along with the blob reaches 2"
            )
    yield "each of the four kernels answers half as much again to its own direction as to any other, or more"
    for faster, plain in (((2, 0), (1, 0)), ((1, 1), (1, 0))):
        answers = []
        for velocity in (faster, plain):
            kernel = call(attempt, *velocity).float()
            answers.append(
                float(F.conv3d(_moving_blob(*faster), kernel / kernel.norm()).square().mean())
            )
        if answers[0] < 1.1 * answers[1]:
            raise Wrong(
                f"a blob that moves by {faster} pixels a frame should please motion_kernel{faster} more than "
                f"motion_kernel{plain}: let the kernel travel as far as the velocity says, in x and in y"
            )
    yield "speed counts, and so do diagonals"


# 1.4 ------------------------------------------------------------------------------------------------------------------


def middle(in_channels, out_channels, t, d):
    """Equate t d^2 Cin Cout with d^2 Cin M + t M Cout, solve for M, round down."""
    return (t * d**2 * in_channels * out_channels) // (d**2 * in_channels + t * out_channels)


def _verify_middle(attempt):
    cases = [
        (64, 64, 3, 3),
        (64, 128, 3, 3),
        (8, 16, 3, 3),
        (3, 16, 3, 7),
        (16, 8, 5, 3),
        (2, 1, 3, 1),
    ]
    for in_channels, out_channels, t, d in cases:
        told = f"in_channels={in_channels}, out_channels={out_channels}, t={t}, d={d}"
        got = call(attempt, in_channels, out_channels, t, d)
        expected = middle_width(in_channels, out_channels, t, d)
        if got is not None and got % 1:
            raise Wrong(f"for {told} you returned {got:.4g}: channels come whole; round down")
        full, pair = t * d**2 * in_channels * out_channels, d**2 * in_channels + t * out_channels
        swapped = full // (d**2 * out_channels + t * in_channels)
        if got == swapped != expected:
            raise Wrong(
                f"for {told} you returned {got}: the spatial kernel maps Cin to M and the temporal one M to Cout, "
                "so d² belongs to Cin and t to Cout"
            )
        if got == expected + 1:
            raise Wrong(
                f"for {told} you returned {got}: that has more weights than the full kernel; round down"
            )
        same(got, expected, "M", input=told)
        assert got * pair <= full  # what rounding down means
    yield "gives 144 channels for (64, 64), as in the paper's formula, and never more weights than the 3D kernel"


# 1.5 ------------------------------------------------------------------------------------------------------------------


def inflate_causal(weight, frames):
    """All weight in the last tap: the present. The past, at the earlier taps, starts with zero."""
    taps = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:], dtype=weight.dtype)
    taps[:, :, -1] = weight
    return taps


def _verify_inflate_causal(attempt):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for frames in (1, 3, 4):
        told = f"a weight of shape (4, 3, 3, 3), frames={frames}"
        got = call(attempt, weight.clone(), frames)
        expected = inflate_kernel(weight, frames, "causal")
        if isinstance(got, Tensor) and got.shape == expected.shape and frames > 1:
            for name, other in (("first", expected.flip(2)), ("middle", _centre(weight, frames))):
                if torch.allclose(got, other):
                    seen = "sees only the past" if name == "first" else "sees the future"
                    raise Wrong(
                        f"{told}: the weight is in the {name} tap. Padded before frame 0 only, that {seen}"
                    )
            if torch.allclose(got, inflate_kernel(weight, frames, "mean")):
                raise Wrong(
                    f"{told}: the weight is shared by all taps: right on a still clip, a ghost on a moving one"
                )
        same(got, expected, "the kernel", input=told)
        video = torch.randn(1, 3, 5, 8, 8, generator=torch.Generator().manual_seed(1))
        padded = torch.cat([video[:, :, :1]] * (frames - 1) + [video], dim=2)
        out = F.conv3d(padded, got, padding=(0, 1, 1))
        per_frame = torch.stack(
            [F.conv2d(video[:, :, f], weight, padding=1) for f in range(5)], dim=2
        )
        same(out, per_frame, "the inflated convolution of a clip", input=told)
    yield "on every frame of a moving clip the causal convolution equals the image convolution"
    yield "works for 1, 3 and 4 taps"


def _centre(weight: Tensor, frames: int) -> Tensor:
    taps = torch.zeros(*weight.shape[:2], frames, *weight.shape[2:])
    taps[:, :, frames // 2] = weight
    return taps


# 1.6 ------------------------------------------------------------------------------------------------------------------


def causal_pseudo3d(video, spatial, temporal):
    """Per-frame 2D convolution, then a 1D one over time that sees no future: it pads by its own size, t - 1."""
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    video = F.pad(
        video, (0, 0, 0, 0, t - 1, 0)
    )  # t - 1 frames of zeros before frame 0, none after the last
    return F.conv3d(video, temporal[:, :, :, None, None])


def _verify_causal_pseudo3d(attempt):
    generator = torch.Generator().manual_seed(0)
    for d, t in ((3, 3), (3, 5), (5, 3), (1, 4)):
        video = torch.randn(2, 3, 7, 10, 10, generator=generator)
        spatial, temporal = (
            torch.randn(4, 3, d, d, generator=generator),
            torch.randn(5, 4, t, generator=generator),
        )
        told = f"video (2, 3, 7, 10, 10), spatial kernel {d}x{d}, temporal kernel {t}"
        got = call(attempt, video, spatial, temporal)
        if isinstance(got, Tensor) and got.ndim == 5 and got.shape[2] != 7:
            raise Wrong(
                f"{told}: {got.shape[2]} frames come out of 7. How many frames does a kernel of {t} need?"
            )
        later = video.clone()
        later[:, :, 4:] += 1
        changed = (call(attempt, later, spatial, temporal) - got).abs().amax((0, 1, 3, 4))
        if (changed[:4] > 1e-6).any():
            frame = int((changed > 1e-6).nonzero()[0])
            raise Wrong(
                f"{told}: changing frames 4 to 6 changes frame {frame} of the answer: it sees the future"
            )
        same(got, causal_pseudo3d(video, spatial, temporal), "the answer", atol=1e-4, input=told)
    yield "keeps all frames when the temporal kernel is as long as, longer or shorter than the spatial one"
    yield "sees no future frame"


EXERCISES = (
    Exercise(
        "1.1", "What comes out", 5, 1, _verify_output_shape,
        ("Do it for one axis first: 10 frames, a window of 3, no padding. Where can the window start?",
         "Along one axis: (n + 2 p - k) // s + 1. The // rounds down."),
        output_shape,
    ),
    Exercise(
        "1.2", "How far back does it see?", 10, 3, _verify_frames_seen,
        ("Start from one output and walk down: a 3-tap layer needs 3 of the layer below, that is 2 more.",
         "Keep two numbers while you go through the layers: the field so far, and how long one step is.",
         "field += (kernel - 1) * step, and then step *= stride."),
        frames_seen,
    ),
    Exercise(
        "1.3", "Any direction", 15, 3, _verify_motion_kernel,
        ("In frame t, along = t - frames // 2 steps from the middle one, the point sits at (vx·along, vy·along).",
         "dx = x - vx·along and dy = y - vy·along are the coordinates that move along with it.",
         "The slope along the velocity is (vx·dx + vy·dy) times the Gaussian of dx, dy."),
        motion_kernel,
    ),
    Exercise(
        "1.4", "The middle width", 5, 2, _verify_middle,
        ("Count the weights of the full kernel, t·d·d·Cin·Cout, and of the pair, d·d·Cin·M + t·M·Cout.",
         "Set them equal, solve for M, and use // to round down."),
        middle,
    ),
    Exercise(
        "1.5", "Inflate, but causally", 10, 3, _verify_inflate_causal,
        ("A causal convolution with t taps sees frames f - t + 1 … f. Which tap falls on frame f?",
         "torch.zeros of shape (o, i, frames, h, w), then put the weight into taps[:, :, -1]."),
        inflate_causal,
    ),
    Exercise(
        "1.6", "Find the bug", 15, 3, _verify_causal_pseudo3d,
        ("It works when both kernels have the same size. Try a 3x3 spatial kernel with 5 temporal taps.",
         "Look at the line that pads time. Which kernel's size does it use, and which should it use?"),
        causal_pseudo3d,
    ),
)  # fmt: skip
