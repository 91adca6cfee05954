"""Positions against complex rotations, loops and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.nn.positions import (
    RelativePositionBias,
    apply_rotary_emb,
    coord_features,
    sinusoidal_embedding,
)


@given(frames=st.integers(1, 9), max_distance=st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_relative_bias_is_a_function_of_the_distance(frames, max_distance):
    layer = RelativePositionBias(2, max_distance)
    layer.embedding.data.normal_()
    bias = layer(frames)
    for i in range(frames):
        for j in range(frames):
            distance = max(-max_distance, min(max_distance, j - i))
            expected = layer.embedding[:, max_distance + distance]
            torch.testing.assert_close(bias[:, i, j], expected)


def test_rotary_is_a_rotation_in_the_complex_plane():
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    pairs = torch.complex(x[..., :3], x[..., 3:])
    theta = torch.arange(7.0)[:, None].double() / 10000 ** (torch.arange(3).double() / 3)
    rotated = pairs * torch.polar(torch.ones_like(theta), theta)
    expected = torch.cat([rotated.real, rotated.imag], dim=-1)
    torch.testing.assert_close(apply_rotary_emb(x), expected)


def test_rotary_scores_depend_on_distances_only():
    # The same query and key in every frame
    query, key = (torch.randn(1, 8, dtype=torch.float64).expand(9, 8) for _ in range(2))
    scores = apply_rotary_emb(query) @ apply_rotary_emb(key).T
    for distance in range(-8, 9):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))


def test_sinusoids_are_vaswanis():
    embedding = sinusoidal_embedding(5, 6, torch.zeros((), dtype=torch.float64))
    for frame in range(5):
        for i in range(3):
            angle = torch.tensor(frame / 10000 ** (2 * i / 6), dtype=torch.float64)
            torch.testing.assert_close(embedding[frame, i], angle.sin())
            torch.testing.assert_close(embedding[frame, 3 + i], angle.cos())


def test_positions_may_be_given_and_lie_between_frames():
    ref = torch.zeros((), dtype=torch.float64)
    sparse = sinusoidal_embedding(torch.tensor([0.0, 2, 4]), 6, ref)
    torch.testing.assert_close(sparse, sinusoidal_embedding(5, 6, ref)[::2])
    halves = sinusoidal_embedding(torch.tensor([[0.5], [1.5]]), 6, ref)
    assert halves.shape == (2, 1, 6)
    assert halves[0, 0, 0].item() == pytest.approx(math.sin(0.5))
    x = torch.randn(5, 6, dtype=torch.float64)
    sparse = apply_rotary_emb(x[::2], torch.tensor([0, 2, 4]))
    torch.testing.assert_close(sparse, apply_rotary_emb(x)[::2])


def test_coordinates_are_waves_of_the_position_in_the_frame():
    features = coord_features(4, 6, torch.zeros(1, dtype=torch.float64))[0]
    # Centres of pixels in [-1, 1]
    y, x = ((torch.arange(n).double() + 0.5) / n * 2 - 1 for n in (4, 6))
    for first, frequency in ((0, 0.5), (4, 1.0), (8, 2.0)):
        for offset, coord in ((0, y[:, None]), (2, x[None])):
            theta = (frequency * torch.pi * coord).expand(4, 6)
            expected = torch.stack([theta.sin(), theta.cos()])
            channels = features[first + offset : first + offset + 2]
            torch.testing.assert_close(channels, expected)
    assert features.flatten(1).unique(dim=1).shape[1] == 24  # no two pixels are alike


def test_coordinates_need_no_float64_of_the_device():
    """Apple's GPUs have none."""

    class Without64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            on_device = isinstance(out, torch.Tensor) and out.is_meta
            assert not (on_device and out.dtype == torch.float64), func
            return out

    ref = torch.empty(0, dtype=torch.float16, device="meta")
    with Without64():
        out = coord_features(4, 6, ref)
    assert (out.device, out.dtype, out.shape) == (ref.device, ref.dtype, (1, 12, 4, 6))
