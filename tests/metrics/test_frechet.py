"""Fréchet distance against closed forms, scipy and torchmetrics; streaming against all at once."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from course_lib.metrics import (
    FrechetDistance,
    frechet,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    kernel_distance,
)


def draws(n, d, seed=0, mixed=True):
    """(n, d) from a Gaussian, with a covariance of its own for every seed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (
        x @ torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5 + seed
        if mixed
        else x
    )


def covariance(d, seed):
    return torch.cov(draws(3 * d, d, seed).T).reshape(d, d)


def rotation(d, seed=0):
    return torch.linalg.qr(draws(d, d, seed, mixed=False)).Q


def by_scipy(x, y, ddof=1):
    """The formula as it is usually written, with scipy's square root of the product."""
    (m1, s1), (m2, s2) = ((a.mean(0), np.cov(a.T, ddof=ddof)) for a in (x.numpy(), y.numpy()))
    return (
        ((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    )


# Closed forms


@given(seed=st.integers(0, 1000), d=st.integers(1, 12))
def test_equal_covariances_leave_the_means(seed, d):
    cov, shift = covariance(d, seed), torch.linspace(0, 1, d, dtype=torch.float64)
    result = frechet_from_moments(torch.zeros(d, dtype=torch.float64), cov, shift, cov)
    assert result == pytest.approx(shift.square().sum().item(), abs=1e-9)


def test_a_unit_shift_in_2048_dimensions_is_2048():
    x = draws(8, 2048, mixed=False)
    assert frechet_distance(x, x + 1) == pytest.approx(2048, rel=1e-12)


@given(m=st.floats(-5, 5), s=st.floats(0.01, 5), t=st.floats(0.01, 5))
def test_one_dimension(m, s, t):
    base = draws(50, 1, mixed=False)
    base = (base - base.mean()) / base.std()
    expected = m**2 + (s - t) ** 2
    assert frechet_distance(base * s, base * t + m) == pytest.approx(expected, abs=1e-9)


def test_commuting_covariances():
    a, b = torch.rand(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, zero = rotation(9), torch.zeros(9, dtype=torch.float64)
    result = frechet_from_moments(zero, q * a @ q.T, zero, q * b @ q.T)
    assert result == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-10)


@pytest.mark.parametrize("n", [5, 40])  # fewer and more than d
def test_rotations_shifts_and_the_order_do_not_matter_and_scale_is_squared(n):
    x, y, q = draws(n, 12, 1), draws(n, 12, 2), rotation(12)
    value = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(x @ q + 3, y @ q + 3) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-10)
    assert frechet_distance(x.flip(0), y) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("n", [4, 12, 100])
def test_a_set_is_at_no_distance_from_itself(n):
    x = draws(n, 12)
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-8


# The two forms, and other people's


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(60, 40), (30, 200)])
def test_it_is_what_scipy_finds(n, m, ddof):
    x, y = draws(n, 24, 1), draws(m, 24, 2)
    assert frechet_distance(x, y, ddof) == pytest.approx(by_scipy(x, y, ddof), rel=1e-8)


def test_it_is_what_torchmetrics_finds_on_a_net():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 16, 10)).double().eval()
    net.num_features = 10
    clips = [torch.rand(40, 3, 2, 4, 4, dtype=torch.float64) * scale - 0.5 for scale in (0.9, 0.5)]
    ours, theirs = FrechetDistance(net, "linear"), FrechetInceptionDistance(net, normalize=True)
    for video, real in zip(clips, (True, False), strict=True):
        ours.update(video, real=real)
        theirs.update(video, real=real)
    score = ours.compute()
    assert score.name == "frechet_ddof1[linear]" and score.n == 40
    assert score.value == pytest.approx(theirs.compute().item(), rel=1e-8)


@given(n=st.integers(2, 40), m=st.integers(2, 40), seed=st.integers(0, 100))
def test_the_nuclear_form_agrees_with_the_symmetric_one(n, m, seed):
    x, y = draws(n, 6, seed), draws(m, 6, seed + 1)
    moments = [moment for z in (x, y) for moment in (z.mean(dim=0), torch.cov(z.T))]
    # where n <= d, the symmetric form takes the root of rounding errors
    assert frechet_distance(x, y) == pytest.approx(
        frechet_from_moments(*moments), rel=1e-9, abs=1e-6
    )


def test_the_forms_are_chosen_by_the_number_of_samples(monkeypatch):
    called = []
    monkeypatch.setattr(frechet, "_symmetric_trace", lambda *covariances: called.append(1) or 0.0)
    for n, m, symmetric in ((13, 13, True), (13, 12, False), (12, 13, False), (4, 500, False)):
        called.clear()
        frechet_distance(draws(n, 12, 1), draws(m, 12, 2))
        assert bool(called) is symmetric


def test_fewer_samples_than_dimensions_lose_no_digits():
    x, y = draws(10, 4, 1), draws(10, 4, 2)
    into = rotation(64)[:4]  # the same Gaussians, in a corner of 64 dimensions
    assert frechet_distance(x @ into, y @ into) == pytest.approx(frechet_distance(x, y), rel=1e-12)


