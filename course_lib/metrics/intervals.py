"""Confidence interval of a mean, by Student's t."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from course_lib.validation import check_count, check_number, require

CONFIDENCE = 0.95


def mean_interval(
    x: Sequence[float] | Float[np.ndarray, "n"] | Float[Tensor, "n"], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Mean of independent values and its confidence interval, with n - 1 degrees of freedom.

    Args:
        x: (n,), at least two values, none of them NaN.
        confidence: probability that the interval covers the true mean of normal values.

    Returns:
        Mean, lower end, upper end.

    Raises:
        ValueError: for fewer than two values, NaN, or a confidence outside (0, 1).
    """
    check_count("x", len(x), 2)
    check_number("confidence", confidence, above=0.0, below=1.0)
    x = np.asarray(x, dtype=np.float64)
    require(x.ndim == 1 and not np.isnan(x).any(), "x", "(n,) without NaN", f"{x.shape} or NaN")
    mean = float(x.mean())
    # Not scipy.stats.ttest_1samp(x, 0), which warns when all values are equal
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * stats.sem(x))
    return mean, mean - half, mean + half
