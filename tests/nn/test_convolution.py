"""Convolutions against torch, torchvision, diffusers and closed forms."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.video.resnet import Conv2Plus1D

from course_lib.nn import convolution as conv

MODULES = {
    "frame": lambda i, o: conv.FrameConv2d(i, o),
    "3d": lambda i, o: conv.Conv3d(i, o),
    "2+1d": lambda i, o: conv.R2Plus1DConv(i, o, norm=conv.group_norm),
    "separable": lambda i, o: conv.SeparableConv3d(i, o),
    "pseudo": lambda i, o: conv.Pseudo3DConv(i, o),
    "causal": lambda i, o: conv.CausalConv3d(i, o),
}


def clip(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", MODULES)
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(
        st.integers(1, 5), st.integers(2, 7), st.integers(1, 7)
    ),  # a norm needs two values
)
def test_every_convolution_keeps_any_clip_size(kind, batch, channels, size):
    out = MODULES[kind](*channels)(clip(batch, channels[0], *size))
    assert out.shape == (batch, channels[1], *size)


@pytest.mark.parametrize("kind", MODULES)
def test_empty_batch(kind):
    assert MODULES[kind](3, 4)(torch.zeros(0, 3, 5, 6, 7)).shape == (0, 4, 5, 6, 7)


@pytest.mark.parametrize("kind", MODULES)
def test_dtype_follows_the_input(kind):
    module = MODULES[kind](3, 4).double()
    assert module(clip(1, 3, 3, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_frame_convolution_is_torch_conv2d_of_each_frame():
    layer, video = conv.FrameConv2d(3, 4, 5, stride=2), clip(2, 3, 4, 9, 8)
    out = layer(video)
    for b in range(2):
        for f in range(4):
            expected = F.conv2d(
                video[b : b + 1, :, f], layer.weight, layer.bias, stride=2, padding=2
            )
            torch.testing.assert_close(out[b : b + 1, :, f], expected)


def test_conv3d_equals_a_sum_over_its_window():
    layer, video = conv.Conv3d(2, 1, (3, 3, 3)).double(), clip(1, 2, 5, 6, 7, dtype=torch.float64)
    padded = F.pad(video, (1,) * 6)
    f, y, x = 2, 0, 6
    expected = (padded[0, :, f : f + 3, y : y + 3, x : x + 3] * layer.weight[0]).sum() + layer.bias[
        0
    ]
    torch.testing.assert_close(layer(video)[0, 0, f, y, x], expected)


@pytest.mark.parametrize(
    "kernel, stride, dilation",
    [((3, 3, 3), 1, 1), ((1, 3, 3), (1, 2, 2), 1), (5, (2, 1, 1), (1, 2, 2))],
)
def test_conv3d_equals_torch_with_written_out_padding(kernel, stride, dilation):
    layer, video = conv.Conv3d(2, 3, kernel, stride=stride, dilation=dilation), clip(1, 2, 6, 9, 9)
    padding = {(3, 3, 3): (1, 1, 1), (1, 3, 3): (0, 1, 1), 5: (2, 4, 4)}[kernel]
    expected = F.conv3d(video, layer.weight, layer.bias, stride, padding, dilation)
    assert torch.equal(layer(video), expected)


@given(
    length=st.integers(5, 40),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
)
def test_output_length_is_torchs(length, kernel, stride, padding, dilation):
    length += dilation * (kernel - 1)
    out = F.conv1d(
        torch.zeros(1, 1, length), torch.zeros(1, 1, kernel), None, stride, padding, dilation
    )
    assert conv.output_length(length, kernel, stride, padding, dilation) == out.shape[2]


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: conv.Conv3d(1, 1, (2, 3, 3)),
            r"kernel_size: 'same' padding needs odd sizes, got \(2, 3, 3\)",
        ),
        (lambda: conv.Conv3d(1, 1, 0), "kernel_size: expected sizes of at least 1, got 0"),
        (lambda: conv.Conv3d(1, 1, 3, stride=0), "stride: expected sizes of at least 1, got 0"),
        (lambda: conv.FrameConv2d(1, 1, 4), "kernel_size: 'same' padding needs odd sizes"),
        (
            lambda: conv.CausalConv3d(1, 1, 3, stride=4),
            "stride: expected at most 3, the frames of one output, got 4",
        ),
        (
            lambda: conv.CausalConv3d(1, 1)(torch.zeros(1, 1, 0, 4, 4)),
            "chunk: expected at least 1 frame",
        ),
        (
            lambda: conv.inflate_kernel(torch.zeros(1, 1, 3, 3), 0),
            "kernel_t: expected an integer of at least 1, got 0",
        ),
        (
            lambda: conv.inflate_kernel(torch.zeros(1, 1, 3, 3), 4),
            "'center' needs an odd number .* got 4",
        ),
        (
            lambda: conv.Pseudo3DConv.from_conv2d(nn.Conv2d(2, 2, 3)),
            "conv: expected a square kernel",
        ),
        (
            lambda: conv.Pseudo3DConv.from_conv2d(nn.Conv2d(2, 2, 3, padding=1, groups=2)),
            "no groups",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# (2+1)D


@pytest.mark.parametrize("sizes, midplanes", [((64, 64), 144), ((64, 128), 230), ((256, 256), 576)])
def test_midplanes_of_the_paper(sizes, midplanes):
    assert conv.r2plus1d_midplanes(*sizes) == midplanes


@given(
    st.integers(1, 512), st.integers(1, 512), st.sampled_from([3, 5]), st.sampled_from([3, 5, 7])
)
def test_middle_width_is_the_largest_that_does_not_exceed_3d(i, o, t, d):
    full, planes = t * d * d * i * o, conv.r2plus1d_midplanes(i, o, t, d)
    assert (
        d * d * i * planes + t * planes * o
        <= full
        < d * d * i * (planes + 1) + t * (planes + 1) * o
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_r2plus1d_equals_torchvision(stride):
    ours = conv.R2Plus1DConv(6, 8, stride=stride)
    theirs = Conv2Plus1D(6, 8, conv.r2plus1d_midplanes(6, 8), stride)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    for training in (True, False):
        ours.train(training), theirs.train(training)
        video = clip(2, 6, 5, 8, 9)
        torch.testing.assert_close(ours(video), theirs(video))


def test_a_relu_between_the_factors_forbids_the_identity_in_time():
    layer, video = (
        conv.R2Plus1DConv(2, 4, midplanes=4, norm=lambda _: nn.Identity()),
        clip(1, 2, 4, 6, 6),
    )
    nn.init.dirac_(layer.temporal.weight)
    assert (layer(video) - layer.spatial(video)).abs().max() > 0.5


def test_group_norm_divides_any_width():
    assert [conv.group_norm(c).num_groups for c in (16, 230, 45, 8, 1)] == [8, 2, 1, 8, 1]


def test_separable_is_a_3d_convolution_of_low_rank():
    layer = conv.SeparableConv3d(2, 3).double()
    kernel = torch.einsum(
        "omt,mihw->oithw", layer.temporal.weight[..., 0, 0], layer.spatial.weight[:, :, 0]
    )
    video = clip(1, 2, 6, 7, 7, dtype=torch.float64)
    inside = (layer(video) - layer(0 * video))[
        :, :, 1:-1
    ]  # the bias passes through the temporal kernel too
    torch.testing.assert_close(inside, F.conv3d(video, kernel, padding=1)[:, :, 1:-1])


# Pseudo-3D


@pytest.mark.parametrize("frames", [1, 5])
def test_pseudo_3d_starts_as_the_2d_convolution_of_every_frame(frames):
    image = nn.Conv2d(3, 5, 3, padding=1)
    video = clip(2, 3, frames, 8, 9)
    layer = conv.Pseudo3DConv.from_conv2d(image, kernel_t=5)
    expected = torch.stack([image(video[:, :, f]) for f in range(frames)], dim=2)
    assert torch.equal(
        layer(video), layer.spatial(video)
    )  # the temporal part is the identity, to the bit
    torch.testing.assert_close(layer(video), expected)


def test_pseudo_3d_from_a_strided_convolution_without_bias_in_double():
    image = nn.Conv2d(3, 5, 5, stride=2, padding=2, bias=False).double()
    video = clip(1, 3, 2, 8, 9, dtype=torch.float64)
    out = conv.Pseudo3DConv.from_conv2d(image)(video)
    torch.testing.assert_close(out[:, :, 1], image(video[:, :, 1]))


def test_pseudo_3d_learns_time_after_one_step():
    layer, video = conv.Pseudo3DConv(2, 2), clip(1, 2, 4, 5, 5)
    layer(video).square().sum().backward()
    taps = layer.temporal.weight.grad.abs().sum(dim=(0, 1, 3, 4))
    assert (taps > 0).all()


# Causal


def integers(*shape, seed):
    """Small whole numbers, whose float sums are exact in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=40, deadline=None)
