"""Fréchet distance between two sets of features: FID and FVD are its names on Inception's and I3D's.

    |μ₁ - μ₂|² + Tr Σ₁ + Tr Σ₂ - 2 Tr (Σ₁Σ₂)^½

is the squared 2-Wasserstein distance between two Gaussians (Dowson & Landau 1982; Heusel et al. 2017, equation 6). The
product Σ₁Σ₂ is not symmetric, so its square root is where implementations go wrong. Two forms of the last trace need
no such root and are used here:

- Tr (LᵀΣ₂L)^½ with Σ₁ = LLᵀ: symmetric, so its eigenvalues are real, and quick. For n > d.
- Σ = AᵀA with A the centred features over √(n - ddof): the trace is the sum of the singular values of A₁A₂ᵀ (the
  nuclear norm). Exact for any n, singular Σ included; A₁A₂ᵀ is small when n ≤ d.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import linalg, stats
from torch import Tensor

from course_lib.metrics.features import TwoSided, VideoNet
from course_lib.validation import check_count, check_features
from course_lib.metrics.score import Score


class Gaussian(NamedTuple):
    """A Gaussian by its mean and a root of its covariance, Σ = rootᵀ root; a root keeps twice Σ's digits."""

    mean: Float[Tensor, "d"]
    root: Float[Tensor, "r d"]


def gaussian(features: Tensor, ddof: int = 1) -> Gaussian:
    """The Gaussian with the mean and covariance of `features` (n, d), float64 on the CPU.

    ddof: the covariance divides by n - ddof: 1 in most code, 0 in StyleGAN's family (stylegan-v, cd-fvd).
    Raises ValueError for bad input, n < 2, or another ddof.
    """
    check_features("features", features)
    check_count("features: samples", len(features), 2)
    if ddof not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {ddof}")
    features = features.detach().cpu().double()
    mean = features.mean(dim=0)
    return Gaussian(mean, (features - mean) / (len(features) - ddof) ** 0.5)


def frechet_between(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance between two Gaussians: symmetric if both roots have more than d rows, else by the nuclear norm.

    first, second: of one d. Raises ValueError for two widths.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features: expected one width d, got {len(first.mean)} and {len(second.mean)}"
        )
    trace = None
    if min(len(first.root), len(second.root)) > len(first.mean):
        trace = _symmetric_trace(*(_covariance(root) for root in (first.root, second.root)))
    if trace is None:
        small = [_triangle(root) for root in (first.root, second.root)]
        trace = torch.linalg.svdvals(small[0] @ small[1].T).sum().item()
    traces = first.root.square().sum() + second.root.square().sum()
    return _assemble(first.mean - second.mean, traces.item(), trace)


def frechet_from_moments(
    mean_1: Float[Tensor, "d"],
    cov_1: Float[Tensor, "d d"],
    mean_2: Float[Tensor, "d"],
    cov_2: Float[Tensor, "d d"],
) -> float:
    """Fréchet distance from means and covariances, by the symmetric form.

    Where Σ₁ is singular (n ≤ d, or a feature that never varies) its root is taken from its eigenvalues, which turns
    rounding errors of 1e-16 into 1e-8: prefer `frechet_distance`, which sees the features.
    Raises ValueError for a covariance that is not symmetric.
    """
    mean_1, cov_1, mean_2, cov_2 = (
        moment.detach().cpu().double() for moment in (mean_1, cov_1, mean_2, cov_2)
    )
    for name, covariance in (("cov_1", cov_1), ("cov_2", cov_2)):
        if not torch.allclose(
            covariance, covariance.T, rtol=1e-6, atol=1e-8 * covariance.abs().max().item()
        ):
            raise ValueError(f"{name}: expected a symmetric matrix")
    trace = _symmetric_trace(cov_1.numpy(), cov_2.numpy())
    if trace is None:
        values, vectors = torch.linalg.eigh(cov_1)
        root = (
            vectors * values.clamp(min=0).sqrt()
        )  # Σ₁^½ up to a rotation, which eigenvalues do not see
        trace = torch.linalg.eigvalsh(root.T @ cov_2 @ root).clamp(min=0).sqrt().sum().item()
    return _assemble(mean_1 - mean_2, (cov_1.trace() + cov_2.trace()).item(), trace)


