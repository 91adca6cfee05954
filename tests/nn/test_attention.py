"""Attention layers against torch's own, against loops, and against what positions and masks promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from course_lib.nn import attention
from course_lib.nn.attention import (
    PLACED,
    POSITIONS,
    RelativeBias,
    SpatialAttention,
    TemporalAttention,
    TextAttention,
    apart,
    as_bias,
    attend,
    attention_weights,
    rotate,
    sinusoids,
)


@pytest.fixture
def clip():
    return torch.randn(
        2, 16, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def awake(layer):
    """The layer with random numbers in every parameter, so that nothing is zero any more; float64."""
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return layer.double()


def torchs(layer, kv_width=None):
    """torch's MultiheadAttention with the weights of one of ours."""
    channels = layer.to_out.in_features
    theirs = nn.MultiheadAttention(
        channels, layer.heads, kdim=kv_width, vdim=kv_width, batch_first=True
    ).double()
    theirs.in_proj_bias.data.zero_()
    theirs.out_proj.load_state_dict(layer.to_out.state_dict())
    if kv_width is None:
        theirs.in_proj_weight.data.copy_(layer.to_qkv.weight)
    else:
        key, value = layer.to_kv.weight.chunk(2)
        for name, weight in (("q", layer.to_q.weight), ("k", key), ("v", value)):
            getattr(theirs, f"{name}_proj_weight").data.copy_(weight)
    return theirs


# attend


@pytest.mark.parametrize(
    "dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("n, m", [(16, 16), (7, 32), (80, 80)])
@pytest.mark.parametrize("with_bias", [False, True, "by clip"])
def test_attend_is_torchs_in_every_dtype_on_both_sides_of_the_choice(dtype, close, n, m, with_bias):
    query, key, value, bias = (torch.randn(2, 3, 4, size, 8) for size in (n, m, m, m))
    bias = (
        torch.randn(2, 1, 1, n, m)
        if with_bias == "by clip"
        else torch.randn(4, n, m)
        if with_bias
        else None
    )
    exact = [None if x is None else x.double() for x in (query, key, value, bias)]
    expected = F.scaled_dot_product_attention(*exact)
    cast = [None if x is None else x.to(dtype) for x in (query, key, value, bias)]
    torch.testing.assert_close(attend(*cast).double(), expected, atol=close, rtol=close)
    assert attend(*cast).dtype == dtype


def test_attend_chooses_by_length(monkeypatch):
    plain, ways = attention.attention_weights, []
    monkeypatch.setattr(
        attention, "attention_weights", lambda *inputs: ways.append("plain") or plain(*inputs)
    )
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda query, *_, **__: ways.append("fused") or query
    )
    for dtype, length in (
        (torch.float32, 64),
        (torch.float32, 65),
        (torch.bfloat16, 512),
        (torch.bfloat16, 513),
    ):
        x = torch.zeros(1, 1, length, 1, dtype=dtype)
        attend(x, x, x)
    assert ways == ["plain", "fused"] * 2


def test_attention_weights_sum_to_one_and_pass_over_what_is_masked():
    query, key = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    allowed = torch.rand(5, 6) < 0.5
    allowed[:, 0] = True
    weights = attention_weights(query, key, as_bias(allowed, torch.float32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))
    assert (weights[:, ~allowed] == 0).all() and (weights[:, allowed] > 0).all()


def test_apart_is_what_it_says_by_loops():
    alone = torch.tensor([[False, False, True, True], [False] * 4])
    mask = apart(alone)
    for clip in range(2):
        for i in range(4):
            for j in range(4):
                assert mask[clip, i, j] == (i == j or not (alone[clip, i] or alone[clip, j]))


# positions


@given(frames=st.integers(1, 9), reach=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_relative_bias_is_a_number_of_the_distance(frames, reach):
    bias = RelativeBias(2, reach)
    bias.table.data.normal_()
    found = bias(frames)
    for i in range(frames):
        for j in range(frames):
            distance = max(-reach, min(reach, j - i))
            torch.testing.assert_close(found[:, i, j], bias.table[:, reach + distance])


def test_rotary_is_a_rotation_in_the_complex_plane():
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    pairs = torch.complex(x[..., :3], x[..., 3:])
    turn = torch.arange(7.0)[:, None].double() / 10000 ** (torch.arange(3).double() / 3)
    turned = pairs * torch.polar(torch.ones_like(turn), turn)
    torch.testing.assert_close(rotate(x), torch.cat([turned.real, turned.imag], dim=-1))


def test_rotary_scores_know_distances_only():
    query, key = (
        torch.randn(1, 8, dtype=torch.float64).expand(9, 8) for _ in range(2)
    )  # the same in every frame
    scores = rotate(query) @ rotate(key).T
    for distance in range(-8, 9):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))


def test_sinusoids_are_vaswanis():
    found = sinusoids(5, 6, torch.zeros((), dtype=torch.float64))
    for frame in range(5):
        for i in range(3):
            angle = torch.tensor(frame / 10000 ** (2 * i / 6), dtype=torch.float64)
            torch.testing.assert_close(found[frame, i], angle.sin())
            torch.testing.assert_close(found[frame, 3 + i], angle.cos())


def test_places_may_be_told_and_lie_between_frames():
    like = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(
        sinusoids(torch.tensor([0.0, 2, 4]), 6, like), sinusoids(5, 6, like)[::2]
    )
    halves = sinusoids(torch.tensor([[0.5], [1.5]]), 6, like)
    assert halves.shape == (2, 1, 6)
    assert halves[0, 0, 0].item() == pytest.approx(math.sin(0.5))
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(rotate(x[::2], torch.tensor([0, 2, 4])), rotate(x)[::2])


