"""Fréchet distance between two feature sets: called FID on Inception features, FVD on I3D features.

    |μ₁ - μ₂|² + Tr Σ₁ + Tr Σ₂ - 2 Tr (Σ₁Σ₂)^½

is the squared 2-Wasserstein distance between two Gaussians (Dowson & Landau 1982; Heusel et al.
2017, equation 6). The product Σ₁Σ₂ is not symmetric, so its matrix square root is hard to compute
accurately. Two forms of the last trace avoid it:

- Tr (LᵀΣ₂L)^½ with the Cholesky factor Σ₁ = LLᵀ: a symmetric matrix, so its eigenvalues are real.
  Fast, for n > d.
- Sum of the singular values of A₁A₂ᵀ (nuclear norm), where Σ = AᵀA and A holds the centred
  features over √(n - ddof). Exact for any n, also for singular Σ; A₁A₂ᵀ is small for n ≤ d.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import linalg
from torch import Tensor

from course_lib.metrics.features import RealVsGenerated, VideoNet, check_feature_sets
from course_lib.metrics.intervals import mean_interval
from course_lib.metrics.score import Score
from course_lib.validation import check_count, check_int, check_tensor, require

SPLITS = (1, 2, 3, 4, 6, 8)  # numbers of disjoint splits in `frechet_infinity`


class Gaussian(NamedTuple):
    """A Gaussian with covariance Σ = cov_rootᵀ cov_root; the root has twice the digits of Σ."""

    mean: Float[Tensor, "d"]
    cov_root: Float[Tensor, "r d"]


def gaussian(features: Tensor, ddof: int = 1) -> Gaussian:
    """Gaussian with the mean and covariance of features, in float64 on the CPU.

    Args:
        features: (n, d), n ≥ 2.
        ddof: the covariance is divided by n - ddof: 1 in most code, 0 in stylegan-v and cd-fvd.

    Raises:
        ValueError: for bad input, n < 2 or another ddof.
    """
    check_tensor("features", features, "(n, d)")
    check_count("features: samples", len(features), 2)
    check_int("ddof", ddof, 0, 1)
    features = features.detach().cpu().double()
    mean = features.mean(dim=0)
    return Gaussian(mean, (features - mean) / (len(features) - ddof) ** 0.5)


def frechet_between_gaussians(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance: symmetric form if both roots have more than d rows, else nuclear norm.

    Raises:
        ValueError: if the Gaussians have different d.
    """
    d = len(first.mean)
    require(len(second.mean) == d, "features", "one width d", f"{d} and {len(second.mean)}")
    trace = None
    if min(len(first.cov_root), len(second.cov_root)) > d:
        trace = _symmetric_trace(_upper_cov(first.cov_root), _upper_cov(second.cov_root))
    if trace is None:
        product = _qr_root(first.cov_root) @ _qr_root(second.cov_root).T
        trace = torch.linalg.svdvals(product).sum().item()
    traces = first.cov_root.square().sum() + second.cov_root.square().sum()
    return _combine(first.mean - second.mean, traces.item(), trace)


