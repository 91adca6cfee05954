"""Faster forms of layers against the layers themselves: values and gradients."""

import pytest
import torch
from diffusers.models.resnet import Upsample2D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course_lib.nn import attention
from course_lib.nn.kernels import FusedUpsample2D, TemporalConv1d


def test_attention_chooses_by_length(monkeypatch):
    weights, chosen = attention.attention_weights, []
    monkeypatch.setattr(
        attention, "attention_weights", lambda *args: chosen.append("plain") or weights(*args)
    )
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda query, *_, **__: chosen.append("fused") or query
    )
    for dtype, length in (
        (torch.float32, 64),
        (torch.float32, 65),
        (torch.bfloat16, 512),
        (torch.bfloat16, 513),
    ):
        x = torch.zeros(1, 1, length, 1, dtype=dtype)
        attention.attention(x, x, x)
    assert chosen == ["plain", "fused"] * 2


@given(h=st.integers(1, 5), w=st.integers(1, 5), channels=st.sampled_from([(3, 2), (2, 2), (1, 4)]))
@settings(max_examples=30, deadline=None)
def test_upsampling_equals_diffusers(h, w, channels):
    torch.manual_seed(h + 10 * w)
    theirs = Upsample2D(channels[0], use_conv=True, out_channels=channels[1]).double()
    ours = FusedUpsample2D(channels[0], use_conv=True, out_channels=channels[1]).double()
    ours.load_state_dict(theirs.state_dict())
    frames = torch.randn(2, channels[0], h, w, dtype=torch.float64)
    for size in ((2 * h, 2 * w), (2 * h - 1, 2 * w), (2 * h - 1, 2 * w - 1)):
        results = []
        for layer in (ours, theirs):
            layer.zero_grad()
            x = frames.clone().requires_grad_()
            out = layer(x, output_size=size)
            assert out.shape == (2, channels[1], *size)
            (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
            conv = layer.conv
            gradients = (x.grad, conv.weight.grad.clone(), conv.bias.grad.clone())
            results.append((out.detach(), *gradients))
        for result, expected in zip(*results, strict=True):
            torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_temporal_convolution_equals_its_3d_form(frames):
    torch.manual_seed(0)
    conv = nn.Conv3d(6, 10, (3, 1, 1), padding=(1, 0, 0)).double()
    ours = TemporalConv1d.from_conv3d(conv).double()
    video = torch.randn(2, 6, frames, 3, 5, dtype=torch.float64, requires_grad=True)
    out, expected = ours(video), conv(video)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(out.square().sum(), [video, ours.weight, ours.bias]),
        torch.autograd.grad(expected.square().sum(), [video, conv.weight, conv.bias]),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-10, rtol=0)


def test_a_temporal_convolution_covers_one_pixel():
    with pytest.raises(ValueError, match=r"kernel \(t, 1, 1\), got \(3, 3, 3\)"):
        TemporalConv1d.from_conv3d(nn.Conv3d(4, 4, 3))
