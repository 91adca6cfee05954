"""Convolutions for video: per frame, 3D, factorised, causal. `profiling.py` computes their cost.

Reads top to bottom: sizes, 2D per frame, 3D, (2+1)D, separable, pseudo-3D, causal, inflation.
Video is (b, c, f, h, w). A kernel is (t, d, d): t frames by d x d pixels.

Tran et al. 2018, "A Closer Look at Spatiotemporal Convolutions for Action Recognition", arXiv
1711.11248. Singer et al. 2022, "Make-A-Video: Text-to-Video Generation without Text-Video Data",
arXiv 2209.14792. Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?" (I3D), arXiv
1705.07750. Yang et al. 2024, "CogVideoX", arXiv 2408.06072 (causal convolution in time).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.nn.kernels import conv_forward_safe
from course_lib.nn.utils import check_sizes
from course_lib.validation import check_float, check_int, require

Triple = tuple[int, int, int]


def _triple(value: int | Triple, name: str = "kernel_size") -> Triple:
    """An int n becomes (n, n, n). Raises ValueError for sizes below 1."""
    sizes = (value,) * 3 if isinstance(value, int) else value
    if len(sizes) != 3 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"{name}: expected sizes of at least 1, got {value}")
    return sizes


def same_padding(kernel_size: Triple, dilation: Triple = (1, 1, 1)) -> Triple:
    """Zeros to add on both sides of each axis so that a convolution of stride 1 keeps the size.

    Raises:
        ValueError: for an even kernel, which has no centre.
    """
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(f"kernel_size: 'same' padding needs odd sizes, got {kernel_size}")
    return tuple(d * (size - 1) // 2 for size, d in zip(kernel_size, dilation, strict=True))


def output_length(
    length: int, kernel_size: int, stride: int = 1, padding: int = 0, dilation: int = 1
) -> int:
    """Number of outputs of a convolution along one axis; ValueError for a stride of 0, and such."""
    check_sizes(length=length, kernel_size=kernel_size, stride=stride, dilation=dilation)
    check_int("padding", padding, 0)
    return max(0, (length + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1)


class FrameConv2d(nn.Conv2d):
    """A 2D convolution of every frame: frames are folded into the batch. Weights are plain 2D.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: pixels, odd.
        stride: pixels.
        bias: whether to add a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        bias: bool = True,
    ):
        _, padding, _ = same_padding((1, kernel_size, kernel_size))
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, video: Tensor) -> Float[Tensor, "b c_out f h_out w_out"]:
        """Takes a video (b, c_in, f, h, w); raises ValueError for another number of axes."""
        check_float("video", video, "(b, c, f, h, w)")
        frames = conv_forward_safe(self, rearrange(video, "b c f h w -> (b f) c h w"))
        # Both sizes are given, since those of an empty batch cannot be inferred
        return rearrange(frames, "(b f) c h w -> b c f h w", b=video.shape[0], f=video.shape[2])


