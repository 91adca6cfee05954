"""Metrics that give every clip a number: the mean over clips with its interval, and the numbers themselves."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from torchmetrics import Metric

from course_lib.metrics.features import stacked
from course_lib.validation import check_count
from course_lib.metrics.score import Score

CONFIDENCE = 0.95


def mean_score(name: str, values: Float[Tensor, "n"], unit: str = "") -> Score:
    """Mean of independent values and its 95 % interval, Student's t on n - 1 degrees of freedom.

    values: one per clip; NaN says that a clip has none, and leaves it out of mean and `n`. One value has no interval,
    none at all has a mean of NaN.
    """
    values = values[~values.isnan()].double()
    n, mean = len(values), values.mean().item()
    if n < 2:
        return Score(name, mean, n, None, unit)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * values.std().item() / math.sqrt(n)
    return Score(name, mean, n, (mean - half, mean + half), unit)


def share_score(name: str, hits: int, n: int) -> Score:
    """Share of `hits` among `n` independent trials and its 95 % interval (Wilson 1927), which stays within [0, 1].

    Raises ValueError for no trials, or more hits than trials.
    """
    check_count(name, n, 1)
    interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Score(name, hits / n, n, (float(interval.low), float(interval.high)))


class ClipMeans(Metric):
    """What all metrics share that give every clip one or more numbers: keep these, and return their means.

    One float64 a clip and number is kept, so that the result does not depend on the batching and `per_clip` can say
    which clips are the bad ones. `n` counts clips; clips of different length weigh the same.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, names: Mapping[str, str], units: Mapping[str, str] | None = None) -> None:
        """names: key in the answer of `compute`, to name of the score. units: the same keys, to units."""
        super().__init__()
        self.names, self.units = dict(names), dict(units or {})
        self.add_state("rows", [], "cat")

    def _keep(self, **values: Float[Tensor, "b"]) -> None:
        """Add the numbers of a batch, under the keys of `names`."""
        self.rows.append(
            torch.stack([values[key].to(self.device).double() for key in self.names], dim=1)
        )

    def per_clip(self) -> dict[str, Float[Tensor, "n"]]:
        """The numbers of every clip, in the order of the updates. Raises ValueError before the first clip."""
        rows = stacked(self.rows)
        check_count("clips", len(rows), 1)
        return dict(zip(self.names, rows.unbind(dim=1), strict=True))

    def means(self) -> dict[str, Score]:
        """One `mean_score` per key. Raises ValueError before the first clip."""
        return {
            key: mean_score(self.names[key], values, self.units.get(key, ""))
            for key, values in self.per_clip().items()
        }

    def compute(self) -> dict[str, Score] | Score:
        """One score per key; a metric with a single number returns its score. Raises ValueError before any clip."""
        scores = self.means()
        return scores if len(scores) > 1 else next(iter(scores.values()))
