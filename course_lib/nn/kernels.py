"""Faster or safer forms of standard layers: the same weights and, up to rounding, the same results.

No part of the papers. Reads top to bottom: two implementations of attention, bfloat16 convolutions
whose gradients can be trusted, upsampling and temporal convolutions as cheaper 2D convolutions.
Measured in docs/decisions.md.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from diffusers.models.resnet import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

M = TypeVar("M", bound=nn.Module)

SDPA_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
# Scores per head up to which two matrix products beat torch's fused attention on a CPU
MAX_UNFUSED_SCORES = {torch.bfloat16: 512 * 512, torch.float32: 64 * 64}


def unfused_is_faster(query: Float[Tensor, "*b n d"], key: Float[Tensor, "*b m d"]) -> bool:
    """Whether plain matrix products beat fused attention; measured: docs/decisions.md."""
    num_scores = query.shape[-2] * key.shape[-2]
    return query.device.type == "cpu" and num_scores <= MAX_UNFUSED_SCORES.get(query.dtype, 0)


def fused_attention(
    query: Float[Tensor, "b *batch heads n d"],
    key: Float[Tensor, "b *batch heads m d"],
    value: Float[Tensor, "b *batch heads m d"],
    bias: Float[Tensor, "*masked n m"] | None,
) -> Float[Tensor, "b *batch heads n d"]:
    """torch's fused attention, for any number of batch axes."""
    batch = query.shape[:-3]
    rows = (x.flatten(0, -4) for x in (query, key, value))  # fused kernels take four axes
    if bias is not None and bias.ndim > 3:
        bias = bias.expand(*batch, *bias.shape[-3:]).flatten(0, -4)
    with sdpa_kernel(SDPA_BACKENDS):  # whatever a training loop has chosen for short sequences
        return F.scaled_dot_product_attention(*rows, attn_mask=bias).unflatten(0, batch)


