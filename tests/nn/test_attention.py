"""Attention layers against torch's own, against loops, and against the promises of masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_lib.nn.attention import (
    CrossAttention,
    SpatialAttention,
    TemporalAttention,
    attention,
    attention_weights,
    joint_training_mask,
    mask_to_bias,
)
from course_lib.nn.positions import INDEXED_POSITIONS, POSITIONS


@pytest.fixture
def clip():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 5, 3, 4, dtype=torch.float64, generator=generator)


def randomize(layer):
    """The layer in float64 with random numbers in every parameter, so that none is zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return layer.double()


def torch_attention(layer, kv_dim=None):
    """torch's MultiheadAttention with the weights of one of our layers."""
    channels, heads = layer.to_out.in_features, layer.num_heads
    theirs = nn.MultiheadAttention(channels, heads, kdim=kv_dim, vdim=kv_dim, batch_first=True)
    theirs = theirs.double()
    theirs.in_proj_bias.data.zero_()
    theirs.out_proj.load_state_dict(layer.to_out.state_dict())
    if kv_dim is None:
        theirs.in_proj_weight.data.copy_(layer.to_qkv.weight)
    else:
        key, value = layer.to_kv.weight.chunk(2)
        for name, weight in (("q", layer.to_q.weight), ("k", key), ("v", value)):
            getattr(theirs, f"{name}_proj_weight").data.copy_(weight)
    return theirs


