"""Temporal layers: initially the identity, then equal to diffusers' classes with equal weights."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import TemporalConvLayer, TemporalResnetBlock
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from course_lib.nn.temporal import (
    AlphaBlend,
    FrameConditioningConv,
    SharedTextAttnProcessor,
    TemporalConvBlock,
    TemporalResBlock,
    TemporalTextBlock,
    TemporalTransformer,
)
from course_lib.nn.utils import fold_frames, zero_module

CLOSE = {"rtol": 0, "atol": 1e-12}


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_kwargs(b=2, f=5):
    return {
        "temb": randn(b, f, 12, seed=1),
        "text": randn(b, 6, 24, seed=2),
        "cond_channels": randn(b, 3, f, 4, 4, seed=3),
    }


def randomize(layer, seed=3):
    torch.manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.double().eval()


LAYERS = {
    "convolutions": lambda: TemporalConvBlock(32, 16),
    "transformer": lambda: TemporalTransformer(32, 2, 8, 16),
    "motion module": lambda: TemporalTransformer(32, 2, 16, 32, max_frames=8, num_layers=2),
    "residual": lambda: TemporalResBlock(32, 12),
    "attention": lambda: TemporalTextBlock(32, 16, "rotary"),
    "attention and text": lambda: TemporalTextBlock(32, 16, cross_attention_dim=24),
    "frame conditioning": lambda: FrameConditioningConv(3, 32),
    "blend": lambda: AlphaBlend(TemporalResBlock(32, 12)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_initialised_as_the_identity(name):
    layer, video = LAYERS[name]().double().eval(), randn(2, 32, 5, 4, 4)
    torch.testing.assert_close(layer(video, **layer_kwargs()), video, **CLOSE)
    assert not torch.allclose(randomize(layer)(video, **layer_kwargs()), video)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gets_gradients_in_the_first_step_and_all_of_it_in_the_second(name):
    # With 32 channels, each would be a group of its own, where a bias before a norm has no effect
    wide = {
        "residual": lambda: TemporalResBlock(64, 12),
        "blend": lambda: AlphaBlend(TemporalResBlock(64, 12)),
        "motion module": lambda: TemporalTransformer(64, 2, 16, 32, max_frames=8, num_layers=2),
    }
    layer = wide.get(name, LAYERS[name])().double()
    video = randn(2, 64 if name in wide else 32, 5, 4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        (layer(video, **layer_kwargs()) - video.flip(2)).square().mean().backward()
        gradients = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        with_gradient.append(
            {n for n, gradient in gradients.items() if gradient.abs().max() > 1e-12}
        )
        optimizer.step()
    assert with_gradient[0]  # in the first step only the last layer's
    assert with_gradient[1] == {n for n, _ in layer.named_parameters()}


def test_the_convolutions_equal_diffusers():
    ours, theirs = (
        randomize(TemporalConvBlock(32, 16)),
        TemporalConvLayer(32, 32, norm_num_groups=16),
    )
    video = randn(2, 32, 5, 4, 4)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(fold_frames(video), num_frames=5)
    torch.testing.assert_close(fold_frames(ours(video)), expected, **CLOSE)


def test_the_transformer_equals_diffusers():
    ours = randomize(TemporalTransformer(32, 2, 8, 16, num_layers=2))
    theirs = TransformerTemporalModel(2, 8, in_channels=32, num_layers=2, norm_num_groups=16)
    video = randn(2, 32, 5, 4, 4)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(fold_frames(video), num_frames=5).sample
    torch.testing.assert_close(fold_frames(ours(video)), expected, **CLOSE)


def test_the_motion_module_equals_diffusers():
    ours = randomize(TemporalTransformer(32, 2, 16, 32, max_frames=8))
    theirs = AnimateDiffTransformer3D(
        2, 16, in_channels=32, positional_embeddings="sinusoidal", num_positional_embeddings=8
    )
    video = randn(2, 32, 5, 4, 4)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.double().eval()(fold_frames(video), num_frames=5)
    torch.testing.assert_close(fold_frames(ours(video)), expected, **CLOSE)


def test_the_residual_block_equals_diffusers():
    ours, theirs = randomize(TemporalResBlock(32, 12)), TemporalResnetBlock(32, 32, 12, eps=1e-5)
    video, temb = randn(2, 32, 5, 4, 4), layer_kwargs()["temb"]
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(video, temb), theirs.double()(video, temb), **CLOSE)


def test_only_a_motion_module_has_a_maximum_length():
    for frames in (1, 40):
        assert TemporalTransformer(32, 2, 16)(torch.zeros(1, 32, frames, 2, 2)).shape[2] == frames
    with pytest.raises(ValueError, match="video: expected at most 8 frames, got 9"):
        TemporalTransformer(32, 2, 16, max_frames=8)(torch.zeros(1, 32, 9, 2, 2))


@pytest.mark.parametrize(
    ("name", "has_positions"),
    [("transformer", False), ("motion module", True), ("attention", True)],
)
def test_only_with_positions_a_shuffled_clip_differs(name, has_positions):
    layer, video = randomize(LAYERS[name]()), randn(2, 32, 5, 4, 4)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = layer(video[:, :, order], **layer_kwargs())
    expected = layer(video, **layer_kwargs())[:, :, order]
    assert torch.allclose(shuffled, expected) != has_positions


def test_text_attention_depends_on_position_and_time():
    layer = randomize(TemporalTextBlock(32, 16, cross_attention_dim=24)).text_block
    video = randn(2, 32, 1, 1, 1).expand(-1, -1, 5, 4, 4)  # all pixels of all frames are equal
    text = layer_kwargs()["text"]
    out = layer(video, text)
    assert out[0].flatten(1).T.unique(dim=0).shape[0] == 5 * 4 * 4
    torch.testing.assert_close(out, layer(video, text, torch.arange(5).expand(2, -1)), **CLOSE)
    later = layer(video[:, :, :2], text, torch.tensor([[3, 4]]).expand(2, -1))
    torch.testing.assert_close(later, out[:, :, 3:], **CLOSE)
    with torch.no_grad():
        zero_module(layer.pos_embed)
    uniform = layer(video, text)
    torch.testing.assert_close(uniform, uniform[..., :1, :1].expand_as(uniform), **CLOSE)
    assert (uniform.diff(dim=2).abs() > 1e-3).any()


def test_text_acts_on_its_own_clip():
    layer = randomize(TemporalTextBlock(32, 16, cross_attention_dim=24))
    video, text = randn(2, 32, 5, 4, 4), layer_kwargs()["text"]
    changed = text.clone()
    changed[1] += 1
    change = (layer(video, changed) - layer(video, text)).abs().amax(dim=(1, 2, 3, 4))
    assert change[0] == 0 and change[1] > 1e-3


def test_alpha_is_the_weight_of_the_image_model():
    layer = AlphaBlend(randomize(TemporalResBlock(32, 12))).double()
    video = randn(2, 32, 5, 4, 4)
    for factor in (-2.0, 0.0, 3.0):
        nn.init.constant_(layer.mix_factor, factor)
        alpha = 1 / (1 + torch.tensor(-factor).double().exp())
        expected = alpha * video + (1 - alpha) * layer.layer(video, **layer_kwargs())
        torch.testing.assert_close(layer(video, **layer_kwargs()), expected, **CLOSE)
        torch.testing.assert_close(layer.alpha, alpha[None], **CLOSE)


# The processor that takes a text once per clip


@pytest.mark.parametrize("norm", [None, "layer_norm"])
@pytest.mark.parametrize("cross_attention_dim", [None, 24])
def test_attention_equals_diffusers_with_a_text_per_clip_or_per_frame(cross_attention_dim, norm):
    norm = norm if cross_attention_dim else None
    attn = Attention(32, cross_attention_dim, heads=4, dim_head=8, cross_attention_norm=norm)
    attn, rows = randomize(attn), randn(6, 10, 32)
    text = per_frame = None
    if cross_attention_dim:
        text = randn(2, 7, 24, seed=1)
        per_frame = text.repeat_interleave(3, dim=0)
    attn.set_processor(AttnProcessor2_0())
    expected = attn(rows, per_frame)
    attn.set_processor(SharedTextAttnProcessor())
    torch.testing.assert_close(attn(rows, text), expected, **CLOSE)
    torch.testing.assert_close(attn(rows, per_frame), expected, **CLOSE)


def test_a_mask_hides_pixels_as_in_diffusers():
    attn, rows = randomize(Attention(32, heads=4, dim_head=8)), randn(2, 10, 32)
    mask = torch.zeros(2, 1, 10, dtype=torch.float64).masked_fill(torch.arange(10) > 6, -10000.0)
    attn.set_processor(AttnProcessor2_0())
    expected = attn(rows, attention_mask=mask)
    attn.set_processor(SharedTextAttnProcessor())
    torch.testing.assert_close(attn(rows, attention_mask=mask), expected, **CLOSE)
