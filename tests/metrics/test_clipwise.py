"""Means over clips: intervals against textbooks; batches, merging and resets change nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from course_lib.metrics.clipwise import PerClipMetric, mean_score, proportion_score
from course_lib.metrics.intervals import mean_interval
from course_lib.metrics.score import Score


class Brightness(PerClipMetric):
    """Two numbers per clip, the smallest metric there can be."""

    def __init__(self):
        super().__init__(
            {"mean": "brightness_mean[test]", "top": "brightness_max[test]"}, {"top": "cd"}
        )

    def update(self, video):
        self._append(mean=video.mean(dim=1), top=video.amax(dim=1))


class Mean(PerClipMetric):
    def __init__(self):
        super().__init__({"mean": "mean"})

    def update(self, video):
        self._append(mean=video.mean(dim=1))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_the_interval_of_a_mean_is_students(values):
    score = mean_score("x", torch.tensor(values, dtype=torch.float64), "px")
    assert score.value == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert (score.n, score.unit) == (len(values), "px")
    if max(values) - min(values) > 1e-3:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert score.interval == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_is_that_of_scipys_t_test(confidence):
    x = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = stats.ttest_1samp(x, 0).confidence_interval(confidence)
    mean, low, high = mean_interval(x, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert mean == pytest.approx(x.mean().item(), rel=1e-12)
    assert mean_interval(x.tolist(), confidence) == (mean, low, high)
    with pytest.raises(ValueError, match="x: expected at least 2, got 1"):
        mean_interval([1.0])


def test_equal_values_have_an_interval_of_no_width_and_one_value_has_none():
    assert mean_score("x", torch.full((3,), 0.5)).interval == (0.5, 0.5)
    assert mean_score("x", torch.tensor([2.0])) == Score("x", 2.0, 1)


def test_a_clip_without_a_value_is_left_out():
    assert mean_score("x", torch.tensor([1.0, math.nan, 3.0])).n == 2
    assert mean_score("x", torch.tensor([1.0, math.nan, 3.0])).value == 2.0
    empty = mean_score("x", torch.tensor([math.nan, math.nan]))
    assert math.isnan(empty.value) and empty.n == 0 and empty.interval is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(1000, 6, generator=generator, dtype=torch.float64) + 3
    hits = sum(low <= 3 <= high for low, high in (mean_score("x", row).interval for row in draws))
    assert 0.93 < hits / 1000 < 0.97  # 3 standard errors are 0.02


@given(st.integers(1, 60), st.data())
def test_the_interval_of_a_share_is_wilsons(n, data):
    hits = data.draw(st.integers(0, n))
    score = proportion_score("x", hits, n)
    z, p = stats.norm.ppf(0.975), hits / n
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert score.value == p
    assert score.interval == pytest.approx(expected, abs=1e-9)
    assert 0 <= score.interval[0] <= p <= score.interval[1] <= 1


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="accuracy: expected at least 1, got 0"):
        proportion_score("accuracy", 0, 0)


def clips(n=7):
    return torch.rand(n, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_batches_do_not_matter(sizes):
    metric = Brightness()
    for batch in clips().split(sizes):
        metric.update(batch)
    assert metric.compute() == {
        "mean": mean_score("brightness_mean[test]", clips().mean(dim=1)),
        "top": mean_score("brightness_max[test]", clips().amax(dim=1), "cd"),
    }
    assert torch.equal(metric.per_clip()["top"], clips().amax(dim=1).double())
    assert metric.per_clip()["top"].dtype == torch.float64


def test_two_processes_give_the_result_of_one():
    first, second, single = Brightness(), Brightness(), Brightness()
    first.update(clips()[:3])
    second.update(clips()[3:])
    single.update(clips())
    second.merge_state(first)  # what torchmetrics does with states from several processes
    assert second.compute() == single.compute()


def test_a_single_number_comes_as_a_score():
    metric = Mean()
    metric.update(clips())
    assert isinstance(metric.compute(), Score)
    assert str(metric.compute()).startswith("mean 0.")


def test_nothing_in_nothing_out():
    metric = Brightness()
    metric.update(clips())
    metric.reset()
    for ask in (Brightness.means, Brightness.per_clip):
        with pytest.raises(ValueError, match="clips: expected at least 1, got 0"):
            ask(metric)


@pytest.mark.parametrize(
    ("hits", "n", "name"), [(3, 2, "hits"), (-1, 2, "hits"), (0.5, 2, "hits"), (1, 2.5, "n")]
)
def test_trials_are_counted(hits, n, name):
    with pytest.raises(ValueError, match=f"{name}: expected an integer"):
        getattr(proportion_score, "__wrapped__", proportion_score)("x", hits, n)


def test_means_are_of_numbers():
    for values in (torch.tensor([1, 2]), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="values: expected"):
            mean_score("x", values)
    with pytest.raises(ValueError, match="x: expected .* without NaN"):
        mean_interval([1.0, math.nan])
    for confidence in (math.nan, 0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match="confidence: expected a finite number above 0"):
            mean_interval([1.0, 2.0], confidence)
