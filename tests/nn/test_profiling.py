"""Counts against torch's own counter, and the receptive field against a gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from course_lib.nn import convolution as conv
from course_lib.nn import cost
from course_lib.nn.video_resnet import video_resnet

COUNTED = {
    "frame": conv.FrameConv2d(3, 8, stride=2),
    "3d": conv.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2)),
    "grouped": nn.Conv3d(3, 6, 3, groups=3),
    "2+1d": conv.R2Plus1DConv(3, 8),
    "pseudo": conv.Pseudo3DConv(3, 8),
    "causal": conv.CausalConv3d(3, 8),
    "net": video_resnet("r2plus1d", 5, widths=(4, 8, 8, 8)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_flops_equal_torchs_counter(name):
    module, video = COUNTED[name].eval(), torch.zeros(2, 3, 5, 16, 15)
    with FlopCounterMode(display=False) as counter:
        module(video)
    assert cost.count_flops(module, video) == counter.get_total_flops() > 0


def test_flops_of_one_3d_convolution_by_hand():
    video = torch.zeros(2, 64, 8, 14, 14)
    by_hand = (
        2 * (2 * 8 * 14 * 14) * (64 * 128 * 27)
    )  # multiply and add, for each output pixel, for each weight
    assert cost.conv_flops((64, 128), (3, 3, 3), (8, 14, 14), batch=2) == by_hand
    assert cost.count_flops(conv.Conv3d(64, 128), video) == by_hand


def test_counting_flops_changes_nothing():
    module, video = (
        conv.R2Plus1DConv(3, 4),
        torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0)),
    )
    module.spatial.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    cost.count_flops(module, video)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training and module.norm.training and not module.spatial.training
    assert not any(layer._forward_hooks for layer in module.modules())


def test_only_learned_parameters_are_counted():
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    assert cost.count_parameters(module) == 12
    assert cost.count_parameters(conv.Conv3d(64, 64, bias=False)) == 110_592


@pytest.mark.parametrize(
    "kernels, strides, dilations, field",
    [
        ([3], None, None, 3),
        ([3, 3], None, None, 5),
        ([3, 3], [2, 1], None, 7),
        ([3, 3], None, [1, 4], 11),
        ([], None, None, 1),
    ],
)
def test_receptive_field_by_hand(kernels, strides, dilations, field):
    assert cost.receptive_field(kernels, strides, dilations) == field


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4
    )
)
def test_receptive_field_is_the_reach_of_a_gradient(layers):
    kernels, strides, dilations = zip(*layers, strict=True)
    field = cost.receptive_field(kernels, strides, dilations)
    x = torch.zeros(1, 1, field, requires_grad=True)
    y = x
    for kernel, stride, dilation in layers:
        y = nn.functional.conv1d(y, torch.ones(1, 1, kernel), None, stride, 0, dilation)
    assert y.shape[2] == 1  # the field is just long enough for one output
    y.sum().backward()
    assert x.grad[0, 0, 0] != 0 and x.grad[0, 0, -1] != 0


def test_receptive_field_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="strides, dilations: expected 2 each"):
        cost.receptive_field([3, 3], [1])
