"""Layers over time: nothing at first, then what diffusers' own classes say with the same weights."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import TemporalConvLayer, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from course_lib.nn.temporal import (
    Beside,
    Blend,
    ClipAttention,
    ConvOverTime,
    TemporalConv,
    TemporalResidual,
    TemporalTransformer,
    TimeAndText,
    zero,
)

CLOSE = {"rtol": 0, "atol": 1e-12}


def normal(*axes, seed=0):
    return torch.randn(*axes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def told(b=2, f=5):
    return {
        "embedding": normal(b, f, 12, seed=1),
        "text": normal(b, 6, 24, seed=2),
        "extra": normal(b, 3, f, 4, 4, seed=3),
    }


def moved(layer, seed=3):
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


def as_frames(video):
    return video.transpose(1, 2).flatten(0, 1)


LAYERS = {
    "convolution": lambda: TemporalConv(32, 16),
    "transformer": lambda: TemporalTransformer(32, 2, 8, 16),
    "motion module": lambda: TemporalTransformer(32, 2, 16, 32, frames=8, layers=2),
    "residual": lambda: TemporalResidual(32, 12),
    "time": lambda: TimeAndText(32, 16, "rotary"),
    "time and text": lambda: TimeAndText(32, 16, text_width=24),
    "beside": lambda: Beside(3, 32),
    "blend": lambda: Blend(TemporalResidual(32, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_nothing_at_first(name):
    layer, video = LAYERS[name]().double().eval(), normal(2, 32, 5, 4, 4)
    torch.testing.assert_close(layer(video, **told()), video, **CLOSE)
    assert not torch.allclose(moved(layer)(video, **told()), video)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gets_gradients_at_once_and_all_of_it_after_a_step(name):
    # Of 32 channels each would be alone in its group, and a bias before a norm would make no difference
    wide = {
        "residual": lambda: TemporalResidual(64, 12),
        "blend": lambda: Blend(TemporalResidual(64, 12)),
        "motion module": lambda: TemporalTransformer(64, 2, 16, 32, frames=8, layers=2),
    }
    layer = wide.get(name, LAYERS[name])().double()
    video = normal(2, 64 if name in wide else 32, 5, 4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        (layer(video, **told()) - video.flip(2)).square().mean().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
        with_gradient.append(
            {
                n
                for n, p in layer.named_parameters()
                if p.grad is not None and p.grad.abs().max() > 1e-12
            }
        )
        optimizer.step()
    assert with_gradient[0]  # at first only the last layer's
    assert with_gradient[1] == {n for n, _ in layer.named_parameters()}


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_convolution_over_time_is_the_one_in_three_dimensions(frames):
    torch.manual_seed(0)
    plain = nn.Conv3d(6, 10, (3, 1, 1), padding=(1, 0, 0)).double()
    ours, video = ConvOverTime.like(plain).double(), normal(2, 6, frames, 3, 5).requires_grad_()
    found, wanted = ours(video), plain(video)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), [video, ours.weight, ours.bias]),
        torch.autograd.grad(wanted.square().sum(), [video, plain.weight, plain.bias]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_a_convolution_over_time_looks_at_one_pixel():
    with pytest.raises(ValueError, match=r"kernel \(t, 1, 1\), got \(3, 3, 3\)"):
        ConvOverTime.like(nn.Conv3d(4, 4, 3))


def test_the_convolution_is_diffusers_own():
    ours, theirs, video = (
        moved(TemporalConv(32, 16)),
        TemporalConvLayer(32, 32, norm_num_groups=16),
        normal(2, 32, 5, 4, 4),
    )
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(as_frames(video), num_frames=5)
    torch.testing.assert_close(as_frames(ours(video)), expected, **CLOSE)


def test_the_transformer_is_diffusers_own():
    ours, video = moved(TemporalTransformer(32, 2, 8, 16, layers=2)), normal(2, 32, 5, 4, 4)
    theirs = TransformerTemporalModel(2, 8, in_channels=32, num_layers=2, norm_num_groups=16)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(as_frames(video), num_frames=5).sample
    torch.testing.assert_close(as_frames(ours(video)), expected, **CLOSE)


def test_the_motion_module_is_diffusers_own():
    ours, video = moved(TemporalTransformer(32, 2, 16, 32, frames=8)), normal(2, 32, 5, 4, 4)
    theirs = AnimateDiffTransformer3D(
        2, 16, in_channels=32, positional_embeddings="sinusoidal", num_positional_embeddings=8
    )
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(as_frames(video), num_frames=5)
    torch.testing.assert_close(as_frames(ours(video)), expected, **CLOSE)


def test_the_residual_block_is_diffusers_own():
    ours, theirs, video = (
        moved(TemporalResidual(32, 12)),
        TemporalResnetBlock(32, 32, 12, eps=1e-5),
        normal(2, 32, 5, 4, 4),
    )
    theirs.load_state_dict(ours.state_dict())
    embedding = told()["embedding"]
    torch.testing.assert_close(ours(video, embedding), theirs.double()(video, embedding), **CLOSE)


def test_only_a_motion_module_has_an_end():
    for frames in (1, 40):
        assert TemporalTransformer(32, 2, 16)(torch.zeros(1, 32, frames, 2, 2)).shape[2] == frames
    with pytest.raises(
        ValueError, match="video: expected at most 8 frames, for which there are positions, got 9"
    ):
        TemporalTransformer(32, 2, 16, frames=8)(torch.zeros(1, 32, 9, 2, 2))


@pytest.mark.parametrize(
    ("name", "knows"), [("transformer", False), ("motion module", True), ("time", True)]
)
def test_positions_tell_a_clip_from_its_shuffle(name, knows):
    layer, video, order = (
        moved(LAYERS[name]()),
        normal(2, 32, 5, 4, 4),
        torch.tensor([3, 0, 4, 1, 2]),
    )
    shuffled = layer(video[:, :, order], **told())
    assert torch.allclose(shuffled, layer(video, **told())[:, :, order]) != knows


def test_whoever_reads_is_told_where_and_when():
    layer = moved(TimeAndText(32, 16, text_width=24)).words
    video, text = (
        normal(2, 32, 1, 1, 1).expand(-1, -1, 5, 4, 4),
        told()["text"],
    )  # every pixel alike, in every frame
    found = layer(video, text)
    assert found[0].flatten(1).T.unique(dim=0).shape[0] == 5 * 4 * 4
    torch.testing.assert_close(found, layer(video, text, torch.arange(5).expand(2, -1)), **CLOSE)
    later = layer(video[:, :, :2], text, torch.tensor([[3, 4]]).expand(2, -1))
    torch.testing.assert_close(later, found[:, :, 3:], **CLOSE)
    with torch.no_grad():
        zero(layer.embed_place)
    everywhere = layer(video, text)
    torch.testing.assert_close(everywhere, everywhere[..., :1, :1].expand_as(everywhere), **CLOSE)
    assert (everywhere.diff(dim=2).abs() > 1e-3).any()


def test_text_is_read_by_the_clip():
    layer, video = moved(TimeAndText(32, 16, text_width=24)), normal(2, 32, 5, 4, 4)
    text = told()["text"]
    other = text.clone()
    other[1] += 1
    change = (layer(video, other) - layer(video, text)).abs().amax(dim=(1, 2, 3, 4))
    assert change[0] == 0 and change[1] > 1e-3


def test_alpha_is_the_image_models_share():
    layer, video = Blend(moved(TemporalResidual(32, 12))).double(), normal(2, 32, 5, 4, 4)
    for factor in (-2.0, 0.0, 3.0):
        nn.init.constant_(layer.mix_factor, factor)
        alpha = 1 / (1 + torch.tensor(-factor).double().exp())
        expected = alpha * video + (1 - alpha) * layer.layer(video, **told())
        torch.testing.assert_close(layer(video, **told()), expected, **CLOSE)
        torch.testing.assert_close(layer.alpha, alpha[None], **CLOSE)


# Attention that takes a clip's text once


@pytest.mark.parametrize("text_width", [None, 24])
def test_attention_is_diffusers_own_and_needs_a_clips_text_only_once(text_width):
    attention = moved(Attention(32, text_width, heads=4, dim_head=8))
    rows, text = normal(6, 10, 32), None if text_width is None else normal(2, 7, 24, seed=1)
    attention.set_processor(AttnProcessor2_0())
    expected = attention(rows, None if text is None else text.repeat_interleave(3, dim=0))
    attention.set_processor(ClipAttention())
    torch.testing.assert_close(attention(rows, text), expected, **CLOSE)
    if text is not None:
        torch.testing.assert_close(
            attention(rows, text.repeat_interleave(3, dim=0)), expected, **CLOSE
        )


def test_a_mask_hides_pixels_as_in_diffusers():
    attention, rows = moved(Attention(32, heads=4, dim_head=8)), normal(2, 10, 32)
    mask = torch.zeros(2, 1, 10, dtype=torch.float64).masked_fill(torch.arange(10) > 6, -10000.0)
    attention.set_processor(AttnProcessor2_0())
    expected = attention(rows, attention_mask=mask)
    attention.set_processor(ClipAttention())
    torch.testing.assert_close(attention(rows, attention_mask=mask), expected, **CLOSE)


def test_zero_means_weight_and_bias():
    layer = zero(nn.Linear(3, 4))
    assert layer.weight.abs().max() == 0 and layer.bias.abs().max() == 0
