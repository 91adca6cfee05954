"""bfloat16 convolutions on a CPU against float32 ones: short clips and narrow images."""

import copy
import pickle

import pytest
import torch
from diffusers.models.resnet import Downsample2D
from torch import nn

from course_lib.nn import convolution as conv
from course_lib.nn import kernels
from course_lib.nn.temporal_decoder import TemporalAutoencoder
from course_lib.nn.unet import VideoUNet
from tests.nn import inflated

KERNELS = {  # each with the clip lengths that are shorter than the kernel
    "3d": (lambda: conv.Conv3d(16, 16), (2,)),
    "3d, 5 frames": (lambda: conv.Conv3d(16, 16, (5, 1, 1)), (2, 3, 4)),
    "3d, 5 frames, stride": (lambda: conv.Conv3d(16, 16, (5, 1, 1), stride=(2, 1, 1)), (3, 4)),
    "3d, more padding": (lambda: conv.Conv3d(16, 16, (3, 1, 1), padding=(2, 0, 0)), (1, 2)),
    "3d, dilation": (lambda: conv.Conv3d(16, 16, (3, 1, 1), dilation=(2, 1, 1)), (2, 4)),
    "2+1d": (lambda: conv.R2Plus1DConv(16, 16, midplanes=16, norm=conv.group_norm), (2,)),
    "separable": (lambda: conv.SeparableConv3d(16, 16), (2,)),
    "pseudo": (lambda: conv.Pseudo3DConv(16, 16), (2,)),
    "causal": (lambda: conv.CausalConv3d(16, 16), (1, 2)),
    "causal, zeros": (lambda: conv.CausalConv3d(16, 16, 5, pad_mode="zeros"), (1, 2, 4)),
}
CASES = [
    (name, frames)
    for name, (_, short) in KERNELS.items()
    for frames in sorted({1, *short, max(short) + 1})
]


def fill_freed_memory_with_nan():
    """Makes unwritten memory visible: the allocator returns these blocks again."""
    junk = [torch.full((2**power,), float("nan")) for power in range(10, 21, 2) for _ in range(6)]
    del junk


def gradients(layer, video, bf16):
    """The output, then the gradients of the clip and of every parameter, in float32."""
    layer.zero_grad()
    video = video.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = layer(video)
    fill_freed_memory_with_nan()
    out.backward((torch.sin(torch.arange(out.numel())) + 0.5).view(out.shape).to(out.dtype))
    return [out, video.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def assert_bf16_is_float32_rounded(layer, video):
    rounded, exact = gradients(layer, video, True), gradients(layer, video, False)
    assert rounded[0].dtype == torch.bfloat16
    for result, expected in zip(rounded, exact, strict=True):
        assert result.isfinite().all()
        assert (
            result - expected
        ).norm() <= 0.05 * expected.norm() + 1e-6  # not elementwise: a ReLU may flip


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "channels last"]
)
@pytest.mark.parametrize("name, frames", CASES)
def test_the_weight_gradient_of_short_clips(name, frames, layout):
    torch.manual_seed(0)
    layer = KERNELS[name][0]()
    for module in (m for m in layer.modules() if isinstance(m, conv.Conv3d)):
        module.to(memory_format=layout)
    assert_bf16_is_float32_rounded(layer, torch.randn(2, 16, frames, 6, 6).to(memory_format=layout))


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: conv.FrameConv2d(16, 16, stride=2),
        lambda: conv.FrameConv2d(16, 16, 5),
        lambda: conv.Conv3d(16, 16, (1, 3, 3), stride=(1, 2, 2)),
        lambda: conv.Conv3d(16, 16, (1, 5, 5)),
        lambda: conv.CausalConv3d(16, 16, (3, 5, 5)),
    ],
)
def test_the_weight_gradient_of_narrow_images(make, size):
    torch.manual_seed(0)
    assert_bf16_is_float32_rounded(make(), torch.randn(2, 16, 4, *size))


@pytest.mark.parametrize("frames, computed_in", [(1, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_float32_only_where_it_is_needed(monkeypatch, frames, computed_in):
    layer, dtypes = conv.Conv3d(4, 4, (3, 1, 1)), []
    original = layer._conv_forward

    def spy(x, weight, bias):
        out = original(x, weight, bias)
        dtypes.append(str(out.dtype))
        return out

    monkeypatch.setattr(layer, "_conv_forward", spy)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 4, frames, 5, 5))
    assert dtypes == [f"torch.{computed_in}"]


def test_a_bfloat16_layer_without_autocast_is_safe_too():
    torch.manual_seed(0)
    layer, video = conv.Conv3d(16, 16, (3, 1, 1)).bfloat16(), torch.randn(2, 16, 2, 6, 6).bfloat16()
    out = layer(video)
    fill_freed_memory_with_nan()
    out.sum().backward()
    assert out.dtype == layer.weight.grad.dtype == torch.bfloat16
    exact = conv.Conv3d(16, 16, (3, 1, 1))
    exact.load_state_dict(layer.state_dict())
    exact(video.float()).sum().backward()
    torch.testing.assert_close(layer.weight.grad.float(), exact.weight.grad, rtol=0.02, atol=0.5)


def test_without_bfloat16_nothing_changes():
    layer, video = conv.Conv3d(4, 4).double(), torch.randn(1, 4, 2, 5, 5, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(video).dtype == torch.float64
    layer = conv.Conv3d(4, 4)
    video = video.float()
    assert torch.equal(layer(video), torch.nn.Conv3d.forward(layer, video))


@pytest.mark.parametrize("frames", [2, 3])
def test_a_clip_of_another_dtype_than_the_layer_is_still_refused(frames):
    with pytest.raises(RuntimeError, match="should be the same"):
        conv.Conv3d(4, 4)(torch.randn(1, 4, frames, 5, 5).bfloat16())


def test_only_our_convolutions_are_used():
    """A plain torch convolution inside one of ours would not be safe."""
    for make, _ in KERNELS.values():
        kinds = {
            type(layer)
            for layer in make().modules()
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d)
        }
        assert kinds <= {conv.Conv3d, conv.FrameConv2d}
    assert conv.conv_forward_safe is kernels.conv_forward_safe


@pytest.mark.parametrize("size", [(1, 1), (4, 1), (1, 4), (2, 2), (5, 6)])
def test_diffusers_convolutions_are_guarded(size):
    torch.manual_seed(0)
    layer = kernels.guard_convolutions(Downsample2D(16, use_conv=True))
    x = torch.randn(2, 16, *size)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_bf16_is_float32_rounded(other, x)
    plain = Downsample2D(16, use_conv=True)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (2, 2)])
def test_upsampling_of_narrow_images(size):
    torch.manual_seed(0)
    layer = kernels.FusedUpsample2D(16, use_conv=True, out_channels=8)
    layer = kernels.guard_convolutions(layer)
    x = torch.randn(2, 16, *size)
    wrapped = Doubled(layer)
    assert_bf16_is_float32_rounded(wrapped, x)


class Doubled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, output_size=[2 * n for n in x.shape[2:]])


def test_whole_networks_are_guarded():
    decoder = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    decoder |= {"down_block_types": ["DownEncoderBlock2D"] * 2}
    decoder |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    small = {"block_out_channels": (8, 8), "attention_levels": (False, True), "head_dim": 8}
    networks = [
        inflated.make("video-ldm", "SD 1"),
        TemporalAutoencoder(decoder),
        VideoUNet(**small),
    ]
    for network in networks:
        types = {type(layer) for layer in network.modules()}
        assert not types & {nn.Conv2d, nn.Conv3d}
        assert any(issubclass(layer, nn.Conv2d) for layer in types)