def test_a_feature_that_never_varies_costs_no_digits():
    x, y = draws(60, 6, 1), draws(60, 6, 2)
    exact = frechet_distance(x, y)
    x, y = (torch.cat([z[:, :3], torch.ones(60, 2), z[:, 3:]], dim=1) for z in (x, y))
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-12)
    moments = [moment for z in (x, y) for moment in (z.mean(dim=0), torch.cov(z.T))]
    assert frechet_from_moments(*moments) == pytest.approx(exact, rel=1e-6)


def test_ddof_scales_the_covariances_only():
    x, y = draws(16, 5, 1), draws(16, 5, 2)
    means = (x.mean(0) - y.mean(0)).square().sum().item()
    ratio = (frechet_distance(x, y, ddof=0) - means) / (frechet_distance(x, y) - means)
    assert ratio == pytest.approx(15 / 16, rel=1e-10)


# Streaming


def flat(video):
    return video.flatten(1)


@given(
    n=st.integers(2, 60),
    m=st.integers(2, 60),
    batch=st.integers(1, 60),
    ddof=st.sampled_from([0, 1]),
)
def test_batches_of_any_size_give_what_all_features_give(n, m, batch, ddof):
    metric = FrechetDistance(flat, "flat", ddof=ddof)
    sides = [draws(count, 8, seed).sigmoid() - 0.5 for count, seed in ((n, 1), (m, 2))]
    for side, real in zip(sides, (True, False), strict=True):
        for part in side.split(batch):
            metric.update(part.reshape(-1, 2, 1, 2, 2), real=real)
    score = metric.compute()
    assert score.value == pytest.approx(frechet_distance(*sides, ddof), rel=1e-9, abs=1e-12)
    assert score.n == min(n, m) and score.name == f"frechet_ddof{ddof}[flat]"


@pytest.mark.parametrize(("offset", "digits"), [(1e3, 1e-9), (1e6, 1e-7)])
def test_features_far_from_zero_lose_little_where_plain_sums_lose_much(offset, digits):
    def far(video):
        return flat(video) + offset

    far_net = nn.Module()
    far_net.forward, far_net.num_features = far, 8
    ours, theirs = (
        FrechetDistance(far, "far"),
        FrechetInceptionDistance(far_net.eval(), normalize=True),
    )
    sides = [draws(200, 8, seed).sigmoid() - 0.5 for seed in (1, 2)]
    for side, real in zip(sides, (True, False), strict=True):
        for part in side.reshape(-1, 2, 1, 2, 2).split(16):
            ours.update(part, real=real)
            theirs.update(part, real=real)
    exact = frechet_distance(*sides)
    assert ours.compute().value == pytest.approx(exact, rel=digits)
    assert abs(theirs.compute().item() / exact - 1) > 10 * abs(ours.compute().value / exact - 1)


def test_memory_does_not_grow():
    metric = FrechetDistance(flat, "flat")
    for seed in range(20):
        metric.update((draws(16, 8, seed).sigmoid() - 0.5).reshape(-1, 2, 1, 2, 2), real=True)
    assert sum(map(len, metric.real)) <= 2 * 9


def test_processes_join_and_the_real_side_can_stay():
    sides = [(draws(50, 8, seed).sigmoid() - 0.5).reshape(-1, 2, 1, 2, 2) for seed in (1, 2)]
    single, first, second = (FrechetDistance(flat, "flat", cache_real=True) for _ in range(3))
    for metric, rows in ((single, slice(None)), (first, slice(0, 31)), (second, slice(31, None))):
        metric.update(sides[0][rows], real=True)
        metric.update(sides[1][rows], real=False)
    first.merge_state(second)
    expected = single.compute().value
    assert first.compute().value == pytest.approx(expected, rel=1e-9)
    single.reset()
    single.update(sides[1], real=False)
    assert single.compute().value == pytest.approx(expected, rel=1e-9)


# The bias and its cure


def test_the_bias_is_the_known_one():
    d, n = 32, 1024
    values = [
        frechet_distance(*(draws(n, d, 2 * i + side, mixed=False) for side in (0, 1)))
        for i in range(40)
    ]
    # 2d/n from the means; to first order E|S1 - S2|^2 / 4 = d(d + 1)/(2n) from the covariances
    assert np.mean(values) == pytest.approx(d * (d + 5) / (2 * n), rel=0.02)


def test_extrapolation_removes_it():
    d, n = 16, 512
    results = []
    for i in range(12):
        x, y = (draws(n, d, 2 * i + side, mixed=False) for side in (0, 1))
        results.append(frechet_infinity(x, 1.2 * y + 0.1))
    truth = d * (0.2**2 + 0.1**2)
    plain = np.mean([result.distances[0] for result in results])
    assert plain - truth > 0.3
    assert abs(np.mean([result.value for result in results]) - truth) < 0.05
    assert np.mean([result.bias for result in results]) == pytest.approx(plain - truth, rel=0.1)
    covered = [low <= truth <= high for low, high in (result.interval for result in results)]
    assert sum(covered) >= 11
    assert results[0].splits == (1, 2, 3, 4, 6, 8)