def frechet_from_moments(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Fréchet distance from means (d,) and covariances (d, d), by the symmetric form.

    If Σ₁ is singular (n ≤ d, or a constant feature), its root comes from its eigenvalues, which
    turns rounding errors of 1e-16 into 1e-8: prefer `frechet_distance`.

    Raises:
        ValueError: for other shapes, or a matrix that is not symmetric or has a variance below 0.
    """
    check_tensor("mean_1", mean_1, "(d)")
    d = len(mean_1)
    for name, moment, axes in (
        ("mean_2", mean_2, "(d)"),
        ("cov_1", cov_1, "(d, d)"),
        ("cov_2", cov_2, "(d, d)"),
    ):
        check_tensor(name, moment, axes)
        require(set(moment.shape) == {d}, name, f"{axes} with d = {d}", tuple(moment.shape))
    moments = (mean_1, cov_1, mean_2, cov_2)
    mean_1, cov_1, mean_2, cov_2 = (moment.detach().cpu().double() for moment in moments)
    for name, cov in (("cov_1", cov_1), ("cov_2", cov_2)):
        atol = 1e-8 * cov.abs().max().item()
        is_symmetric = torch.allclose(cov, cov.T, rtol=1e-6, atol=atol)
        require(is_symmetric, name, "a symmetric matrix", "another")
        lowest = cov.diagonal().min().item()
        require(lowest >= -atol, name, "variances of at least 0", lowest)
    trace = _symmetric_trace(cov_1.numpy(), cov_2.numpy())
    if trace is None:
        values, vectors = torch.linalg.eigh(cov_1)
        root = vectors * values.clamp(min=0).sqrt()  # Σ₁^½ up to a rotation
        trace = torch.linalg.eigvalsh(root.T @ cov_2 @ root).clamp(min=0).sqrt().sum().item()
    return _combine(mean_1 - mean_2, (cov_1.trace() + cov_2.trace()).item(), trace)


def _upper_cov(root: Float[Tensor, "r d"]) -> Float[np.ndarray, "d d"]:
    """Upper triangle of the covariance."""
    # SciPy's BLAS, as for the eigenvalues: idle threads of a second BLAS would keep the cores busy
    return linalg.blas.dsyrk(1.0, root.numpy().T)


def _symmetric_trace(
    cov_1: Float[np.ndarray, "d d"], cov_2: Float[np.ndarray, "d d"]
) -> float | None:
    """Tr (Σ₁Σ₂)^½ from the upper triangles, or None if Σ₁ has no Cholesky factor.

    LAPACK solves the generalised eigenvalue problem Σ₂Σ₁v = λv (type 2) by LᵀΣ₂L with Σ₁ = LLᵀ.
    """
    try:
        values = linalg.eigvalsh(cov_2, cov_1, type=2, driver="gv", lower=False, check_finite=False)
    except linalg.LinAlgError:
        return None
    return float(np.sqrt(values.clip(min=0)).sum())


def _combine(mean_diff: Float[Tensor, "d"], traces: float, trace: float) -> float:
    """Sum of the terms, at least 0: rounding gives equal sets about -1e-15."""
    return max(mean_diff.square().sum().item() + traces - 2 * trace, 0.0)


def _qr_root(root: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """Root of the same covariance with at most d rows: R of A = QR, since RᵀR = AᵀA."""
    return torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def frechet_distance(real: Tensor, generated: Tensor, ddof: int = 1) -> float:
    """Fréchet distance between two feature sets.

    It has a positive bias, about s²·d(d + 5)/(2n) for n = m samples of one N(0, s²I): report n,
    compare only at equal n, or see `frechet_infinity`.

    Args:
        real: (n, d), n ≥ 2.
        generated: (m, d), m ≥ 2.
        ddof: see `gaussian`.

    Raises:
        ValueError: for bad input.
    """
    check_feature_sets(real, generated, min_samples=2)
    return frechet_between_gaussians(gaussian(real, ddof), gaussian(generated, ddof))


class FrechetDistance(RealVsGenerated):
    """Fréchet distance of a feature net; memory for 4·d rows, for any number of samples.

    Sums of x and xxᵀ would cancel if features are far from zero. This class stores rows [1, x], and
    replaces more than 2(d + 1) of them by R of their QR decomposition. RᵀR contains n, Σx and Σxxᵀ,
    and the lower part of R is a root of the scatter matrix. Rows of several processes concatenate.
    The score's `n` is the size of the smaller set.

    Args:
        net: see `RealVsGenerated`.
        name: see `RealVsGenerated`.
        ddof: see `gaussian`; it is part of the score's name.
        cache_real: see `RealVsGenerated`.

    Raises:
        ValueError: for a net in training mode, or a ddof other than 0 and 1.
    """

    def __init__(
        self, net: VideoNet, name: str, *, ddof: int = 1, cache_real: bool = False
    ) -> None:
        super().__init__(net, name, cache_real=cache_real)
        check_int("ddof", ddof, 0, 1)
        self.ddof = ddof

    def _rows(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d+1"]:
        return torch.cat([features.new_ones(len(features), 1), features], dim=1)

    def _join(self, rows: list[Tensor]) -> list[Tensor]:
        if rows and sum(map(len, rows)) > 2 * rows[0].shape[1]:
            return [_qr_root(torch.cat(rows).double())]
        return rows

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        self.real, self.generated = self._join(self.real), self._join(self.generated)

    def compute(self) -> Score:
        """The distance of all samples so far.

        Raises:
            ValueError: for fewer than 2 samples in a set.
        """
        gaussians = []
        counts = []
        for name, rows in self._sides().items():
            rows = rows.cpu().double()  # after `set_dtype`, it may be another
            n = round(rows[:, :1].square().sum().item())
            check_count(name, n, 2)
            triangle = torch.linalg.qr(rows, mode="r").R  # (d+1, d+1)
            mean = triangle[0, 1:] / triangle[0, 0]
            gaussians.append(Gaussian(mean, triangle[1:, 1:] / (n - self.ddof) ** 0.5))
            counts.append(n)
        name = f"frechet_ddof{self.ddof}[{self.net_name}]"
        return Score(name, frechet_between_gaussians(*gaussians), min(counts))


class FrechetInfinity(NamedTuple):
    """Fréchet distance without its sample-size bias.

    Args:
        value: estimate for infinitely many samples.
        interval: its 95 % confidence interval, or None.
        bias: how much larger the distance of all samples is.
        splits: numbers of disjoint splits, the x values of the fitted line.
        distances: mean distance over the splits of each number, the y values.
    """

    value: float
    interval: tuple[float, float] | None
    bias: float
    splits: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    real: Tensor, generated: Tensor, ddof: int = 1, *, jackknife_groups: int = 10, seed: int = 0
) -> FrechetInfinity:
    """FID∞: extrapolate the distance to 1/n = 0, since its bias is proportional to 1/n.

    Both sets are shuffled and cut into k = 1, 2, 3, 4, 6, 8 disjoint splits of at least 2d samples
    (k = 1 and 2 always), and a line is fitted to the mean distance over k. Chong & Forsyth 2020 use
    random subsets of the generated set only. Disjoint splits have a smaller variance, and cutting
    both sets removes the bias of the real set too.

    Args:
        real: (n, d), n ≥ 2d.
        generated: (m, d), m ≥ 2d.
        ddof: see `gaussian`.
        jackknife_groups: number of groups for the interval, which leaves out each in turn; 0 for
            no interval. Its coverage is a little above 95 % (measured: docs/decisions.md).
        seed: seed of the shuffling.

    Raises:
        ValueError: for bad input, or fewer than 2d samples.
    """
    check_feature_sets(real, generated, min_samples=1)
    n = min(len(real), len(generated))
    check_int("jackknife_groups", jackknife_groups, 0, n)
    require(jackknife_groups != 1, "jackknife_groups", "0 or at least 2", jackknife_groups)
    check_int("seed", seed, 0)
    d = real.shape[1]
    min_samples = max(2 * d, 16)
    check_count(f"real, generated: samples of each for features of width {d}", n, min_samples)
    generator = torch.Generator().manual_seed(seed)
    sides = [x[torch.randperm(len(x), generator=generator).to(x.device)] for x in (real, generated)]
    splits = tuple(k for k in SPLITS if k <= 2 or n // k >= min_samples)
    distances = _split_distances(sides, ddof, splits)
    bias, value = np.polyfit(splits, distances, deg=1).tolist()  # slope, intercept
    interval = None
    if jackknife_groups:
        values = []
        for group in range(jackknife_groups):
            rest = [x[torch.arange(len(x)) % jackknife_groups != group] for x in sides]
            values.append(np.polyfit(splits, _split_distances(rest, ddof, splits), deg=1)[1])
        # Jackknife pseudo-values have (groups - 1) times the spread of the leave-one-out values
        mean, low, _ = mean_interval((jackknife_groups - 1) * np.array(values))
        interval = (value - (mean - low), value + (mean - low))
    return FrechetInfinity(value, interval, bias, splits, tuple(distances))


def _split_distances(sides: list[Tensor], ddof: int, splits: tuple[int, ...]) -> list[float]:
    """Mean distance over k pairs of disjoint splits, for every k."""
    means = []
    for k in splits:
        pairs = zip(sides[0].tensor_split(k), sides[1].tensor_split(k), strict=True)
        means.append(float(np.mean([frechet_distance(*pair, ddof) for pair in pairs])))
    return means
