"""What a network costs and sees: parameters, floating-point operations, receptive field."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def receptive_field(
    kernels: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> int:
    """How many input frames (or pixels) one output of a stack of convolutions sees along one axis.

    Each layer adds dilation * (kernel - 1) steps, a step being the product of the strides below it.
    kernels, strides, dilations: one number per layer, first layer first; strides and dilations default to 1.
    Raises ValueError if the lists differ in length.
    """
    strides = [1] * len(kernels) if strides is None else strides
    dilations = [1] * len(kernels) if dilations is None else dilations
    if not len(kernels) == len(strides) == len(dilations):
        raise ValueError(
            f"strides, dilations: expected {len(kernels)} each, got {strides} and {dilations}"
        )
    field, jump = 1, 1
    for kernel, stride, dilation in zip(kernels, strides, dilations, strict=True):
        field += dilation * (kernel - 1) * jump
        jump *= stride
    return field


def count_parameters(module: nn.Module) -> int:
    """How many numbers the module learns (parameters that require a gradient)."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def conv_flops(
    channels: tuple[int, int],
    kernel: Sequence[int],
    output: Sequence[int],
    batch: int = 1,
    groups: int = 1,
) -> int:
    """Floating-point operations of one convolution, a multiply-add counted as 2, the bias not counted.

    channels: (in, out). kernel: (t, d, d) or (d, d). output: (f, h, w) or (h, w) of the result: one kernel's
    work for each of its pixels, so that padding costs like pixels.
    """
    return 2 * batch * math.prod(output) * math.prod(channels) // groups * math.prod(kernel)


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Forward FLOPs of the convolutions and linear layers in `module(*inputs)`; norms and ReLUs are left out.

    Runs the module once, as in evaluation, so that nothing in it changes. A multiply-add counts as 2.
    """
    total, modes = 0, [(layer, layer.training) for layer in module.modules()]

    def add(layer: nn.Module, _: tuple, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output.numel() * layer.in_features
        else:
            channels = (layer.in_channels, layer.out_channels)
            total += conv_flops(
                channels, layer.kernel_size, output.shape[2:], len(output), layer.groups
            )

    counted = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [
        layer.register_forward_hook(add) for layer in module.modules() if isinstance(layer, counted)
    ]
    try:
        with torch.no_grad():
            module.eval()(*inputs)
    finally:
        for layer, training in modes:
            layer.training = training
        for hook in hooks:
            hook.remove()
    return total
