"""KID, precision and recall, Inception Score, against torchmetrics and brute force."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.inception import InceptionScore as TheirInceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from course_lib.metrics import (
    DistributionScores,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    distribution,
    frechet_distance,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
    precision_recall,
)


def draws(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(video):
    return video.flatten(1)


def as_video(features):
    """(n, 8) in [-1, 1] as tiny videos."""
    return features.clamp(-1, 1).reshape(-1, 2, 1, 2, 2)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(distribution, "ROW_BLOCK", 7)


# Kernel distance


@pytest.mark.parametrize(("degree", "coef", "gamma"), [(3, 1.0, None), (2, 0.5, 0.1)])
def test_kid_is_that_of_torchmetrics(degree, coef, gamma, small_blocks):
    x, y = draws(30, 5), draws(30, 5, 1) * 1.5
    expected = poly_mmd(x, y, degree, gamma, coef).item()
    assert kernel_distance(x, y, degree=degree, coef=coef, gamma=gamma) == pytest.approx(
        expected, rel=1e-12
    )


def test_the_published_values_of_jedi():
    x = torch.arange(1.0, 10).reshape(3, 3)
    y = torch.tensor([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    jedi = dict(degree=2, coef=0, unbiased=False)
    assert kernel_distance(x, y, **jedi) == pytest.approx(270.7, abs=0.05)
    assert kernel_distance(x, y, gamma=1, **jedi) == pytest.approx(2436.5, rel=1e-12)


def test_sets_of_two_sizes_by_hand(small_blocks):
    x, y = draws(4, 3), draws(6, 3, 1)

    def kernel(a, b):
        return ((a @ b).item() / 3 + 1) ** 3

    within = [
        sum(kernel(a, b) for a in z for b in z if a is not b) / (len(z) * (len(z) - 1))
        for z in map(list, (x, y))
    ]
    cross = sum(kernel(a, b) for a in x for b in y) / 24
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * cross, rel=1e-12)
    within = [sum(kernel(a, b) for a in z for b in z) / len(z) ** 2 for z in (x, y)]
    assert kernel_distance(x, y, unbiased=False) == pytest.approx(
        sum(within) - 2 * cross, rel=1e-12
    )


def test_equal_sets():
    x = draws(20, 3)
    assert kernel_distance(x, x, unbiased=False) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(x, x) < 0


def test_subsets_are_those_of_torchmetrics():
    x, y = draws(40, 8).tanh(), draws(50, 8, 1).tanh() * 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        theirs = KernelInceptionDistance(nn.Flatten(), subsets=7, subset_size=20)
    theirs.update(as_video(x), real=True)
    theirs.update(as_video(y), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = [value.item() for value in theirs.compute()]
    result = kernel_distance_subsets(x, y, num_subsets=7, subset_size=20, seed=5)
    assert list(result) == pytest.approx(expected, rel=1e-10)


def test_the_mean_over_many_subsets_is_the_distance_of_all():
    x, y = draws(60, 4), draws(60, 4, 1) * 1.5
    mean, std = kernel_distance_subsets(x, y, num_subsets=400, subset_size=30)
    assert mean == pytest.approx(kernel_distance(x, y), abs=4 * std / 20)


# Precision and recall


def brute_force(samples, manifold, k):
    """Share of samples within a ball of the manifold, one pair at a time."""
    radii = [sorted((a - b).norm().item() for b in manifold)[k] for a in manifold]
    hit = [
        any((s - a).norm().item() <= radius for a, radius in zip(manifold, radii, strict=True))
        for s in samples
    ]
    return sum(hit) / len(hit)


@given(seed=st.integers(0, 100), n=st.integers(5, 20), m=st.integers(5, 20), k=st.integers(1, 4))
def test_precision_and_recall_by_brute_force(seed, n, m, k):
    x, y = draws(n, 3, seed), draws(m, 3, seed + 1) * 0.7 + 0.3
    assert precision_recall(x, y, k) == pytest.approx((brute_force(y, x, k), brute_force(x, y, k)))
    assert precision_recall(y, x, k) == precision_recall(x, y, k)[::-1]


def test_what_the_two_numbers_mean():
    x = draws(100, 4)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    assert precision_recall(x, x[:1].expand(50, 4)) == (1, 0.01)  # collapsed to one real sample
    few = x[:5].repeat(10, 1) + 0.01 * draws(50, 4, 1)
    precision, recall = precision_recall(x, few)
    assert precision == 1 and recall < 0.1
    precision, recall = precision_recall(
        x, 3 * draws(400, 4, 2)
    )  # covers everything, with much else
    assert precision < 0.6 and recall > 0.9


def test_what_float32_cannot_tell_apart_is_one_sample(small_blocks):
    x = draws(40, 6) + 5
    noisy = x + 1e-7 * draws(40, 6, 1)
    assert precision_recall(x, noisy[:1].expand(20, 6)) == (1, 1 / 40)
    assert precision_recall(x, noisy) == (1, 1)


# Inception Score


def one_hot(n, classes=10):
    return 100.0 * torch.eye(classes).repeat(n // classes, 1)


def test_perfect_samples_score_the_number_of_classes_and_less_in_small_splits():
    assert inception_score(one_hot(200)).tolist() == pytest.approx([10], rel=1e-12)
    in_ten = inception_score(one_hot(200), num_splits=10)
    assert len(in_ten) == 10 and in_ten.mean().item() == pytest.approx(8.0, abs=0.4)
    means = [
        inception_score(one_hot(200), num_splits=10, seed=seed).mean().item() for seed in range(30)
    ]
    assert sum(means) / 30 == pytest.approx(7.997, abs=0.2)


@pytest.mark.parametrize("splits", [1, 4])
def test_inception_score_is_that_of_torchmetrics(splits):
    logits = (3 * draws(40, 8)).clamp(-1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features
        theirs = TheirInceptionScore(nn.Flatten(), splits=splits)
    theirs.update(as_video(logits))
    metric = InceptionScore(flat, "flat", num_splits=splits, seed=3)
    for part in as_video(logits).split(7):
        metric.update(part)
    scores = metric.compute()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the std of one split
        torch.manual_seed(3)
        mean, std = theirs.compute()
    assert scores["mean"].value == pytest.approx(mean.item(), rel=1e-6)
    assert scores["mean"].name == (
        "inception_score_1split[flat]" if splits == 1 else "inception_score_4splits[flat]"
    )
    if splits > 1:  # theirs has ddof 1
        assert scores["std"].value * (4 / 3) ** 0.5 == pytest.approx(std.item(), rel=1e-6)
        assert scores["std"].name == "inception_score_4splits_std_ddof0[flat]"
    else:
        assert set(scores) == {"mean"}


@given(seed=st.integers(0, 100), scale=st.floats(0, 1e4), k=st.integers(1, 12))
def test_inception_score_lies_between_1_and_the_number_of_classes(seed, scale, k):
    value = inception_score(scale * draws(24, k, seed)).item()
    assert 1 - 1e-9 <= value <= k + 1e-9


def test_samples_that_are_all_alike_or_all_unsure_score_1():
    assert inception_score(one_hot(10)[:1].expand(30, 10)).item() == pytest.approx(1)
    assert inception_score(torch.zeros(30, 10)).item() == pytest.approx(1)


# The metrics that stream


def filled(metric, batch=64):
    for features, real in ((draws(40, 8).tanh(), True), (draws(30, 8, 1).tanh() * 0.5, False)):
        for part in as_video(features).split(batch):
            metric.update(part, real=real)
    return metric


@pytest.mark.parametrize("make", [KernelDistance, PrecisionRecall, DistributionScores])
def test_the_batching_does_not_matter(make):
    assert filled(make(flat, "flat")).compute() == filled(make(flat, "flat"), batch=7).compute()


def test_one_pass_serves_all():
    x, y = draws(40, 8).tanh(), draws(30, 8, 1).tanh() * 0.5
    scores = filled(DistributionScores(flat, "flat")).compute()
    precision, recall = precision_recall(x, y)
    expected = {
        "frechet": ("frechet_ddof1[flat]", frechet_distance(x, y)),
        "kid": ("kid_cubic_unbiased[flat]", kernel_distance(x, y)),
        "precision": ("precision_knn3[flat]", precision),
        "recall": ("recall_knn3[flat]", recall),
    }
    assert {key: (score.name, score.value) for key, score in scores.items()} == expected
    assert {score.n for score in scores.values()} == {30}
    assert filled(KernelDistance(flat, "flat")).compute() == scores["kid"]
    assert filled(PrecisionRecall(flat, "flat")).compute()["recall"] == scores["recall"]


# Refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel_distance(x[:1], x), "real: samples: expected at least 2, got 1"),
        (lambda x: kernel_distance(x, x[:, :2]), "generated: expected the width of real, 4, got 2"),
        (lambda x: kernel_distance(x, x * math.nan), "generated: expected finite"),
        (
            lambda x: kernel_distance(x, x, degree=0),
            "degree: expected an integer of at least 1",
        ),
        (lambda x: kernel_distance_subsets(x, x), "real: samples: expected at least 1000, got 20"),
        (
            lambda x: kernel_distance_subsets(x, x, subset_size=5, num_subsets=0),
            "num_subsets: expected an integer of at least 1, got 0",
        ),
        (lambda x: precision_recall(x, x[:3]), "generated: samples: expected at least 4, got 3"),
        (lambda x: precision_recall(x, x, k=0), "k: expected an integer of at least 1, got 0"),
        (
            lambda x: inception_score(x, num_splits=11),
            "logits: samples: expected at least 22, got 20",
        ),
        (
            lambda x: inception_score(x, num_splits=0),
            "splits: expected an integer of at least 1",
        ),
        (lambda x: inception_score(x[0]), r"logits: expected \(n, d\)"),
        (
            lambda x: InceptionScore(flat, "flat", num_splits=0),
            "splits: expected an integer of at least 1",
        ),
        (
            lambda x: InceptionScore(nn.Flatten(), "flat"),
            "net: expected a network in evaluation mode",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(draws(20, 4))


def test_too_few_samples_are_named():
    metric = InceptionScore(flat, "flat", num_splits=10)
    metric.update(as_video(draws(19, 8)))
    with pytest.raises(ValueError, match="samples: expected at least 20, got 19"):
        metric.compute()
    bank = DistributionScores(flat, "flat")
    bank.update(as_video(draws(3, 8)), real=True)
    with pytest.raises(ValueError, match="real samples: expected at least 4, got 3"):
        bank.compute()


@pytest.mark.parametrize(
    ("function", "kwargs", "name"),
    [
        (kernel_distance, {"degree": 1.5}, "degree"),
        (kernel_distance, {"degree": math.nan}, "degree"),
        (kernel_distance, {"degree": True}, "degree"),
        (kernel_distance, {"coef": math.nan}, "coef"),
        (kernel_distance, {"coef": math.inf}, "coef"),
        (kernel_distance, {"gamma": math.nan}, "gamma"),
        (kernel_distance, {"gamma": 0.0}, "gamma"),
        (kernel_distance_subsets, {"subset_size": -1}, "subset_size"),
        (kernel_distance_subsets, {"subset_size": 1}, "subset_size"),
        (kernel_distance_subsets, {"subset_size": 5.0}, "subset_size"),
        (kernel_distance_subsets, {"subset_size": 5, "num_subsets": 1.5}, "num_subsets"),
        (kernel_distance_subsets, {"subset_size": 5, "seed": "x"}, "seed"),
        (precision_recall, {"k": 1.5}, "k"),
        (precision_recall, {"k": -1}, "k"),
        (inception_score, {"num_splits": 1.5}, "num_splits"),
        (inception_score, {"seed": "x"}, "seed"),
        (InceptionScore, {"num_splits": 1.5}, "num_splits"),
        (InceptionScore, {"seed": "x"}, "seed"),
    ],
)
def test_numbers_that_no_estimator_can_use_are_refused(function, kwargs, name):
    x = draws(20, 4)
    args = {InceptionScore: (flat, "flat"), inception_score: (x,)}.get(function, (x, x))
    # Without the tests' type checker, which refuses fractions of an int itself
    function = getattr(function, "__wrapped__", function)
    with pytest.raises((ValueError, TypeError), match=f"{name}"):
        function(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused(dtype):
    x, integers = draws(20, 4), torch.ones(20, 4, dtype=dtype)
    for distance in (kernel_distance, precision_recall, frechet_distance):
        with pytest.raises(ValueError, match="real: expected floating point"):
            distance(integers, x)
        with pytest.raises(ValueError, match="generated: expected floating point"):
            distance(x, integers)
    with pytest.raises(ValueError, match="logits: expected floating point"):
        inception_score(integers)


def exact(samples, manifold, k=3):
    """Share of samples in a ball, from differences: exact for integers."""
    radii = torch.stack([(manifold - row).square().sum(1) for row in manifold]).kthvalue(k + 1)
    distances = torch.stack([(manifold - row).square().sum(1) for row in samples])
    return (distances <= radii.values).any(dim=1).double().mean().item()


@pytest.mark.parametrize("offset", [0, 1000, 10**6])
@pytest.mark.parametrize(
    "make",
    [
        lambda n, seed: (draws(n, 16, seed) > 0).double(),
        lambda n, seed: (draws(n, 64, seed) > 2).double(),  # mostly zeros
        lambda n, seed: (3 * draws(n, 8, seed)).round(),
        lambda n, seed: (1e5 * draws(n, 8, seed)).round(),
        lambda n, seed: (8 * draws(n, 8, seed)).round() / 4,
        lambda n, seed: draws(n, 8, seed),
        lambda n, seed: torch.cat([(draws(n, 4, seed) > 0).double(), torch.ones(n, 4)], 1),
    ],
)
def test_a_ball_includes_its_border(make, offset, small_blocks):
    for seed in (0, 2):
        real, generated = make(200, seed) + offset, make(150, seed + 1) + offset
        expected = (exact(generated, real), exact(real, generated))
        assert precision_recall(real, generated) == expected


def test_the_border_of_decimal_features_is_that_of_whole_numbers():
    real, generated = (3 * draws(100, 8)).round(), (3 * draws(100, 8, 1)).round()
    assert precision_recall(real / 10, generated / 10) == precision_recall(real, generated)
