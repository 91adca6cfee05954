"""Convolutions for video: over a frame, over a clip, factorised, causal. What each one costs is in `cost.py`.

Reads top to bottom: sizes, 2D per frame, 3D, (2+1)D, separable, pseudo-3D, causal, inflation.
Video is (b, c, f, h, w). A kernel is written (t, d, d): t frames by d x d pixels.

Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition", arXiv 1711.11248.
Singer et al. 2022, "Make-A-Video: Text-to-Video Generation without Text-Video Data", arXiv 2209.14792.
Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?" (I3D), arXiv 1705.07750.
Yang et al. 2024, "CogVideoX", arXiv 2408.06072 (causal convolution in time).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.profiling import conv_flops, count_flops, count_parameters, receptive_field  # noqa: F401
from course_lib.nn.bf16_conv import convolve

Triple = tuple[int, int, int]


def triple(value: int | Triple, name: str = "kernel") -> Triple:
    """An int n becomes (n, n, n): frames, rows, columns. Raises ValueError for sizes below 1."""
    sizes = (value,) * 3 if isinstance(value, int) else value
    if min(sizes) < 1:
        raise ValueError(f"{name}: expected sizes of at least 1, got {value}")
    return sizes


def same_padding(kernel: Triple, dilation: Triple = (1, 1, 1)) -> Triple:
    """Zeros to add on both sides of each axis so that stride 1 keeps the size.

    Raises ValueError for an even kernel, which has no middle and cannot keep the size with equal sides.
    """
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"kernel: 'same' padding needs odd sizes, got {kernel}")
    return tuple(step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True))


def output_length(
    length: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> int:
    """How many outputs a convolution makes along one axis of `length` inputs: the windows that fit."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class FrameConv2d(nn.Conv2d):
    """A 2D convolution applied to every frame alone: frames are folded into the batch. Weights are plain 2D.

    kernel: pixels, odd. stride: pixels. The frame axis is neither mixed nor shortened.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        bias: bool = True,
    ):
        _, padding, _ = same_padding((1, kernel, kernel))
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=bias)

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f h_out w_out"]:
        frames = rearrange(video, "b c f h w -> (b f) c h w")
        frames = convolve(self, frames)
        # Both sizes are given, since those of an empty batch cannot be inferred
        return rearrange(frames, "(b f) c h w -> b c f h w", b=video.shape[0], f=video.shape[2])


class Conv3d(nn.Conv3d):
    """A 3D convolution: the kernel slides over frames, rows and columns at once.

    kernel: n for (n, n, n), or (t, d, d). stride, dilation: the same.
    padding: "same" (odd kernels, keeps the size at stride 1) or numbers of zeros (frames, rows, columns).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 3,
        *,
        stride: int | Triple = 1,
        dilation: int | Triple = 1,
        padding: Literal["same"] | Triple = "same",
        bias: bool = True,
    ):
        kernel, stride, dilation = (
            triple(kernel),
            triple(stride, "stride"),
            triple(dilation, "dilation"),
        )
        zeros = same_padding(kernel, dilation) if padding == "same" else padding
        super().__init__(in_channels, out_channels, kernel, stride, zeros, dilation, bias=bias)

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        return convolve(self, video)  # not super().forward: see there


def middle_width(in_channels: int, out_channels: int, time: int = 3, space: int = 3) -> int:
    """Channels M in the middle of a (2+1)D convolution that give it the parameters of the t x d x d one.

    Full 3D has t d^2 Cin Cout weights, the pair has d^2 Cin M + t M Cout; equate, solve for M, round down.
    Source: Tran et al. 2018, section 3.5.
    """
    full = time * space**2 * in_channels * out_channels
    return full // (space**2 * in_channels + time * out_channels)


def group_norm(channels: int, groups: int = 8) -> nn.GroupNorm:
    """GroupNorm for any width: as many groups, up to `groups`, as divide both. Statistics span the frames."""
    return nn.GroupNorm(math.gcd(channels, groups), channels)


