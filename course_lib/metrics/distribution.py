"""Distances between two sets of features that assume no Gaussian, and the Inception Score, which needs one set only."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from course_lib.metrics.features import FeatureBank, VideoNet, extract, stacked
from course_lib.metrics.frechet import frechet_distance
from course_lib.validation import check_count, check_features, check_net
from course_lib.metrics.score import Score

ROWS = 1024  # of a kernel or distance matrix at a time


# Kernel distance


def kernel_distance(
    real: Tensor,
    generated: Tensor,
    *,
    degree: int = 3,
    coef: float | int = 1,
    gamma: float | int | None = None,
    unbiased: bool = True,
) -> float:
    """Squared maximum mean discrepancy under the kernel (gamma · x·y + coef)^degree, between (n, d) and (m, d).

    The default is KID's (Bińkowski et al. 2018, section 4): cubic, gamma = 1/d (None), and unbiased: without the
    pairs of a sample with itself, so that two sets from one distribution give 0 on average at any n, and often a
    little less than 0. `degree=2, coef=0, unbiased=False`, times 100, is JEDi's (Luo et al. 2025, on V-JEPA features).
    Raises ValueError for bad input, fewer than 2 samples, two widths or a degree below 1.
    """
    _check_two(real, generated, need=2)
    if degree < 1:
        raise ValueError(f"degree: expected at least 1, got {degree}")
    real, generated = real.double(), generated.double()
    scale = 1 / real.shape[1] if gamma is None else gamma

    def mean_kernel(first: Tensor, second: Tensor, without_self: bool = False) -> Tensor:
        total = sum(
            ((rows @ second.T) * scale + coef).pow(degree).sum() for rows in first.split(ROWS)
        )
        if without_self:
            total = total - (first.square().sum(dim=1) * scale + coef).pow(degree).sum()
        return total / (len(first) * (len(second) - without_self))

    within = mean_kernel(real, real, unbiased) + mean_kernel(generated, generated, unbiased)
    return (within - 2 * mean_kernel(real, generated)).item()


class Spread(NamedTuple):
    """Mean and standard deviation over subsets or splits."""

    mean: float
    std: float


def kernel_distance_subsets(
    real: Tensor, generated: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Spread:
    """KID as published: mean and standard deviation (ddof 0) of `kernel_distance` over random subsets of both sides.

    subsets, size: 100 of 1000 samples each, drawn without replacement; seed: of the draws. All samples at once
    (`kernel_distance`) has the same mean and scatters less. Raises ValueError for bad input or fewer samples than size.
    """
    _check_two(real, generated, need=max(size, 2))
    if subsets < 1:
        raise ValueError(f"subsets: expected at least 1, got {subsets}")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        draws = [
            x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]
            for x in (real, generated)
        ]
        values.append(kernel_distance(*draws))
    values = torch.tensor(values, dtype=torch.float64)
    return Spread(values.mean().item(), values.std(correction=0).item())


class KernelDistance(FeatureBank):
    """KID on a feature net (KVD on a video net): `kernel_distance` of all samples; `n` is the smaller side's."""

    needed = 2

    def compute(self) -> Score:
        """The distance so far. Raises ValueError for fewer than 2 samples on a side."""
        real, generated = self.features()
        return Score(
            _kid_name(self), kernel_distance(real, generated), min(len(real), len(generated))
        )


def _kid_name(bank: FeatureBank) -> str:
    return f"kid_cubic_unbiased[{bank.net_name}]"


# Precision and recall


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of generated samples within the real manifold, share of real samples within the generated one.

    real, generated: (n, d), (m, d). The manifold of a set is the union of balls around its samples that reach their
    k-th nearest neighbour in the set, the sample itself not counted. Kynkäänniemi et al. 2019, equations 1 and 2.
    Raises ValueError for bad input or fewer than k + 1 samples on a side.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    _check_two(real, generated, need=k + 1)
    center = real.double().mean(dim=0)  # distances do not change, their rounding errors shrink
    real, generated = real.double() - center, generated.double() - center
    precision, recall = (
        _inside(*sides, k).double().mean().item()
        for sides in ((generated, real), (real, generated))
    )
    return precision, recall


def _inside(
    samples: Float[Tensor, "n d"], manifold: Float[Tensor, "m d"], k: int
) -> Bool[Tensor, "n"]:
    """Which samples lie in a ball of the manifold."""
    radii = torch.cat(
        [_squared_distances(rows, manifold).kthvalue(k + 1).values for rows in manifold.split(ROWS)]
    )
    return torch.cat(
        [(_squared_distances(rows, manifold) <= radii).any(dim=1) for rows in samples.split(ROWS)]
    )


