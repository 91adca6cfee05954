"""Noise against torch.randn and its moments."""

import math

import pytest
import torch

from course_lib.diffusion import offset_noise, sample_noise

SHAPE = (4, 3, 2, 5, 5)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_independent_noise_is_plain_noise():
    assert torch.equal(sample_noise(SHAPE, rng(3)), torch.randn(SHAPE, generator=rng(3)))
    assert sample_noise((2, 5), rng()).shape == (2, 5)
    assert sample_noise(SHAPE, rng(), 0.5, torch.float64).dtype == torch.float64


@pytest.mark.parametrize("frame_correlation", [0.0, 0.3, 0.8, 1])
def test_correlated_noise_has_unit_variance_and_that_correlation(frame_correlation):
    noise = sample_noise((6, 3, 4, 64, 64), rng(), frame_correlation)
    frames = noise.transpose(0, 2).flatten(1)  # f n
    n = frames.shape[1]
    expected = torch.full((4, 4), float(frame_correlation)).fill_diagonal_(1)
    assert (frames @ frames.T / n - expected).abs().max() < 5 * math.sqrt(2 / n)
    assert abs(frames.mean()) < 5 / math.sqrt(n)
    # videos and channels are independent
    rows = noise.transpose(1, 2)[:, 0].flatten(0, 1).flatten(1)  # (b c) n
    others = rows @ rows.T / rows.shape[1] - torch.eye(18)
    assert others.abs().max() < 5 * math.sqrt(2 / rows.shape[1])


def test_all_noise_can_be_shared():
    noise = sample_noise(SHAPE, rng(), 1)
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))


@pytest.mark.parametrize("frame_correlation", [0, 0.4])
def test_each_row_is_what_its_own_generator_draws(frame_correlation):
    batch = sample_noise(SHAPE, [rng(seed) for seed in range(4)], frame_correlation)
    for seed in (3, 0, 2, 1):
        row = sample_noise((1, *SHAPE[1:]), rng(seed), frame_correlation)
        assert torch.equal(batch[seed : seed + 1], row)
    # one generator in every place draws on from row to row
    one = rng()
    in_turn = torch.cat([sample_noise((1, *SHAPE[1:]), one) for _ in range(4)])
    one = rng()
    assert torch.equal(sample_noise(SHAPE, [one] * 4), in_turn)


@pytest.mark.parametrize("noise_offset", [0, 0.1, 2.0])
def test_offset_noise_shifts_whole_videos_by_channel(noise_offset):
    noise = sample_noise((400, 3, 2, 4, 4), rng())
    shift = offset_noise(noise, noise_offset, rng(1)) - noise
    assert (shift - shift[:, :, :1, :1, :1]).abs().max() < 1e-6
    shifts = shift[:, :, 0, 0, 0].flatten()
    assert shifts.std().item() == pytest.approx(noise_offset, rel=0.1)
    assert len(shifts.unique()) == (1200 if noise_offset else 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample_noise(SHAPE, rng(), 1.1),
            "frame_correlation: expected a finite number at least 0 and at most 1, got 1.1",
        ),
        (
            lambda: sample_noise(SHAPE, rng(), -0.1),
            "frame_correlation: expected a finite number at least 0 and at most 1, got -0.1",
        ),
        (
            lambda: sample_noise((2, 3, 8, 8), rng(), 0.5),
            r"shape: expected \(b, c, f, h, w\) .*, got \(2, 3, 8, 8\)",
        ),
        (
            lambda: sample_noise(SHAPE, [rng(), rng()]),
            "generator: expected one, or a list of 4, one for each row; got a list of 2",
        ),
        (
            lambda: offset_noise(torch.zeros(SHAPE), -0.1, rng()),
            "noise_offset: expected a finite number at least 0, got -0.1",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