class R2Plus1DConv(nn.Module):
    """(2+1)D convolution: 1 x d x d to M channels, norm, ReLU, then t x 1 x 1. Tran et al. 2018, section 3.5.

    time, space: kernel sizes t and d, odd. stride: one number for frames and pixels, or (frames, pixels).
    middle: M; by default what equals the parameters of a full 3D convolution.
    norm: makes a norm from a number of channels; BatchNorm3d as in the paper, or `group_norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time: int = 3,
        space: int = 3,
        *,
        stride: int | tuple[int, int] = 1,
        middle: int | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm3d,
        bias: bool = False,
    ):
        super().__init__()
        frames, pixels = (stride, stride) if isinstance(stride, int) else stride
        middle = middle_width(in_channels, out_channels, time, space) if middle is None else middle
        self.spatial = Conv3d(
            in_channels, middle, (1, space, space), stride=(1, pixels, pixels), bias=bias
        )
        self.norm = norm(middle)
        self.activation = nn.ReLU()
        self.temporal = Conv3d(middle, out_channels, (time, 1, 1), stride=(frames, 1, 1), bias=bias)

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        # The ReLU gives twice the nonlinearities of a 3D convolution, and forbids starting as the identity in
        # time: whatever the temporal kernel, negative values are gone. Pseudo3DConv below leaves it out.
        return self.temporal(self.activation(self.norm(self.spatial(video))))


class SeparableConv3d(nn.Module):
    """Space then time with nothing between: 1 x d x d to the output width, then t x 1 x 1 at that width.

    The cheapest of the dense factorisations: no middle expansion, no norm, no nonlinearity.
    """

    def __init__(self, in_channels: int, out_channels: int, time: int = 3, space: int = 3):
        super().__init__()
        self.spatial = Conv3d(in_channels, out_channels, (1, space, space))
        self.temporal = Conv3d(out_channels, out_channels, (time, 1, 1))

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f h w"]:
        return self.temporal(self.spatial(video))


class Pseudo3DConv(nn.Module):
    """Make-A-Video's convolution: 2D per frame, then 1D over frames, starting as the identity (section 3.2).

    At initialisation it is exactly the 2D convolution of every frame, so a pre-trained image layer is kept
    whole and training teaches it time. space, time: kernel sizes, odd. stride: pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, space: int = 3, time: int = 3, *, stride: int = 1
    ):
        super().__init__()
        self.spatial = FrameConv2d(in_channels, out_channels, space, stride=stride)
        # A 1D convolution over frames is a 3D one with a t x 1 x 1 kernel: same numbers, nothing to transpose
        self.temporal = Conv3d(out_channels, out_channels, (time, 1, 1))
        nn.init.dirac_(
            self.temporal.weight
        )  # 1 at the centre tap of each channel's own filter, 0 elsewhere
        nn.init.zeros_(
            self.temporal.bias
        )  # the weight alone is not enough: a random bias shifts every frame

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, time: int = 3) -> "Pseudo3DConv":
        """Wrap a trained image convolution: odd square kernel, 'same' zeros, no groups; else ValueError."""
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        found = (
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.padding_mode,
        )
        if found != (
            (kernel, kernel),
            (stride, stride),
            (kernel // 2, kernel // 2),
            (1, 1),
            1,
            "zeros",
        ):
            raise ValueError(
                f"conv: expected a square kernel with 'same' zero padding and no groups, got {conv}"
            )
        pseudo = cls(conv.in_channels, conv.out_channels, kernel, time, stride=stride).to(
            conv.weight
        )
        with torch.no_grad():
            pseudo.spatial.weight.copy_(conv.weight)
            pseudo.spatial.bias.zero_() if conv.bias is None else pseudo.spatial.bias.copy_(
                conv.bias
            )
        return pseudo

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f h_out w_out"]:
        return self.temporal(self.spatial(video))


class CausalConv3d(nn.Module):
    """A 3D convolution that sees the present and the past only: all its padding in time is before frame 0.

    kernel: n or (t, d, d), d odd. stride, dilation: in frames; pixels keep theirs at 1.
    first: what stands before frame 0: "replicate" repeats it (CogVideoX), "zeros" does not (Wan 2.1).
    `step` takes a long video in chunks and gives what `forward` gives for the whole.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | Triple = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        first: Literal["replicate", "zeros"] = "replicate",
        bias: bool = True,
    ):
        super().__init__()
        if first not in ("replicate", "zeros"):
            raise ValueError(f"first: expected 'replicate' or 'zeros', got {first!r}")
        time, rows, columns = triple(kernel)
        _, high, wide = same_padding((1, rows, columns))
        strides, dilations = (stride, 1, 1), (dilation, 1, 1)
        kernel, zeros = (time, rows, columns), (0, high, wide)
        self.conv = Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=strides,
            dilation=dilations,
            padding=zeros,
            bias=bias,
        )
        self.first, self.stride, self.window = first, stride, dilation * (time - 1) + 1
        if stride > self.window:
            raise ValueError(
                f"stride: expected at most the {self.window} frames one output sees, got {stride}"
            )

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f_out h w"]:
        return self.step(video, None)[0]

    def step(
        self,
        chunk: Float[Tensor, "b c_in f h w"],
        cache: Float[Tensor, "b c_in f_cache h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c_out f_out h w"], Float[Tensor, "b c_in f_next h w"]]:
        """One chunk of a video; returns its outputs and the frames the next chunk needs.

        chunk: the next frames. cache: what the previous call returned, None at the start of a video.
        Raises ValueError for no frames, or (with a stride above 1) too few for one more output.
        """
        if chunk.shape[2] == 0:
            raise ValueError(f"chunk: expected at least 1 frame, got shape {tuple(chunk.shape)}")
        if cache is None:
            before = self.window - 1
            frame = (
                chunk[:, :, :1] if self.first == "replicate" else torch.zeros_like(chunk[:, :, :1])
            )
            cache = frame.expand(-1, -1, before, -1, -1)
        seen = torch.cat([cache, chunk], dim=2)  # (b, c, f_cache + f, h, w)
        outputs = output_length(seen.shape[2], self.window, self.stride)
        if outputs < 1:
            need = self.window - cache.shape[2]
            raise ValueError(
                f"chunk: expected at least {need} frames after this cache, got {chunk.shape[2]}"
            )
        # What is kept starts where the stride puts the next window
        return self.conv(seen), seen[:, :, outputs * self.stride :]


def inflate_kernel(
    weight: Float[Tensor, "o i h w"],
    frames: int,
    mode: Literal["center", "mean", "causal"] = "center",
) -> Float[Tensor, "o i t h w"]:
    """A 2D kernel made 3D, `frames` taps long, that treats a still clip as the 2D kernel treats its image.

    center: all in the middle tap, exact on every frame of any clip. causal: all in the last tap, the same
    for CausalConv3d. mean: 1/t in every tap (I3D), exact only where nothing moves, away from the clip's ends.
    Raises ValueError for an unknown mode, frames below 1, or an even number of frames with "center".
    """
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    if mode == "mean":
        return weight.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames
    if mode not in ("center", "causal"):
        raise ValueError(f"mode: expected 'center', 'mean' or 'causal', got {mode!r}")
    if mode == "center" and frames % 2 == 0:
        raise ValueError(f"frames: 'center' needs an odd number of taps, got {frames}")
    before = frames // 2 if mode == "center" else frames - 1
    return F.pad(weight.unsqueeze(2), (0, 0, 0, 0, before, frames - 1 - before))