def _squared_distances(
    first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    distances = squares - 2 * first @ second.T
    # What float32 cannot tell apart is one sample, whichever batches it came in
    return distances.where(distances > 1e-12 * squares, 0)


class PrecisionRecall(FeatureBank):
    """Improved precision and recall on a feature net, with k = 3 neighbours; `n` is the smaller side's."""

    higher_is_better = True
    needed = 4

    def compute(self) -> dict[str, Score]:
        """{"precision": Score, "recall": Score}. Raises ValueError for fewer than 4 samples on a side."""
        real, generated = self.features()
        return _precision_recall_scores(self, real, generated)


def _precision_recall_scores(
    bank: FeatureBank, real: Tensor, generated: Tensor
) -> dict[str, Score]:
    n, values = min(len(real), len(generated)), precision_recall(real, generated, k=3)
    names = ("precision", "recall")
    return {
        name: Score(f"{name}_knn3[{bank.net_name}]", value, n)
        for name, value in zip(names, values, strict=True)
    }


class DistributionScores(FeatureBank):
    """Fréchet distance, KID, precision and recall from one pass of the net; `n` is the smaller side's."""

    needed = 4

    def compute(self) -> dict[str, Score]:
        """{"frechet", "kid", "precision", "recall"}. Raises ValueError for fewer than 4 samples on a side."""
        real, generated = self.features()
        n = min(len(real), len(generated))
        return {
            "frechet": Score(
                f"frechet_ddof1[{self.net_name}]", frechet_distance(real, generated), n
            ),
            "kid": Score(_kid_name(self), kernel_distance(real, generated), n),
            **_precision_recall_scores(self, real, generated),
        }


# Inception Score


def inception_score(logits: Tensor, *, splits: int = 1, seed: int = 0) -> Float[Tensor, "splits"]:
    """exp of the mean KL divergence of p(y|x) from p(y), in each of `splits` parts of the shuffled samples.

    logits: (n, k) of any classifier, before the softmax. Lies between 1 (all alike, or all unsure) and k.
    splits: 10 is the published convention, for 50,000 samples (Salimans et al. 2016). p(y) is estimated within a part,
    and from a small part too low a score: 200 perfect samples of 10 classes score 10 in one part, 8.0 in ten.
    seed: of the shuffling. Raises ValueError for bad input or fewer than 2 samples to a split.
    """
    check_features("logits", logits)
    if splits < 1:
        raise ValueError(f"splits: expected at least 1, got {splits}")
    check_count("logits: samples", len(logits), 2 * splits)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(
        logits.device
    )
    values = []
    for log_p in logits.double().log_softmax(dim=1)[order].tensor_split(splits):
        log_mean = log_p.logsumexp(dim=0) - math.log(
            len(log_p)
        )  # finite where a mean of p would be 0
        values.append((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp())
    return torch.stack(values)


class InceptionScore(Metric):
    """Inception Score on any classifier of videos; `n` counts samples."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, net: VideoNet, name: str, *, splits: int = 1, seed: int = 0) -> None:
        """net: videos to logits (b, k), or through `frame_features` frames. name: of the net. splits, seed: see above.

        Raises ValueError for a net in training mode or less than one split.
        """
        super().__init__()
        check_net("net", net)
        if splits < 1:
            raise ValueError(f"splits: expected at least 1, got {splits}")
        self.net, self.splits, self.seed = net, splits, seed
        self.name = f"inception_score_{splits}split{'s' * (splits > 1)}[{name}]"
        self.add_state("logits", [], "cat")

    def update(self, video: Tensor) -> None:
        """Add a batch; video: (b, c, f, h, w) in [-1, 1]. Raises ValueError as `extract` does."""
        self.logits.append(extract(self.net, video).to(self.device))

    def compute(self) -> dict[str, Score]:
        """{"mean": Score} over splits, and with several {"std": Score}, whose name says ddof 0 (torchmetrics has 1).

        Raises ValueError for fewer than 2 samples to a split.
        """
        logits = stacked(self.logits)
        check_count("samples", len(logits), 2 * self.splits)
        values = inception_score(logits, splits=self.splits, seed=self.seed)
        scores = {"mean": Score(self.name, values.mean().item(), len(logits))}
        if self.splits > 1:
            name = self.name.replace("[", "_std_ddof0[")
            scores["std"] = Score(name, values.std(correction=0).item(), len(logits))
        return scores


def _check_two(real: Tensor, generated: Tensor, need: int) -> None:
    for name, features in (("real", real), ("generated", generated)):
        check_features(name, features)
        check_count(f"{name}: samples", len(features), need)
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"generated: expected the width of real, {real.shape[1]}, got {generated.shape[1]}"
        )