class Conv3d(nn.Conv3d):
    """A 3D convolution: the kernel slides over frames, rows and columns.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: n for (n, n, n), or (t, d, d).
        stride: n or (frames, rows, columns).
        dilation: n or (frames, rows, columns).
        padding: "same" (odd kernels; keeps the size at stride 1), or zeros per axis.
        bias: whether to add a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        stride: int | Triple = 1,
        dilation: int | Triple = 1,
        padding: Literal["same"] | Triple = "same",
        bias: bool = True,
    ):
        kernel_size = _triple(kernel_size)
        stride = _triple(stride, "stride")
        dilation = _triple(dilation, "dilation")
        zeros = same_padding(kernel_size, dilation) if padding == "same" else padding
        super().__init__(in_channels, out_channels, kernel_size, stride, zeros, dilation, bias=bias)

    def forward(self, video: Tensor) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        """Takes a video (b, c_in, f, h, w); raises ValueError for another number of axes."""
        check_float("video", video, "(b, c, f, h, w)")
        return conv_forward_safe(self, video)  # not super().forward: see there


def r2plus1d_midplanes(
    in_channels: int, out_channels: int, kernel_t: int = 3, kernel_s: int = 3
) -> int:
    """Middle channels M that give a (2+1)D convolution the parameters of the 3D one.

    3D has t d^2 Cin Cout weights, (2+1)D has d^2 Cin M + t M Cout; equate, solve for M, round down
    (Tran et al. 2018, section 3.5). Raises ValueError for numbers below 1.
    """
    check_sizes(in_channels=in_channels, out_channels=out_channels)
    check_sizes(kernel_t=kernel_t, kernel_s=kernel_s)
    weights_3d = kernel_t * kernel_s**2 * in_channels * out_channels
    return weights_3d // (kernel_s**2 * in_channels + kernel_t * out_channels)


def group_norm(channels: int, max_groups: int = 8) -> nn.GroupNorm:
    """GroupNorm with the greatest common divisor of `channels` and `max_groups` as groups.

    Its statistics span the frames.
    """
    return nn.GroupNorm(math.gcd(channels, max_groups), channels)


class R2Plus1DConv(nn.Module):
    """(2+1)D convolution: 1 x d x d to M channels, norm, ReLU, then t x 1 x 1.

    Tran et al. 2018, section 3.5.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_t: kernel size t in frames, odd.
        kernel_s: kernel size d in pixels, odd.
        stride: one number for frames and pixels, or (frames, pixels).
        midplanes: M; by default that of `r2plus1d_midplanes`.
        norm: makes a norm from a number of channels: BatchNorm3d (the paper) or `group_norm`.
        bias: whether the convolutions add a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_t: int = 3,
        kernel_s: int = 3,
        *,
        stride: int | tuple[int, int] = 1,
        midplanes: int | None = None,
        norm: Callable[[int], nn.Module] = nn.BatchNorm3d,
        bias: bool = False,
    ):
        super().__init__()
        stride_t, stride_s = (stride, stride) if isinstance(stride, int) else stride
        if midplanes is None:
            midplanes = r2plus1d_midplanes(in_channels, out_channels, kernel_t, kernel_s)
        self.spatial = Conv3d(
            in_channels,
            midplanes,
            (1, kernel_s, kernel_s),
            stride=(1, stride_s, stride_s),
            bias=bias,
        )
        self.norm = norm(midplanes)
        self.activation = nn.ReLU()
        self.temporal = Conv3d(
            midplanes, out_channels, (kernel_t, 1, 1), stride=(stride_t, 1, 1), bias=bias
        )

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f_out h_out w_out"]:
        # The ReLU doubles the nonlinearities of a 3D convolution, and makes an identity in time
        # impossible, since it removes negative values. Pseudo3DConv below has none.
        return self.temporal(self.activation(self.norm(self.spatial(video))))


