"""Convolutions in bfloat16 on a CPU, and the clips for which they must not be used."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def convolve(
    layer: nn.Conv2d | nn.Conv3d, x: Float[Tensor, "b c_in *size"]
) -> Float[Tensor, "b c_out *size_out"]:
    """What `layer(x)` gives, with a gradient that can be trusted.

    On a CPU, bfloat16 convolutions (oneDNN; seen in torch 2.12.1) return a weight gradient that holds whatever was
    in memory before, NaN included, when no window lies wholly inside the clip: a 3-frame kernel over 2 frames, a
    5-frame kernel over 2 to 4. On pictures 1 pixel wide they may even write past their buffers. Such a clip is
    small, so it is computed in float32 and rounded to the dtype that it would have had.

    layer: called through this function only from its own `forward`. x: as the layer takes it.
    """
    if x.device.type != "cpu" or not _in_bfloat16(layer, x) or not _window_sticks_out(layer, x):
        return layer._conv_forward(x, layer.weight, layer.bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return layer._conv_forward(x.float(), layer.weight.float(), bias).bfloat16()


def _in_bfloat16(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether torch would compute this in bfloat16; autocast leaves float64 alone."""
    dtypes = {x.dtype, layer.weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.float64 not in dtypes
    return dtypes == {torch.bfloat16}


def _window_sticks_out(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether some axis is shorter than the kernel's reach; one frame that stays one frame is sound."""
    axes = zip(x.shape[2:], layer.kernel_size, layer.dilation, layer.padding, strict=True)
    for number, (length, kernel, dilation, zeros) in enumerate(axes):
        missing = dilation * (kernel - 1) + 1 - length
        several = 2 * zeros - missing >= layer.stride[number]  # outputs along this axis
        is_time = isinstance(layer, nn.Conv3d) and number == 0
        if missing > 0 and (several or not is_time):
            return True
    return False