def test_extrapolation_depends_on_the_seed_only():
    x, y = draws(100, 8, 1), draws(80, 8, 2)
    first = frechet_infinity(x, y, seed=1)
    assert frechet_infinity(x, y, seed=1) == first != frechet_infinity(x, y, seed=2)
    assert first.distances[0] == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert frechet_infinity(x, y, seed=1, jackknife_groups=0) == first._replace(interval=None)
    assert first.interval[0] < first.value < first.interval[1]
    assert first.splits == (1, 2, 3, 4)  # 80 // 4 is the last that leaves parts of 2d = 16


def test_kernel_distance_has_no_such_bias():
    values = [
        kernel_distance(*(draws(32, 16, 2 * i + side, mixed=False) for side in (0, 1)))
        for i in range(60)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x[:1], x), "real: samples: expected at least 2, got 1"),
        (
            lambda x: frechet_distance(x, x[:, :3]),
            "generated: expected the width of real, 8",
        ),
        (lambda x: frechet_distance(x[0], x), r"real: expected \(n, d\)"),
        (lambda x: frechet_distance(x, x * math.inf), "generated: expected finite values"),
        (lambda x: frechet_distance(x, x, ddof=2), "ddof: expected an integer from 0 to 1"),
        (
            lambda x: FrechetDistance(flat, "flat", ddof=-1),
            "ddof: expected an integer from 0 to 1",
        ),
        (
            lambda x: frechet_infinity(x[:15], x),
            "features of width 8: expected at least 16, got 15",
        ),
        (
            lambda x: frechet_infinity(x, x, jackknife_groups=1),
            "jackknife_groups: expected 0 or at least 2, got 1",
        ),
        (
            lambda x: frechet_from_moments(x[0], x[:8], x[0], x[:8]),
            "cov_1: expected a symmetric matrix",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(draws(40, 8))


def test_a_side_without_enough_samples_is_named():
    metric = FrechetDistance(flat, "flat")
    metric.update(torch.zeros(4, 2, 1, 2, 2), real=True)
    metric.update(torch.zeros(1, 2, 1, 2, 2), real=False)
    with pytest.raises(ValueError, match="generated samples: expected at least 2, got 1"):
        metric.compute()


def moments(**changes):
    eye = torch.eye(3, dtype=torch.float64)
    return {"mean_1": eye[0], "cov_1": eye, "mean_2": eye[1], "cov_2": 2 * eye} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean_1": torch.tensor(0.5)}, r"mean_1: expected \(d\), got shape \(\)"),
        ({"mean_2": torch.tensor(0.5)}, r"mean_2: expected \(d\), got shape \(\)"),
        ({"mean_2": torch.ones(1)}, r"mean_2: expected \(d\) with d = 3, got \(1,\)"),
        ({"mean_1": torch.ones(1)}, r"mean_2: expected \(d\) with d = 1, got \(3,\)"),
        ({"mean_2": torch.ones(3, 1)}, r"mean_2: expected \(d\), got"),
        ({"cov_1": torch.tensor(1.0)}, r"cov_1: expected \(d, d\), got"),
        ({"cov_2": torch.ones(1, 1)}, r"cov_2: expected \(d, d\) with d = 3"),
        ({"cov_2": torch.ones(3, 1)}, r"cov_2: expected \(d, d\) with d = 3"),
        ({"cov_1": torch.ones(3)}, r"cov_1: expected \(d, d\), got"),
        ({"mean_1": torch.ones(3).long()}, "mean_1: expected floating point"),
        ({"cov_2": torch.eye(3).long()}, "cov_2: expected floating point"),
        ({"cov_2": torch.eye(3) * math.nan}, "cov_2: expected finite values"),
        ({"mean_2": torch.ones(3) * math.inf}, "mean_2: expected finite values"),
        ({"cov_2": -torch.eye(3)}, "cov_2: expected variances of at least 0, got -1"),
    ],
)
def test_moments_that_do_not_fit_are_refused(changes, message):
    assert frechet_from_moments(**moments()) == pytest.approx(2 + 3 * (2**0.5 - 1) ** 2)
    with pytest.raises(ValueError, match=message):
        frechet_from_moments(**moments(**changes))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"jackknife_groups": -1}, "jackknife_groups: expected an integer from 0 to 40, got -1"),
        ({"jackknife_groups": 41}, "jackknife_groups: expected an integer from 0 to 40, got 41"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"ddof": 2}, "ddof: expected an integer from 0 to 1"),
    ],
)
def test_extrapolation_refuses(kwargs, message):
    x = draws(40, 4)
    with pytest.raises(ValueError, match=message):
        frechet_infinity(x, x, **kwargs)
    with pytest.raises(ValueError, match="generated: expected the width of real, 4, got 3"):
        frechet_infinity(x, x[:, :3])
