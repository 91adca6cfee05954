"""Metrics with one number per clip: means over clips, proportions, and their 95 % intervals."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from course_lib.metrics.features import cat_rows
from course_lib.metrics.intervals import CONFIDENCE, mean_interval
from course_lib.metrics.score import Score, VideoMetric
from course_lib.validation import check_count, check_float, check_int


def mean_score(name: str, values: Tensor, unit: str = "") -> Score:
    """Mean of independent values with its 95 % interval (Student's t).

    Args:
        name: name of the score.
        values: (n,), one per clip; NaN marks a clip without a value, which is left out.
        unit: unit of the values.

    Returns:
        The score; `n` counts the values that are not NaN. With one value it has no interval,
        with none its value is NaN.

    Raises:
        ValueError: for integers, or several values per clip.
    """
    check_float("values", values, "(n)")
    values = values[~values.isnan()].cpu().double()
    n = len(values)
    if n < 2:
        return Score(name, values.item() if n else math.nan, n, None, unit)
    mean, low, high = mean_interval(values)
    return Score(name, mean, n, (low, high), unit)


def proportion_score(name: str, hits: int, n: int) -> Score:
    """Proportion of successes with its 95 % interval, which stays within [0, 1] (Wilson 1927).

    Args:
        name: name of the score.
        hits: number of successes.
        n: number of independent trials.

    Raises:
        ValueError: for no trials, more hits than trials, or fractions of them.
    """
    check_int("n", n, 0)
    check_count(name, n, 1)
    check_int("hits", hits, 0, n)
    interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Score(name, hits / n, n, (float(interval.low), float(interval.high)))


class PerClipMetric(VideoMetric):
    """Base class of metrics with one or more numbers per clip; `compute` returns their means.

    It stores one float64 per clip and number. So the result does not depend on the batch size, and
    `per_clip` shows which clips are bad. Clips of different length have equal weight.

    Args:
        names: maps each key of the result of `compute` to the name of the score.
        units: maps keys to units; keys without a unit may be missing.
    """

    def __init__(self, names: Mapping[str, str], units: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.names = dict(names)
        self.units = dict(units or {})
        self.add_state("rows", [], "cat")
        self._separate(", ".join(self.names.values()))

    def _append(self, **values: Float[Tensor, "b"]) -> None:
        """Store the numbers of a batch, under the keys of `names`."""
        columns = [values[key].to(self.device).double() for key in self.names]
        self.rows = [*self.rows, torch.stack(columns, dim=1)]

    def per_clip(self) -> dict[str, Float[Tensor, "n"]]:
        """Numbers of every clip, in the order of the updates.

        Raises:
            ValueError: before the first clip.
        """
        rows = cat_rows(self.rows)
        check_count("clips", len(rows), 1)
        return dict(zip(self.names, rows.unbind(dim=1), strict=True))

    def means(self) -> dict[str, Score]:
        """One `mean_score` per key.

        Raises:
            ValueError: before the first clip.
        """
        return {
            key: mean_score(self.names[key], values, self.units.get(key, ""))
            for key, values in self.per_clip().items()
        }

    def compute(self) -> dict[str, Score] | Score:
        """One score per key, or the score itself if there is only one key.

        Raises:
            ValueError: before the first clip.
        """
        scores = self.means()
        return scores if len(scores) > 1 else next(iter(scores.values()))