@given(
    time=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad_mode=st.sampled_from(["replicate", "zeros"]),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5),
)
def test_chunked_equals_whole_exactly(time, stride, dilation, pad_mode, chunks):
    stride = min(stride, dilation * (time - 1) + 1)
    chunks = [stride * chunk for chunk in chunks]
    layer = conv.CausalConv3d(
        2, 3, (time, 3, 3), stride=stride, dilation=dilation, pad_mode=pad_mode
    )
    with torch.no_grad():
        layer.conv.weight.copy_(integers(3, 2, time, 3, 3, seed=1))
        layer.conv.bias.copy_(integers(3, seed=2))
    video = integers(1, 2, sum(chunks), 5, 4, seed=3)
    cache, parts = None, []
    for chunk in video.split(chunks, dim=2):
        out, cache = layer.forward_chunk(chunk, cache)
        parts.append(out)
    assert torch.equal(torch.cat(parts, dim=2), layer(video))


def test_chunked_equals_whole_on_real_numbers():
    layer, video = conv.CausalConv3d(3, 8), clip(1, 3, 9, 8, 8)
    head, cache = layer.forward_chunk(video[:, :, :4])
    tail, _ = layer.forward_chunk(video[:, :, 4:], cache)
    torch.testing.assert_close(torch.cat([head, tail], dim=2), layer(video))


