"""Mistakes in lesson 01's exercises, each with a part of the message that it must get."""

import math

import torch
import torch.nn.functional as F

from course_lib.exercises.lesson_01 import (
    causal_pseudo3d,
    inflate_causal,
    motion_kernel,
    output_shape,
    temporal_receptive_field,
)
from course_lib.nn.convolution import inflate_kernel


def _zip(*lists):
    return zip(*lists, strict=True)


def padded_by_the_wrong_kernel(video, spatial, temporal):
    d = spatial.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, d - 1, 0)), temporal[:, :, :, None, None])


def padded_on_both_sides(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, (t - 1) // 2, t // 2)), temporal[:, :, :, None, None])


def padded_after_the_end(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    return F.conv3d(F.pad(video, (0, 0, 0, 0, 0, t - 1)), temporal[:, :, :, None, None])


def padded_with_frame_zero(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    video = torch.cat([video[:, :, :1]] * (t - 1) + [video], dim=2)
    return F.conv3d(video, temporal[:, :, :, None, None])


def padded_with_ones(video, spatial, temporal):
    d, t = spatial.shape[-1], temporal.shape[-1]
    video = F.conv3d(video, spatial[:, :, None], padding=(0, d // 2, d // 2))
    video = F.pad(video, (0, 0, 0, 0, t - 1, 0), value=1.0)
    return F.conv3d(video, temporal[:, :, :, None, None])


def anchored_at_frame_zero(vx, vy):
    line = torch.arange(9) - 4
    y, x = torch.meshgrid(line, line, indexing="ij")
    taps = []
    for t in range(5):
        dx, dy = x - vx * t, y - vy * t
        taps.append((vx * dx + vy * dy) * torch.exp(-(dx**2 + dy**2) / 2))
    return torch.stack(taps)[None, None]


def last_stride_only(kernels, strides):
    return 1 + sum((k - 1) * s for k, s in _zip(kernels, [1, *strides[:-1]]))


def overlapping_forgotten(kernels, strides):
    field, step = 1, 1
    for kernel, stride in _zip(kernels, strides):
        field += kernel * step
        step *= stride
    return field


def own_stride_counted(kernels, strides):
    field, step = 1, 1
    for kernel, stride in _zip(kernels, strides):
        step *= stride
        field += (kernel - 1) * step
    return field


MUTANTS = [
    (
        "1.1",
        lambda n, k, s, p: tuple((a + d - b) // c + 1 for a, b, c, d in _zip(n, k, s, p)),
        "added on both sides",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a + 2 * d - b) / c + 1 for a, b, c, d in _zip(n, k, s, p)),
        "half a window",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a + 2 * d - b) // c for a, b, c, d in _zip(n, k, s, p)),
        "The + 1 is missing",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a - b) // c + 1 for a, b, c, d in _zip(n, k, s, p)),
        "The padding does not enter",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple(a + 2 * d - b + 1 for a, b, c, d in _zip(n, k, s, p)),
        "The stride does not enter",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple(-((b - a - 2 * d) // c) + 1 for a, b, c, d in _zip(n, k, s, p)),
        "You round up",
    ),
    (
        "1.1",
        lambda n, k, s, p: tuple((a + 2 * d - b + 1) // c for a, b, c, d in _zip(n, k, s, p)),
        "after the division",
    ),
    ("1.1", lambda *args: output_shape(*args)[::-1], "in reverse order"),
    ("1.1", lambda *args: (2, 8, *output_shape(*args)), "Batch and channels are not asked for"),
    ("1.1", lambda *args: "16 x 64 x 64", "expected three numbers"),
    ("1.1", lambda *args: None, "Is a `return` missing?"),
    ("1.1", lambda *args: (7, 7, 7), "expected (14, 62, 62)"),
    ("1.1", lambda n, k, s, p: (n[0] + 2 * p[0] - k[0]) // s[0] + 1, "all three axes"),
    ("1.4", lambda i, o, t, d: (t * d * d * i * o) // (d * d * o + t * i), "d² belongs to Cin"),
    ("1.4", lambda i, o, t, d: -(-(t * d * d * i * o) // (d * d * i + t * o)), "round down"),
    ("1.4", lambda i, o, t, d: (t * d * d * i * o) / (d * d * i + t * o), "channels come whole"),
    ("1.4", lambda i, o, t, d: (t * d * i * o) // (d * i + t * o), "d² weights, not d"),
    ("1.4", lambda i, o, t, d: torch.ones(2), "expected one whole number"),
    ("1.4", lambda i, o, t, d: "144", "expected one whole number"),
    (
        "1.2",
        lambda kernels, strides: 1 + sum(k - 1 for k in kernels),
        "every later layer's step longer",
    ),
    ("1.2", own_stride_counted, "not its own"),
    ("1.2", lambda kernels, strides: sum(kernels), "That is the sum of the kernels"),
    ("1.2", lambda kernels, strides: math.prod(kernels), "That is the product of the kernels"),
    ("1.2", lambda k, s: temporal_receptive_field(k, s) - 1, "Start from 1"),
    ("1.2", last_stride_only, "Strides multiply"),
    ("1.2", overlapping_forgotten, "Neighbouring windows overlap"),
    ("1.2", lambda k, s: k, "expected one whole number"),
    ("1.2", lambda k, s: {}, "expected one whole number"),
    ("1.3", anchored_at_frame_zero, "count time from the middle frame"),
    ("1.3", lambda vx, vy: motion_kernel(-vx, -vy), "a sign is the wrong way round"),
    ("1.3", lambda vx, vy: motion_kernel(vy, vx), "x and y are swapped"),
    (
        "1.3",
        lambda vx, vy: motion_kernel(vx, vy)[:, :, 2:3].expand(-1, -1, 5, -1, -1),
        "same in every frame",
    ),
    ("1.3", lambda vx, vy: motion_kernel(vx, vy)[0, 0], "must be a tensor"),
    ("1.3", lambda vx, vy: motion_kernel(0.4 * vx, 0.4 * vy), "reaches 2"),
    ("1.3", lambda vx, vy: "left", "must be a tensor"),
    (
        "1.3",
        lambda vx, vy: motion_kernel((vx > 0) - (vx < 0), (vy > 0) - (vy < 0)),
        "as far as the velocity says",
    ),
    ("1.3", lambda vx, vy: motion_kernel(vx, vy if vx == 0 else 0), "in x and in y"),
    ("1.4", lambda i, o, t, d: round(t * d * d * i * o / (d * d * i + t * o)), "round down"),
    ("1.5", lambda w, f: inflate_causal(w, f).flip(2), "sees only the past"),
    ("1.5", lambda w, f: inflate_kernel(w, f if f % 2 else f + 1, "center"), "sees the future"),
    ("1.5", lambda w, f: inflate_kernel(w, f, "mean"), "a ghost on a moving one"),
    ("1.5", lambda w, f: inflate_causal(w, f).transpose(1, 2), "Time comes second"),
    ("1.5", lambda w, f: inflate_causal(w, f).movedim(2, -1), "Time comes last"),
    ("1.5", lambda w, f: w, "The time axis is missing"),
    ("1.5", lambda w, f: torch.stack([w] * f, dim=2), "frames are added up"),
    ("1.5", lambda w, f: None, "Is a `return` missing?"),
    ("1.6", padded_by_the_wrong_kernel, "frames come out of 7"),
    ("1.6", padded_on_both_sides, "it sees the future"),
    ("1.6", padded_after_the_end, "it sees the future"),
    ("1.6", padded_with_ones, "reach back before frame 0"),
    ("1.6", lambda v, s, t: causal_pseudo3d(v, s, t).flip(2), "it sees the future"),
    ("1.6", lambda v, s, t: causal_pseudo3d(v, s, t.flip(2)), "the output"),
    ("1.6", lambda v, s, t: causal_pseudo3d(v, s, t)[..., 1:-1], "padded by d // 2"),
    ("1.6", lambda v, s, t: None, "Is a `return` missing?"),
    ("1.6", lambda v, s, t: "fixed", "expected a video"),
]
