"""The cost and the reach of a network: parameters, floating-point operations, receptive field."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from course_lib.nn.utils import check_sizes

# The one fused attention that torch's counter has no formula for
CPU_ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    )
}


def receptive_field(
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
) -> int:
    """Number of inputs that one output of a stack of convolutions depends on, along one axis.

    Each layer adds dilation * (kernel size - 1) steps; a step is the product of earlier strides.

    Args:
        kernel_sizes: one per layer, the first layer first.
        strides: one per layer; 1 by default.
        dilations: one per layer; 1 by default.

    Raises:
        ValueError: if the lists differ in length, or for numbers that are not integers above 0.
    """
    strides = [1] * len(kernel_sizes) if strides is None else strides
    dilations = [1] * len(kernel_sizes) if dilations is None else dilations
    if not len(kernel_sizes) == len(strides) == len(dilations):
        raise ValueError(
            f"strides, dilations: expected {len(kernel_sizes)} each, got {strides} and {dilations}"
        )
    check_sizes(kernel_sizes=kernel_sizes, strides=strides, dilations=dilations)
    field, jump = 1, 1
    for kernel_size, stride, dilation in zip(kernel_sizes, strides, dilations, strict=True):
        field += dilation * (kernel_size - 1) * jump
        jump *= stride
    return field


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def conv_flops(
    channels: tuple[int, int],
    kernel_size: Sequence[int],
    output_size: Sequence[int],
    batch_size: int = 1,
    groups: int = 1,
) -> int:
    """Floating-point operations of one convolution; a multiply-add counts as 2, the bias as 0.

    Args:
        channels: (in, out).
        kernel_size: (t, d, d) or (d, d).
        output_size: (f, h, w) or (h, w).
        batch_size: number of clips or images.
        groups: groups of the convolution.

    Raises:
        ValueError: for numbers that are not integers above 0.
    """
    check_sizes(channels=channels, kernel_size=kernel_size, output_size=output_size)
    check_sizes(batch_size=batch_size, groups=groups)
    num_outputs = batch_size * math.prod(output_size)
    return 2 * num_outputs * math.prod(channels) // groups * math.prod(kernel_size)


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Forward FLOPs of convolutions, linear layers and attention; a multiply-add counts as 2.

    Norms, activations and softmax are not counted. Runs the module once, in evaluation mode.

    Args:
        module: network; its modes are restored.
        inputs: arguments of its `forward`.
    """
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        with torch.no_grad(), counter:
            module.eval()(*inputs)
    finally:
        for layer, training in modes:
            layer.training = training
    return counter.get_total_flops()
