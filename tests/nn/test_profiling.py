"""FLOPs against closed forms and torch's counter, and the receptive field against a gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from course_lib.nn import convolution as conv
from course_lib.nn import profiling
from course_lib.nn.attention import SpatialAttention, TemporalAttention
from course_lib.nn.video_resnet import video_resnet

CONVOLUTIONS = {
    "frame": conv.FrameConv2d(3, 8, stride=2),
    "3d": conv.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2)),
    "grouped": nn.Conv3d(3, 6, 3, groups=3),
    "2+1d": conv.R2Plus1DConv(3, 8),
    "pseudo": conv.Pseudo3DConv(3, 8),
    "causal": conv.CausalConv3d(3, 8),
    "net": video_resnet("r2plus1d", 5, channels=(4, 8, 8, 8)),
}


def sum_of_layers(module, *inputs):
    """FLOPs of all convolutions and linear layers by their closed forms."""
    total = []

    def add(layer, _, out):
        if isinstance(layer, nn.Linear):
            total.append(2 * out.numel() * layer.in_features)
        else:
            channels = (layer.in_channels, layer.out_channels)
            sizes = (layer.kernel_size, out.shape[2:], len(out))
            total.append(profiling.conv_flops(channels, *sizes, layer.groups))

    kinds = (nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, kinds)]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(total)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_flops_of_convolutions_equal_their_closed_forms_and_torchs_counter(name):
    module, video = CONVOLUTIONS[name].eval(), torch.zeros(2, 3, 5, 16, 15)
    with FlopCounterMode(display=False) as counter:
        module(video)
    flops = profiling.count_flops(module, video)
    assert flops == counter.get_total_flops() == sum_of_layers(module, video) > 0


def test_flops_of_one_3d_convolution_by_hand():
    video = torch.zeros(2, 64, 8, 14, 14)
    # Multiply and add, for each output pixel, for each weight
    by_hand = 2 * (2 * 8 * 14 * 14) * (64 * 128 * 27)
    assert profiling.conv_flops((64, 128), (3, 3, 3), (8, 14, 14), batch_size=2) == by_hand
    assert profiling.count_flops(conv.Conv3d(64, 128), video) == by_hand


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 12])
@pytest.mark.parametrize("layer_class", [SpatialAttention, TemporalAttention])
def test_flops_of_attention_by_hand_fused_or_not(layer_class, size, dtype):
    b, channels, frames = 2, 32, 5
    layer = layer_class(channels, 16).to(dtype)
    video = torch.zeros(b, channels, frames, size, size, dtype=dtype)
    tokens = frames * size**2
    neighbours = frames if layer_class is TemporalAttention else size**2
    projections = 2 * b * tokens * 4 * channels**2  # query, key, value and output
    products = 2 * b * tokens * 2 * neighbours * channels  # query · key and weights · value
    assert profiling.count_flops(layer, video) == projections + products


def test_flops_of_torchs_attention_by_hand():
    class SelfAttention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.zeros(2, 4, 300, 16)
    assert profiling.count_flops(SelfAttention(), x) == 2 * 2 * (2 * 4 * 300 * 300 * 16)


def test_counting_flops_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    module, video = conv.R2Plus1DConv(3, 4), torch.randn(2, 3, 4, 6, 6, generator=generator)
    module.spatial.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    profiling.count_flops(module, video)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and module.norm.training and not module.spatial.training
    assert not any(layer._forward_hooks for layer in module.modules())


def test_only_trainable_parameters_are_counted():
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    assert profiling.count_parameters(module) == 12
    assert profiling.count_parameters(conv.Conv3d(64, 64, bias=False)) == 110_592


@pytest.mark.parametrize(
    "kernel_sizes, strides, dilations, field",
    [
        ([3], None, None, 3),
        ([3, 3], None, None, 5),
        ([3, 3], [2, 1], None, 7),
        ([3, 3], None, [1, 4], 11),
        ([], None, None, 1),
    ],
)
def test_receptive_field_by_hand(kernel_sizes, strides, dilations, field):
    assert profiling.receptive_field(kernel_sizes, strides, dilations) == field


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4
    )
)
def test_receptive_field_is_the_extent_of_a_gradient(layers):
    kernel_sizes, strides, dilations = zip(*layers, strict=True)
    field = profiling.receptive_field(kernel_sizes, strides, dilations)
    x = torch.zeros(1, 1, field, requires_grad=True)
    y = x
    for kernel_size, stride, dilation in layers:
        y = F.conv1d(y, torch.ones(1, 1, kernel_size), None, stride, 0, dilation)
    assert y.shape[2] == 1  # the field is just long enough for one output
    y.sum().backward()
    assert x.grad[0, 0, 0] != 0 and x.grad[0, 0, -1] != 0


def test_receptive_field_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="strides, dilations: expected 2 each"):
        profiling.receptive_field([3, 3], [1])