class SeparableConv3d(nn.Module):
    """1 x d x d to the output channels, then t x 1 x 1; no norm or nonlinearity in between.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_t: kernel size t in frames, odd.
        kernel_s: kernel size d in pixels, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_t: int = 3, kernel_s: int = 3):
        super().__init__()
        self.spatial = Conv3d(in_channels, out_channels, (1, kernel_s, kernel_s))
        self.temporal = Conv3d(out_channels, out_channels, (kernel_t, 1, 1))

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f h w"]:
        return self.temporal(self.spatial(video))


class Pseudo3DConv(nn.Module):
    """Make-A-Video's convolution: 2D per frame, then 1D over frames (section 3.2).

    Initially it is exactly the 2D convolution of every frame, so that a pre-trained image layer is
    preserved.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_s: kernel size in pixels, odd.
        kernel_t: kernel size in frames, odd.
        stride: pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_s: int = 3,
        kernel_t: int = 3,
        *,
        stride: int = 1,
    ):
        super().__init__()
        self.spatial = FrameConv2d(in_channels, out_channels, kernel_s, stride=stride)
        # A 1D convolution over frames is a 3D one with a t x 1 x 1 kernel, without transposing
        self.temporal = Conv3d(out_channels, out_channels, (kernel_t, 1, 1))
        nn.init.dirac_(self.temporal.weight)  # the centre tap of each channel's own filter is 1
        nn.init.zeros_(self.temporal.bias)  # a random bias would shift every frame

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, kernel_t: int = 3) -> "Pseudo3DConv":
        """Wraps a trained image convolution.

        Args:
            conv: convolution with an odd square kernel, 'same' zero padding and no groups.
            kernel_t: kernel size in frames, odd.

        Raises:
            ValueError: for any other convolution.
        """
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        supported = ((kernel,) * 2, (stride,) * 2, (kernel // 2,) * 2, (1, 1), 1, "zeros")
        if tuple(getattr(conv, name) for name in names) != supported:
            raise ValueError(
                f"conv: expected a square kernel with 'same' zero padding and no groups, got {conv}"
            )
        pseudo = cls(conv.in_channels, conv.out_channels, kernel, kernel_t, stride=stride).to(
            conv.weight
        )
        with torch.no_grad():
            pseudo.spatial.weight.copy_(conv.weight)
            pseudo.spatial.bias.copy_(torch.zeros(()) if conv.bias is None else conv.bias)
        return pseudo

    def forward(
        self, video: Float[Tensor, "b c_in f h w"]
    ) -> Float[Tensor, "b c_out f h_out w_out"]:
        return self.temporal(self.spatial(video))


class CausalConv3d(nn.Module):
    """A 3D convolution that sees the present and the past: time is padded before frame 0 only.

    `forward_chunk` processes a long video in chunks and gives the result of `forward`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: n or (t, d, d), d odd.
        stride: frames.
        dilation: frames.
        pad_mode: "replicate" repeats frame 0 before it (CogVideoX), "zeros" pads zeros (Wan 2.1).
        bias: whether to add a bias.

    Raises:
        ValueError: for an unknown mode, or a stride that skips frames.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        pad_mode: Literal["replicate", "zeros"] = "replicate",
        bias: bool = True,
    ):
        super().__init__()
        if pad_mode not in ("replicate", "zeros"):
            raise ValueError(f"pad_mode: expected 'replicate' or 'zeros', got {pad_mode!r}")
        check_sizes(stride=stride, dilation=dilation)
        kernel_t, rows, columns = _triple(kernel_size)
        _, pad_h, pad_w = same_padding((1, rows, columns))
        self.conv = Conv3d(
            in_channels,
            out_channels,
            (kernel_t, rows, columns),
            stride=(stride, 1, 1),
            dilation=(dilation, 1, 1),
            padding=(0, pad_h, pad_w),
            bias=bias,
        )
        self.pad_mode = pad_mode
        self.stride = stride
        self.temporal_extent = dilation * (kernel_t - 1) + 1
        if stride > self.temporal_extent:
            raise ValueError(
                f"stride: expected at most {self.temporal_extent}, the frames of one output, "
                f"got {stride}"
            )

    def forward(self, video: Tensor) -> Float[Tensor, "b c_out f_out h w"]:
        """Takes a video (b, c_in, f, h, w); raises ValueError as `forward_chunk` does."""
        return self.forward_chunk(video, None)[0]

    def forward_chunk(
        self,
        chunk: Tensor,
        cache: Float[Tensor, "b c_in f_cache h w"] | None = None,
    ) -> tuple[Float[Tensor, "b c_out f_out h w"], Float[Tensor, "b c_in f_next h w"]]:
        """Processes the next frames of a video.

        Args:
            chunk: the next frames, (b, c_in, f, h, w).
            cache: what the previous call returned; None at the start of a video.

        Returns:
            The outputs, and the cache for the next chunk.

        Raises:
            ValueError: for no frames or, with a stride above 1, too few for one output; for another
                number of axes, or a cache that is not of this layer and video.
        """
        check_float("chunk", chunk, "(b, c, f, h, w)")
        require(chunk.shape[2] > 0, "chunk", "at least 1 frame", f"shape {tuple(chunk.shape)}")
        if cache is None:
            frame = chunk[:, :, :1]
            frame = frame if self.pad_mode == "replicate" else torch.zeros_like(frame)
            cache = frame.expand(-1, -1, self.temporal_extent - 1, -1, -1)
        lengths = range(max(0, self.temporal_extent - self.stride), self.temporal_extent)
        require(cache.shape[2] in lengths, "cache", "that of the last call", tuple(cache.shape))
        context = torch.cat([cache, chunk], dim=2)  # b c (f_cache + f) h w
        num_outputs = output_length(context.shape[2], self.temporal_extent, self.stride)
        expected = f"at least {self.temporal_extent - cache.shape[2]} frames after this cache"
        require(num_outputs > 0, "chunk", expected, chunk.shape[2])
        # The cache begins where the next output's window does
        return self.conv(context), context[:, :, num_outputs * self.stride :]


def inflate_kernel(
    weight: Tensor,
    kernel_t: int,
    mode: Literal["center", "mean", "causal"] = "center",
) -> Float[Tensor, "o i t h w"]:
    """A 2D kernel as a 3D one that treats a still clip like the 2D kernel its image.

    Args:
        weight: 2D kernel, (o, i, h, w).
        kernel_t: number of taps in time.
        mode: "center" puts the kernel into the middle tap, exact on every frame of any clip;
            "causal" into the last tap, the same for CausalConv3d; "mean" puts 1/t of it into every
            tap (I3D), exact only for still clips, away from their ends.

    Raises:
        ValueError: for an unknown mode, another number of axes, no taps, or an even number of taps
            with "center".
    """
    check_float("weight", weight, "(o, i, h, w)")
    check_int("kernel_t", kernel_t, 1)
    if mode == "mean":
        return weight.unsqueeze(2).expand(-1, -1, kernel_t, -1, -1) / kernel_t
    if mode not in ("center", "causal"):
        raise ValueError(f"mode: expected 'center', 'mean' or 'causal', got {mode!r}")
    if mode == "center" and kernel_t % 2 == 0:
        raise ValueError(f"kernel_t: 'center' needs an odd number of taps, got {kernel_t}")
    before = kernel_t // 2 if mode == "center" else kernel_t - 1
    return F.pad(weight.unsqueeze(2), (0, 0, 0, 0, before, kernel_t - 1 - before))