def _covariance(root: Float[Tensor, "r d"]) -> Float[np.ndarray, "d d"]:
    # The upper half only. By SciPy's own BLAS, as the eigenvalues after it: the waiting threads of another would
    # keep the cores busy for longer than the product takes
    return linalg.blas.dsyrk(1.0, root.numpy().T)


def _symmetric_trace(
    cov_1: Float[np.ndarray, "d d"], cov_2: Float[np.ndarray, "d d"]
) -> float | None:
    """Tr (Σ₁Σ₂)^½ from the upper halves, or None where Σ₁ has no Cholesky factor.

    The generalised eigenvalue problem of type 2, Σ₂Σ₁v = λv, is what LAPACK solves by LᵀΣ₂L with Σ₁ = LLᵀ.
    """
    try:
        values = linalg.eigvalsh(cov_2, cov_1, type=2, driver="gv", lower=False, check_finite=False)
    except linalg.LinAlgError:
        return None
    return float(np.sqrt(values.clip(min=0)).sum())


def _assemble(difference: Float[Tensor, "d"], traces: float, trace: float) -> float:
    # Equal sets leave some -1e-15 of rounding; a squared distance is never negative
    return max(difference.square().sum().item() + traces - 2 * trace, 0.0)


def _triangle(root: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """A root of the same covariance with at most d rows: R of the QR decomposition, since RᵀR = AᵀA."""
    return torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def frechet_distance(real: Tensor, generated: Tensor, ddof: int = 1) -> float:
    """Fréchet distance between two sets of features (n, d) and (m, d), at least 2 each.

    ddof: see `gaussian`. Biased upwards, by about s²·d(d + 5)/(2n) for n = m samples of one N(0, s²I): state n, compare
    only equal n, or see `frechet_infinity`. Raises ValueError for bad input.
    """
    return frechet_between(gaussian(real, ddof), gaussian(generated, ddof))


class FrechetDistance(TwoSided):
    """Fréchet distance on a feature net, in the memory of 4·d rows whatever the number of samples.

    `n` is the smaller side's.

    Not kept as sums of x and xxᵀ, which cancel when features are far from zero. Kept are rows [1, x], and whenever
    there are more than 2(d + 1) of them, the R of their QR decomposition. It has the same products (RᵀR holds n, Σx
    and Σxxᵀ) and its lower part is a root of the scatter about the mean. Rows of several processes simply join.
    """

    def __init__(self, net: VideoNet, name: str, *, ddof: int = 1, keep_real: bool = False) -> None:
        """net, name, keep_real: see `TwoSided`. ddof: see `gaussian`; it enters the score's name.

        Raises ValueError for a net in training mode or a ddof other than 0 or 1.
        """
        super().__init__(net, name, keep_real=keep_real)
        if ddof not in (0, 1):
            raise ValueError(f"ddof: expected 0 or 1, got {ddof}")
        self.ddof = ddof

    def _keep(self, rows: list[Tensor], features: Float[Tensor, "n d"]) -> None:
        rows.append(torch.cat([features.new_ones(len(features), 1), features], dim=1))
        if sum(map(len, rows)) > 2 * rows[0].shape[1]:
            rows[:] = [_triangle(torch.cat(rows))]

    def compute(self) -> Score:
        """The distance so far. Raises ValueError for fewer than 2 samples on a side."""
        gaussians, counts = [], []
        for name, rows in self._sides().items():
            n = round(rows[:, :1].square().sum().item())
            check_count(name, n, 2)
            rows = rows.cpu()
            triangle = torch.linalg.qr(rows, mode="r").R
            gaussians.append(
                Gaussian(
                    triangle[0, 1:] / triangle[0, 0], triangle[1:, 1:] / (n - self.ddof) ** 0.5
                )
            )
            counts.append(n)
        value = frechet_between(*gaussians)
        return Score(f"frechet_ddof{self.ddof}[{self.net_name}]", value, min(counts))


class Extrapolation(NamedTuple):
    """A Fréchet distance freed of its sample-size bias.

    value: at infinitely many samples. interval: 95 % (None if not asked for). bias: what the distance of all samples
    has too much. parts, distances: the points of the fit, mean distance of that many disjoint parts.
    """

    value: float
    interval: tuple[float, float] | None
    bias: float
    parts: tuple[int, ...]
    distances: tuple[float, ...]


PARTS = (1, 2, 3, 4, 6, 8)


def frechet_infinity(
    real: Tensor, generated: Tensor, ddof: int = 1, *, groups: int = 10, seed: int = 0
) -> Extrapolation:
    """FID∞: the bias is proportional to 1/n, so a line through distances at several n gives the one at 1/n = 0.

    real, generated: features (n, d), (m, d) with n, m ≥ 2d. ddof: see `gaussian`. seed: of the shuffling.
    Both sets are cut into k = 1, 2, 3, 4, 6, 8 disjoint parts (as long as a part has 2d samples, but at least 1 and 2),
    and the line is fitted to the mean distance over k. Chong & Forsyth 2020 draw one random subset of each of 15 sizes
    from the generated side only and keep the real one whole; disjoint parts scatter less, and cutting both removes the
    real side's bias too. groups: the interval is by jackknife, leaving out one of so many groups of samples in turn; 0
    for none. In simulations it covers somewhat more than 95 %; the interval of the fitted line would cover 40 to 80 %.
    Raises ValueError for bad input, or fewer than 2d samples, with the number needed.
    """
    check_features("real", real)
    check_features("generated", generated)
    if groups == 1 or groups < 0:
        raise ValueError(f"groups: expected 0 or at least 2, got {groups}")
    smaller, d = min(len(real), len(generated)), real.shape[1]
    least = max(2 * d, 16)
    check_count(f"real, generated: samples on each side for features of width {d}", smaller, least)
    generator = torch.Generator().manual_seed(seed)
    real, generated = (
        x[torch.randperm(len(x), generator=generator).to(x.device)] for x in (real, generated)
    )
    parts = tuple(k for k in PARTS if k <= 2 or smaller // k >= least)
    distances = _part_distances(real, generated, ddof, parts)
    bias, value = _line(parts, distances)
    interval = None
    if groups:
        left = [
            [x[torch.arange(len(x)) % groups != group] for x in (real, generated)]
            for group in range(groups)
        ]
        values = [_line(parts, _part_distances(*sides, ddof, parts))[1] for sides in left]
        error = np.std(values) * (groups - 1) ** 0.5
        reach = float(stats.t.ppf(0.975, groups - 1) * error)
        interval = (value - reach, value + reach)
    return Extrapolation(value, interval, bias, parts, tuple(distances))


def _part_distances(
    real: Tensor, generated: Tensor, ddof: int, parts: tuple[int, ...]
) -> list[float]:
    """Mean over k disjoint pairs of parts, for every k."""
    means = []
    for k in parts:
        pairs = zip(real.tensor_split(k), generated.tensor_split(k), strict=True)
        means.append(float(np.mean([frechet_distance(*pair, ddof) for pair in pairs])))
    return means


def _line(parts: tuple[int, ...], distances: list[float]) -> tuple[float, float]:
    """Slope and intercept of the distance over the number of parts, by least squares."""
    slope, intercept = np.polyfit(parts, distances, deg=1)
    return float(slope), float(intercept)