def test_the_future_does_not_reach_the_past():
    layer, video = conv.CausalConv3d(2, 3, (4, 3, 3)), clip(1, 2, 6, 5, 5)
    changed = video.clone()
    changed[:, :, 3:] += 1
    difference = (layer(changed) - layer(video)).abs().amax(dim=(0, 1, 3, 4))
    assert (difference[:3] == 0).all() and (difference[3:] > 0).all()


def test_too_short_a_chunk_for_a_strided_step_is_refused():
    layer = conv.CausalConv3d(1, 1, 3, stride=2)
    _, cache = layer.forward_chunk(torch.zeros(1, 1, 1, 4, 4))
    with pytest.raises(
        ValueError, match="chunk: expected at least 2 frames after this cache, got 1"
    ):
        layer.forward_chunk(torch.zeros(1, 1, 1, 4, 4), cache)


def test_replicate_equals_cogvideox_whole_and_in_chunks():
    ours = conv.CausalConv3d(3, 4)
    theirs = CogVideoXCausalConv3d(3, 4, 3, pad_mode="constant")
    theirs.conv.load_state_dict(ours.conv.state_dict())
    video, mine, its = clip(2, 3, 7, 6, 5), None, None
    torch.testing.assert_close(ours(video), theirs(video)[0])
    for chunk in video.split([1, 4, 2], dim=2):
        out, mine = ours.forward_chunk(chunk, mine)
        expected, its = theirs(chunk, its)
        torch.testing.assert_close(out, expected)


def test_zeros_equals_wan():
    ours = conv.CausalConv3d(3, 4, pad_mode="zeros")
    theirs = WanCausalConv3d(3, 4, 3, padding=1)
    theirs.load_state_dict(ours.conv.state_dict())
    video = clip(1, 3, 5, 6, 5)
    torch.testing.assert_close(ours(video), theirs(video))


# Inflation


def inflated(image, frames, mode):
    if mode == "causal":
        layer = conv.CausalConv3d(image.in_channels, image.out_channels, (frames, 3, 3)).double()
        target = layer.conv
    else:
        layer = target = conv.Conv3d(image.in_channels, image.out_channels, (frames, 3, 3)).double()
    with torch.no_grad():
        target.weight.copy_(conv.inflate_kernel(image.weight, frames, mode))
        target.bias.copy_(image.bias)
    return layer


@pytest.mark.parametrize("mode", ["center", "mean", "causal"])
@pytest.mark.parametrize("moving", [False, True])
def test_inflation_against_the_image_layer(mode, moving):
    image = nn.Conv2d(3, 4, 3, padding=1).double()
    video = clip(1, 3, 6, 8, 8, dtype=torch.float64)
    if not moving:
        video = video[:, :, :1].expand(-1, -1, 6, -1, -1)
    expected = torch.stack([image(video[:, :, f]) for f in range(6)], dim=2)
    error = (inflated(image, 3, mode)(video) - expected).abs().amax(dim=(0, 1, 3, 4))
    if mode == "mean":  # zeros beyond the ends of the clip dilute it; motion blurs it
        assert (error[[0, -1]] > 0.1).all()
        assert (error[1:-1] > 0.1).all() if moving else (error[1:-1] < 1e-12).all()
    else:
        assert (error < 1e-12).all()


@pytest.mark.parametrize("mode", ["center", "mean", "causal"])
def test_inflated_taps_sum_to_the_2d_kernel(mode):
    weight = clip(2, 3, 5, 5)
    inflated_weight = conv.inflate_kernel(weight, 5, mode)
    assert inflated_weight.shape == (2, 3, 5, 5, 5)
    torch.testing.assert_close(inflated_weight.sum(dim=2), weight)
    assert torch.equal(conv.inflate_kernel(weight, 1, mode)[:, :, 0], weight)