@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_over_time_may_be_told_where_frames_are(positions):
    torch.manual_seed(0)
    layer = TemporalAttention(8, 4, positions).double()
    nn.init.normal_(layer.to_out.weight)
    video, index = torch.randn(2, 8, 5, 2, 2, dtype=torch.float64), torch.arange(5).expand(2, -1)
    if positions not in PLACED:
        with pytest.raises(
            ValueError, match=f"frame_index: expected none with '{positions}' positions, got some"
        ):
            layer(video, frame_index=index)
        return
    torch.testing.assert_close(layer(video, frame_index=index), layer(video))
    torch.testing.assert_close(layer.weights(video, frame_index=index), layer.weights(video))
    later = layer(video, frame_index=index + 3)
    # Rotary positions know distances, so that a later clip is the same clip
    assert torch.allclose(later, layer(video)) == (positions == "rotary")
    spread = layer(video, frame_index=torch.stack([index[0], 2.5 * index[1]]))
    torch.testing.assert_close(spread[0], layer(video)[0])
    assert not torch.allclose(spread[1], layer(video)[1])


# layers


@pytest.mark.parametrize("positions", POSITIONS)
def test_temporal_attention_begins_as_the_identity(clip, positions):
    layer = TemporalAttention(16, 8, positions).double()
    assert torch.equal(layer(clip), clip)
    layer.to_out.bias.data += 1
    assert not torch.equal(layer(clip), clip)


@pytest.mark.parametrize("masked", [False, True])
def test_temporal_attention_is_torchs_with_the_frames_of_a_pixel_as_the_sequence(clip, masked):
    layer = awake(TemporalAttention(16, 8, "none"))
    theirs, expected = torchs(layer), torch.empty_like(clip)
    mask = apart(
        torch.tensor([[False, False, False, True, True], [True, False, False, False, True]])
    )
    found = layer(clip, mask if masked else None)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                line = layer.norm(clip[b, :, :, y, x].T)[None]  # 1 f c
                out, _ = theirs(line, line, line, attn_mask=~mask[b] if masked else None)
                expected[b, :, :, y, x] = clip[b, :, :, y, x] + out[0].T
    torch.testing.assert_close(found, expected)


def test_spatial_attention_is_torchs_with_the_pixels_of_a_frame_as_the_sequence(clip):
    layer = awake(SpatialAttention(16, 8))
    theirs, expected = torchs(layer), torch.empty_like(clip)
    for b in range(2):
        for f in range(5):
            tokens = layer.norm(clip[b, :, f].flatten(1).T)[None]  # 1 (h w) c
            expected[b, :, f] = clip[b, :, f] + theirs(tokens, tokens, tokens)[0][0].T.reshape(
                16, 3, 4
            )
    torch.testing.assert_close(layer(clip), expected)


def test_text_attention_is_torchs_and_takes_a_text_for_each_frame(clip):
    layer = awake(TextAttention(16, 6, 8))
    text = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    theirs, expected = torchs(layer, 6), torch.empty_like(clip)
    for b in range(2):
        for f in range(5):
            tokens = layer.norm(clip[b, :, f].flatten(1).T)[None]
            out, _ = theirs(tokens, text[b, f][None], text[b, f][None])
            expected[b, :, f] = clip[b, :, f] + out[0].T.reshape(16, 3, 4)
    torch.testing.assert_close(layer(clip, text), expected)
    one = text[:, :1].expand_as(text)
    torch.testing.assert_close(layer(clip, text[:, 0]), layer(clip, one))


@pytest.mark.parametrize("positions", POSITIONS)
def test_only_without_positions_a_shuffled_clip_gives_the_shuffled_result(clip, positions):
    layer = awake(TemporalAttention(16, 8, positions))
    order = torch.tensor([3, 0, 4, 1, 2])
    difference = (layer(clip[:, :, order]) - layer(clip)[:, :, order]).abs().max()
    assert difference < 1e-12 if positions == "none" else difference > 1e-3


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_distances_do_not_change_where_a_clip_begins(clip, positions):
    """Two clips that are far apart for each other, as by a mask: the second sees itself as if it stood alone."""
    layer = awake(TemporalAttention(16, 8, positions))
    two = torch.cat([clip, clip], dim=2)
    block = torch.block_diag(torch.ones(5, 5), torch.ones(5, 5)).bool().expand(2, 10, 10)
    torch.testing.assert_close(layer(two, block)[:, :, 5:], layer(clip))


@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_are_those_that_forward_uses(clip, positions):
    layer = awake(TemporalAttention(16, 8, positions))
    mask = apart(torch.tensor([[False, False, True, False, True]] * 2))
    weights = layer.weights(clip, mask)
    assert weights.shape == (2, 2, 3, 4, 5, 5)
    _, _, value, _ = layer._project(clip, mask)  # b (h w) heads f d
    mixed = torch.einsum("bnhwij,bhwnjd->bhwind", weights, value.unflatten(1, (3, 4)))
    found = layer.to_out(mixed.flatten(-2)).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(layer(clip, mask), clip + found)


def test_in_bfloat16_the_layers_stay_close(clip):
    for layer in (awake(TemporalAttention(16, 8)), awake(SpatialAttention(16, 8))):
        exact = layer(clip)
        rounded = layer.bfloat16()(clip.bfloat16())
        assert rounded.dtype == torch.bfloat16
        assert (rounded.double() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match="channels: expected a multiple of the head width 32, got 48"
    ):
        SpatialAttention(48)
    with pytest.raises(
        ValueError,
        match="positions: expected one of relative, rotary, sinusoidal, none; got 'learnt'",
    ):
        TemporalAttention(32, positions="learnt")