@pytest.mark.parametrize(
    "dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("n, m", [(16, 16), (7, 32), (80, 80)])
@pytest.mark.parametrize("bias_shape", [None, (4,), (2, 1, 1)])
def test_attention_equals_torch_in_every_dtype_fused_or_not(dtype, close, n, m, bias_shape):
    query, key, value = (torch.randn(2, 3, 4, size, 8) for size in (n, m, m))
    bias = None if bias_shape is None else torch.randn(*bias_shape, n, m)
    args = (query, key, value, bias)
    expected = F.scaled_dot_product_attention(*(None if x is None else x.double() for x in args))
    out = attention(*(None if x is None else x.to(dtype) for x in args))
    torch.testing.assert_close(out.double(), expected, atol=close, rtol=close)
    assert out.dtype == dtype


def test_attention_weights_sum_to_one_and_are_zero_where_masked():
    query, key = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    mask = torch.rand(5, 6) < 0.5
    mask[:, 0] = True
    weights = attention_weights(query, key, mask_to_bias(mask, torch.float32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    assert (weights[:, ~mask] == 0).all() and (weights[:, mask] > 0).all()


def test_the_mask_of_joint_training_by_loops():
    is_image = torch.tensor([[False, False, True, True], [False] * 4])
    mask = joint_training_mask(is_image)
    for clip in range(2):
        for i in range(4):
            for j in range(4):
                expected = i == j or not (is_image[clip, i] or is_image[clip, j])
                assert mask[clip, i, j] == expected


# Layers


@pytest.mark.parametrize("positions", POSITIONS)
def test_temporal_attention_takes_the_positions_of_frames(positions):
    torch.manual_seed(0)
    layer = TemporalAttention(8, 4, positions).double()
    nn.init.normal_(layer.to_out.weight)
    video, index = torch.randn(2, 8, 5, 2, 2, dtype=torch.float64), torch.arange(5).expand(2, -1)
    if positions not in INDEXED_POSITIONS:
        with pytest.raises(ValueError, match=f"frame_index: not supported with '{positions}' pos"):
            layer(video, frame_index=index)
        return
    torch.testing.assert_close(layer(video, frame_index=index), layer(video))
    torch.testing.assert_close(layer.weights(video, frame_index=index), layer.weights(video))
    later = layer(video, frame_index=index + 3)
    # Rotary positions depend on distances, so that a later clip is the same clip
    assert torch.allclose(later, layer(video)) == (positions == "rotary")
    spread = layer(video, frame_index=torch.stack([index[0], 2.5 * index[1]]))
    torch.testing.assert_close(spread[0], layer(video)[0])
    assert not torch.allclose(spread[1], layer(video)[1])


@pytest.mark.parametrize("positions", POSITIONS)
def test_temporal_attention_is_initialised_as_the_identity(clip, positions):
    layer = TemporalAttention(16, 8, positions).double()
    assert torch.equal(layer(clip), clip)
    layer.to_out.bias.data += 1
    assert not torch.equal(layer(clip), clip)


@pytest.mark.parametrize("masked", [False, True])
def test_temporal_attention_equals_torch_over_the_frames_of_a_pixel(clip, masked):
    layer = randomize(TemporalAttention(16, 8, "none"))
    theirs, expected = torch_attention(layer), torch.empty_like(clip)
    is_image = [[False, False, False, True, True], [True, False, False, False, True]]
    mask = joint_training_mask(torch.tensor(is_image))
    for b in range(2):
        for y in range(3):
            for x in range(4):
                tokens = layer.norm(clip[b, :, :, y, x].T)[None]  # 1 f c
                out, _ = theirs(tokens, tokens, tokens, attn_mask=~mask[b] if masked else None)
                expected[b, :, :, y, x] = clip[b, :, :, y, x] + out[0].T
    torch.testing.assert_close(layer(clip, mask if masked else None), expected)


def test_spatial_attention_equals_torch_over_the_pixels_of_a_frame(clip):
    layer = randomize(SpatialAttention(16, 8))
    theirs, expected = torch_attention(layer), torch.empty_like(clip)
    for b in range(2):
        for f in range(5):
            tokens = layer.norm(clip[b, :, f].flatten(1).T)[None]  # 1 (h w) c
            out, _ = theirs(tokens, tokens, tokens)
            expected[b, :, f] = clip[b, :, f] + out[0].T.reshape(16, 3, 4)
    torch.testing.assert_close(layer(clip), expected)


def test_cross_attention_equals_torch_and_takes_a_text_per_frame(clip):
    layer = randomize(CrossAttention(16, 6, 8))
    text = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    theirs, expected = torch_attention(layer, 6), torch.empty_like(clip)
    for b in range(2):
        for f in range(5):
            tokens = layer.norm(clip[b, :, f].flatten(1).T)[None]
            out, _ = theirs(tokens, text[b, f][None], text[b, f][None])
            expected[b, :, f] = clip[b, :, f] + out[0].T.reshape(16, 3, 4)
    torch.testing.assert_close(layer(clip, text), expected)
    same = text[:, :1].expand_as(text)
    torch.testing.assert_close(layer(clip, text[:, 0]), layer(clip, same))


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_without_positions_a_shuffled_clip_gives_the_shuffled_result(clip, positions):
    layer = randomize(TemporalAttention(16, 8, positions))
    order = torch.tensor([3, 0, 4, 1, 2])
    difference = (layer(clip[:, :, order]) - layer(clip)[:, :, order]).abs().max()
    assert difference < 1e-12 if positions == "none" else difference > 1e-3


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_with_distances_the_start_of_a_clip_does_not_matter(clip, positions):
    """Of two clips that a mask separates, the second gives the result of a single clip."""
    layer = randomize(TemporalAttention(16, 8, positions))
    two = torch.cat([clip, clip], dim=2)
    block = torch.block_diag(torch.ones(5, 5), torch.ones(5, 5)).bool().expand(2, 10, 10)
    torch.testing.assert_close(layer(two, block)[:, :, 5:], layer(clip))


@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_are_those_of_forward(clip, positions):
    layer = randomize(TemporalAttention(16, 8, positions))
    mask = joint_training_mask(torch.tensor([[False, False, True, False, True]] * 2))
    weights = layer.weights(clip, mask)
    assert weights.shape == (2, 2, 3, 4, 5, 5)
    _, _, value, _ = layer._project(clip, mask)  # b (h w) heads f d
    out = torch.einsum("bnhwij,bhwnjd->bhwind", weights, value.unflatten(1, (3, 4)))
    out = layer.to_out(out.flatten(-2)).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(layer(clip, mask), clip + out)


def test_in_bfloat16_the_layers_stay_close(clip):
    for layer in (randomize(TemporalAttention(16, 8)), randomize(SpatialAttention(16, 8))):
        exact = layer(clip)
        rounded = layer.bfloat16()(clip.bfloat16())
        assert rounded.dtype == torch.bfloat16
        assert (rounded.double() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="channels: expected a multiple of head_dim 32, got 48"):
        SpatialAttention(48)
    message = "positions: expected one of relative, rotary, sinusoidal, none; got 'learnt'"
    with pytest.raises(ValueError, match=message):
        TemporalAttention(32, positions="learnt")
