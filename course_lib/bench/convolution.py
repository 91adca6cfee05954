"""The convolutions of lesson 01 against each other and against torchvision's and diffusers'."""

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from torch import Tensor, nn
from torchvision.models.video.resnet import Conv2Plus1D

from course_lib import runtime
from course_lib.bench.timing import BenchmarkRow, Contender, contender_rows
from course_lib.nn import convolution as conv
from course_lib.nn.profiling import count_flops, count_parameters

CASES = ((16, 8, 32), (64, 8, 32), (64, 16, 32), (128, 8, 16))  # channels, frames, pixels
BATCH_SIZE = 2
SECONDS_PER_CASE = 1.5  # for one direction of one case


def random_video(channels: int, num_frames: int, size: int) -> Tensor:
    """Normal noise (b, c, f, h, w)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH_SIZE, channels, num_frames, size, size, generator=generator)


def _contender(module: nn.Module, video: Tensor, channels_last: bool = False) -> Contender:
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    video = video.to(runtime.device(), memory_format=layout).requires_grad_()
    return Contender(module.to(runtime.device(), memory_format=layout), (video,))


def factorisations(channels: int, video: Tensor) -> dict[str, Contender]:
    """Lesson 01's convolutions, from `channels` to `channels`; "2D" has no temporal extent.

    (2+1)D includes its norm and ReLU. The last two show the effect of the memory layout: the inputs
    of a t x 1 x 1 kernel are h * w numbers apart unless the channels of a pixel are adjacent.
    """
    return {
        "3D": _contender(conv.Conv3d(channels, channels), video),
        "(2+1)D": _contender(conv.R2Plus1DConv(channels, channels), video),
        "separable": _contender(conv.SeparableConv3d(channels, channels), video),
        "pseudo-3D": _contender(conv.Pseudo3DConv(channels, channels), video),
        "2D": _contender(conv.FrameConv2d(channels, channels), video),
        "3D, channels last": _contender(conv.Conv3d(channels, channels), video, True),
        "(2+1)D, channels last": _contender(conv.R2Plus1DConv(channels, channels), video, True),
    }


def library_pairs(channels: int, video: Tensor) -> dict[str, Contender]:
    """Two pairs: the course's layer, then a library's of the same shape."""
    midplanes = conv.r2plus1d_midplanes(channels, channels)
    modules = {
        "R2Plus1DConv": conv.R2Plus1DConv(channels, channels),
        "torchvision Conv2Plus1D": Conv2Plus1D(channels, channels, midplanes),
        "CausalConv3d": conv.CausalConv3d(channels, channels),
        "diffusers CogVideoXCausalConv3d": CogVideoXCausalConv3d(channels, channels, 3),
    }
    return {name: _contender(module, video) for name, module in modules.items()}


def bench_convolution() -> list[BenchmarkRow]:
    """Factorisations against 3D, with the speed-up that FLOPs predict; then library pairs."""
    rows = []
    for shape in CASES:
        contenders = factorisations(shape[0], random_video(*shape))
        flops = {name: count_flops(each.net, *each.inputs) for name, each in contenders.items()}
        notes = {
            name: f"FLOPs predict {flops['3D'] / flops[name]:.2f}; "
            f"{count_parameters(each.net):,} parameters"
            for name, each in contenders.items()
        }
        pairs = [(name, "3D") for name in contenders]
        rows += _rows(contenders, pairs, shape, SECONDS_PER_CASE, notes)
    contenders = library_pairs(CASES[1][0], random_video(*CASES[1]))
    names = list(contenders)
    pairs = list(zip(names[::2], names[1::2], strict=True))
    notes = dict.fromkeys(names, "")
    return rows + _rows(contenders, pairs, CASES[1], 2 * SECONDS_PER_CASE, notes)


def _rows(
    contenders: dict[str, Contender],
    pairs: list[tuple[str, str]],
    shape: tuple[int, int, int],
    budget_s: float,
    notes: dict[str, str],
) -> list[BenchmarkRow]:
    """Rows for a forward pass and for a training step."""
    channels, num_frames, size = shape
    return [
        row
        for step, method in (("forward", "sampling_step"), ("forward+backward", "training_step"))
        for row in contender_rows(
            contenders,
            method,
            pairs,
            benchmark="convolution",
            case=f"{BATCH_SIZE}x{channels}x{num_frames}x{size}x{size} {step}",
            budget_s=budget_s,
            note=lambda name, _: notes[name],
        )
    ]
