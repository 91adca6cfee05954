"""The convolutions of lesson 01 against each other, and ours against torchvision's and diffusers'."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor, nn
from torchvision.models.video.resnet import Conv2Plus1D

from course_lib import runtime
from course_lib.bench.timing import Row, alternate, compare
from course_lib.nn import convolution as conv
from course_lib.nn.profiling import count_flops, count_parameters

CASES = ((16, 8, 32), (64, 8, 32), (64, 16, 32), (128, 8, 16))  # channels, frames, pixels
BATCH = 2
SECONDS_A_CASE = 1.5  # for one direction of one case


@dataclass(frozen=True)
class Subject:
    """A module and the clip it is run on, on the device; `last` stores both with channels last in memory."""

    module: nn.Module
    video: Tensor

    @classmethod
    def make(cls, module: nn.Module, video: Tensor, last: bool = False) -> "Subject":
        layout = torch.channels_last_3d if last else torch.contiguous_format
        video = video.to(runtime.device(), memory_format=layout).requires_grad_()
        return cls(module.to(runtime.device(), memory_format=layout), video)

    def forward(self) -> None:
        """As when sampling: no gradients."""
        with torch.no_grad():
            self.module(self.video)

    def backward(self) -> None:
        """As in a training step: forward, then the gradients of weights and clip."""
        self.module.zero_grad()
        self.video.grad = None
        out = self.module(self.video)
        out = (
            out[0] if isinstance(out, tuple) else out
        )  # diffusers' causal convolution returns its cache too
        out.sum().backward()


def clip(channels: int, frames: int, pixels: int) -> Tensor:
    """Random numbers (b, c, f, h, w) for timing."""
    return torch.randn(
        BATCH, channels, frames, pixels, pixels, generator=torch.Generator().manual_seed(0)
    )


def time_both(
    subjects: dict[str, Subject], budget_s: float | int
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """("forward", times) and ("forward+backward", times) of every subject, `budget_s` seconds each."""
    yield "forward", alternate({name: s.forward for name, s in subjects.items()}, budget_s=budget_s)
    yield (
        "forward+backward",
        alternate({name: s.backward for name, s in subjects.items()}, budget_s=budget_s),
    )


def factorisations(channels: int, video: Tensor) -> dict[str, Subject]:
    """Lesson 01's ways to see space and time, from `channels` to as many. "2D" sees no time: the floor.

    (2+1)D has its norm and ReLU, as in use. The last two show what the layout in memory is worth: a t x 1 x 1
    kernel reads numbers that lie h * w apart unless the channels of a pixel lie together.
    """
    return {
        "3D": Subject.make(conv.Conv3d(channels, channels), video),
        "(2+1)D": Subject.make(conv.R2Plus1DConv(channels, channels), video),
        "separable": Subject.make(conv.SeparableConv3d(channels, channels), video),
        "pseudo-3D": Subject.make(conv.Pseudo3DConv(channels, channels), video),
        "2D": Subject.make(conv.FrameConv2d(channels, channels), video),
        "3D, channels last": Subject.make(conv.Conv3d(channels, channels), video, last=True),
        "(2+1)D, channels last": Subject.make(
            conv.R2Plus1DConv(channels, channels), video, last=True
        ),
    }


def pairs(channels: int, video: Tensor) -> dict[str, Subject]:
    """Ours, then the library's of the same shape, twice."""
    middle = conv.middle_width(channels, channels)
    modules = {
        "R2Plus1DConv": conv.R2Plus1DConv(channels, channels),
        "torchvision Conv2Plus1D": Conv2Plus1D(channels, channels, middle),
        "CausalConv3d": conv.CausalConv3d(channels, channels),
        "diffusers CogVideoXCausalConv3d": CogVideoXCausalConv3d(channels, channels, 3),
    }
    return {name: Subject.make(module, video) for name, module in modules.items()}


def bench_convolution() -> list[Row]:
    """Ways to see time against 3D, forward and with backward, what FLOPs promise beside what the clock says."""
    rows = []
    for channels, frames, pixels in CASES:
        subjects = factorisations(channels, clip(channels, frames, pixels))
        flops = {
            name: count_flops(subject.module, subject.video) for name, subject in subjects.items()
        }
        for direction, times in time_both(subjects, SECONDS_A_CASE):
            case = f"{BATCH}x{channels}x{frames}x{pixels}x{pixels} {direction}"
            for name, subject in subjects.items():
                promise = flops["3D"] / flops[name]
                note = (
                    f"FLOPs promise {promise:.2f}; {count_parameters(subject.module):,} parameters"
                )
                rows.append(
                    compare(times, name, "3D", benchmark="convolution", case=case, note=note)
                )
    return rows + against_libraries()


def against_libraries() -> list[Row]:
    """Ours and the libraries', of the same shape."""
    channels, frames, pixels = CASES[1]
    subjects, rows = pairs(channels, clip(channels, frames, pixels)), []
    names = list(subjects)
    for direction, times in time_both(subjects, 2 * SECONDS_A_CASE):
        case = f"{BATCH}x{channels}x{frames}x{pixels}x{pixels} {direction}"
        for ours, theirs in zip(names[::2], names[1::2], strict=True):
            rows.append(compare(times, ours, theirs, benchmark="convolution", case=case))
    return rows