def conv_forward_safe(
    layer: nn.Conv2d | nn.Conv3d, x: Float[Tensor, "b c_in *size"]
) -> Float[Tensor, "b c_out *size_out"]:
    """The result of `layer(x)`, with a correct gradient.

    On a CPU, bfloat16 convolutions (oneDNN, torch 2.12.1) return a weight gradient with
    uninitialised memory, possibly NaN, if no kernel window lies inside the clip: 3 taps over 2
    frames, 5 taps over 2 to 4. On images 1 pixel wide they may write out of bounds. Such a clip is
    small, so it is convolved in float32 and the result is rounded to bfloat16.

    Args:
        layer: convolution, which calls this function in its own `forward`.
        x: the layer's input.
    """
    if x.device.type != "cpu" or not _in_bfloat16(layer, x) or not _kernel_exceeds_input(layer, x):
        return layer._conv_forward(x, layer.weight, layer.bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return layer._conv_forward(x.float(), layer.weight.float(), bias).bfloat16()


def _in_bfloat16(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether torch would compute in bfloat16; autocast does not convert float64."""
    dtypes = {x.dtype, layer.weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.float64 not in dtypes
    return dtypes == {torch.bfloat16}


def _kernel_exceeds_input(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether the dilated kernel is longer than an axis; one frame in, one frame out is safe."""
    axes = zip(x.shape[2:], layer.kernel_size, layer.dilation, layer.padding, strict=True)
    for axis, (length, kernel, dilation, padding) in enumerate(axes):
        missing = dilation * (kernel - 1) + 1 - length
        several_outputs = 2 * padding - missing >= layer.stride[axis]
        is_time = isinstance(layer, nn.Conv3d) and axis == 0
        if missing > 0 and (several_outputs or not is_time):
            return True
    return False


class _SafeConv2d(nn.Conv2d):
    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h_out w_out"]:
        return conv_forward_safe(self, x)


class _SafeConv3d(nn.Conv3d):
    def forward(self, x: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f_out h w"]:
        return conv_forward_safe(self, x)


def guard_convolutions(model: M) -> M:
    """Makes all of a model's plain 2D and 3D convolutions call `conv_forward_safe`.

    Weights, and results for ordinary sizes, stay the same. diffusers' stride-2 convolutions return
    a wrong weight gradient in bfloat16 for features 1 pixel wide (measured: docs/decisions.md).

    Args:
        model: changed in place.

    Returns:
        The model.
    """
    classes = {nn.Conv2d: _SafeConv2d, nn.Conv3d: _SafeConv3d}
    for layer in model.modules():
        if type(layer) in classes and not isinstance(layer.padding, str):
            layer.__class__ = classes[type(layer)]
    return model


class FusedUpsample2D(Upsample2D):
    """diffusers' nearest-neighbour doubling and 3x3 convolution as one with 2x2 kernels.

    Two of three neighbouring pixels of the doubled image are equal, so their weights are summed
    first: 16 products per output channel and input pixel in place of 36, and no large intermediate
    image.
    """

    def forward(
        self, frames: Float[Tensor, "n c_in h w"], output_size: Sequence[int]
    ) -> Float[Tensor, "n c h_out w_out"]:
        """Returns the upsampled images.

        Args:
            frames: images.
            output_size: (rows, columns), twice those of the images; one less for an odd size.
        """
        _, _, h, w = frames.shape
        is_odd, is_narrow = tuple(output_size) != (2 * h, 2 * w), min(h, w) < 2
        if is_odd or (
            is_narrow and frames.device.type == "cpu" and _in_bfloat16(self.conv, frames)
        ):
            return super().forward(frames, output_size=tuple(output_size))
        kernels = _split_taps(_split_taps(self.conv.weight, 2), 4)  # row column c c_in 2 2
        kernels = kernels.transpose(0, 1).flatten(0, 2)  # (2 2 c) c_in 2 2
        out = F.conv2d(frames, kernels, self.conv.bias.repeat(4), padding=1)
        out = out.unflatten(1, (2, 2, -1))  # n 2 2 c (h + 1) (w + 1)
        # An even output row needs the input row above and its own, an odd one its own and the next
        rows = [
            torch.stack([out[:, i, j, :, i : i + h, j : j + w] for j in (0, 1)], dim=-1)
            for i in (0, 1)
        ]  # n c h w 2
        return torch.stack(rows, dim=3).flatten(4).flatten(2, 3)  # n c (h 2) (w 2)


def _split_taps(kernel: Tensor, axis: int) -> Tensor:
    """Two-tap kernels for the first and the second of two equal pixels, on a new first axis."""
    first, middle, last = kernel.unbind(axis)
    even = torch.stack([first, middle + last], axis)
    odd = torch.stack([first + middle, last], axis)
    return torch.stack([even, odd])


class TemporalConv1d(nn.Conv3d):
    """A Conv3d with kernel (t, 1, 1), computed as a 2D convolution over (frames, pixels)."""

    @classmethod
    def from_conv3d(cls, conv: nn.Conv3d) -> "TemporalConv1d":
        """Copies a Conv3d.

        Args:
            conv: layer with kernel (t, 1, 1).

        Raises:
            ValueError: for any other kernel.
        """
        if conv.kernel_size[1:] != (1, 1):
            raise ValueError(f"conv: expected a kernel (t, 1, 1), got {conv.kernel_size}")
        conv1d = cls(conv.in_channels, conv.out_channels, conv.kernel_size, padding=conv.padding)
        conv1d.load_state_dict(conv.state_dict())
        return conv1d

    def forward(self, video: Float[Tensor, "b c_in f h w"]) -> Float[Tensor, "b c_out f_out h w"]:
        return conv_forward_safe(self, video)

    def _conv_forward(self, video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if video.shape[2] < self.kernel_size[0]:  # `conv_forward_safe` judges the 3D form
            return super()._conv_forward(video, weight, bias)
        rows = video.flatten(3)  # b c f (h w)
        rows = F.conv2d(rows, weight[..., 0], bias, padding=self.padding[:2])
        return rows.unflatten(3, video.shape[3:])
