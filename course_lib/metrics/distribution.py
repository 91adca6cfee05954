"""Distances between two feature sets without a Gaussian assumption, and the Inception Score."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.metrics.features import (
    FeatureBank,
    VideoNet,
    cat_rows,
    check_feature_sets,
    check_width,
    extract_features,
)
from course_lib.metrics.frechet import frechet_distance
from course_lib.metrics.score import Score, VideoMetric
from course_lib.validation import check_count, check_int, check_net, check_number, check_tensor

ROW_BLOCK = 1024  # rows of a kernel or distance matrix that are computed at a time


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
    """Squared maximum mean discrepancy with the polynomial kernel (gamma · x·y + coef)^degree.

    The default is KID (Bińkowski et al. 2018, section 4). `degree=2, coef=0, unbiased=False`, times
    100, is JEDi (Luo et al. 2025, on V-JEPA features).

    Args:
        real: features (n, d).
        generated: features (m, d).
        degree: degree of the kernel.
        coef: constant term of the kernel.
        gamma: factor of the dot product; None is 1/d.
        unbiased: leave out the pairs of a sample with itself. The distance between two sets from
            one distribution is then 0 on average for any n, and often a little below 0.

    Raises:
        ValueError: for bad input, fewer than 2 samples, different d, a degree that is no integer
            of at least 1, a coef that is not finite, or a gamma that is not positive.
    """
    check_feature_sets(real, generated, min_samples=2)
    check_int("degree", degree, 1)
    check_number("coef", coef)
    real, generated = real.double(), generated.double()
    gamma = 1 / real.shape[1] if gamma is None else gamma
    check_number("gamma", gamma, above=0.0)

    def mean_kernel(x: Tensor, y: Tensor, skip_diagonal: bool = False) -> Tensor:
        blocks = x.split(ROW_BLOCK)
        total = sum(((rows @ y.T) * gamma + coef).pow(degree).sum() for rows in blocks)
        if skip_diagonal:
            total = total - (x.square().sum(dim=1) * gamma + coef).pow(degree).sum()
        return total / (len(x) * (len(y) - skip_diagonal))

    same_set = mean_kernel(real, real, unbiased) + mean_kernel(generated, generated, unbiased)
    return (same_set - 2 * mean_kernel(real, generated)).item()


def kernel_distance_subsets(
    real: Tensor,
    generated: Tensor,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """KID as it is published: `kernel_distance` on random subsets of both sets.

    `kernel_distance` of all samples has the same mean and a smaller variance.

    Args:
        real: features (n, d).
        generated: features (m, d).
        num_subsets: number of subsets.
        subset_size: samples in each, without replacement.
        seed: seed of the subsets.

    Returns:
        Mean and standard deviation (ddof 0) over subsets.

    Raises:
        ValueError: for bad input, fewer than 2 samples per subset or 1 subset, or fewer samples
            than `subset_size`.
    """
    check_int("subset_size", subset_size, 2)
    check_int("num_subsets", num_subsets, 1)
    check_int("seed", seed, 0)
    check_feature_sets(real, generated, min_samples=subset_size)
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(num_subsets, dtype=torch.float64)
    for i in range(num_subsets):
        indices = [
            torch.randperm(len(x), generator=generator)[:subset_size] for x in (real, generated)
        ]
        values[i] = kernel_distance(
            real[indices[0].to(real.device)], generated[indices[1].to(generated.device)]
        )
    return values.mean().item(), values.std(correction=0).item()


class KernelDistance(FeatureBank):
    """KID on an image net, KVD on a video net: `kernel_distance` of all samples.

    The score's `n` is the size of the smaller set. `compute` raises ValueError for fewer than 2
    samples in a set.
    """

    min_samples = 2

    def compute(self) -> Score:
        return self._score("kid_cubic_unbiased", kernel_distance(*self.features()))


# Precision and recall


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    The manifold of a set is the union of balls around its samples, each with the distance to the
    k-th nearest neighbour in the set as radius.

    Args:
        real: features (n, d).
        generated: features (m, d).
        k: which neighbour; the sample itself does not count.

    Returns:
        Precision (the fraction of generated samples in the real manifold) and recall (the fraction
        of real samples in the generated manifold).

    Raises:
        ValueError: for bad input, or fewer than k + 1 samples in a set.
    """
    check_int("k", k, 1)
    check_feature_sets(real, generated, min_samples=k + 1)
    center = _center(real.double())
    real, generated = real.double() - center, generated.double() - center
    precision = _in_manifold(generated, real, k).double().mean().item()
    recall = _in_manifold(real, generated, k).double().mean().item()
    return precision, recall


def _center(features: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """Means, rounded to a power of two below the standard deviation.

    Smaller numbers have smaller rounding errors, and differences from this centre have none for
    integers and other multiples of a power of two.
    """
    std, mean = torch.std_mean(features, dim=0)
    step = std / torch.frexp(std).mantissa / 2
    return torch.where(std > 0, (mean / step).round() * step, features[0])


def _in_manifold(
    samples: Float[Tensor, "n d"], manifold: Float[Tensor, "m d"], k: int
) -> Bool[Tensor, "n"]:
    """Which samples lie in a ball of the manifold."""
    radii = [
        _squared_distances(rows, manifold)[0].kthvalue(k + 1).values
        for rows in manifold.split(ROW_BLOCK)
    ]
    radii = torch.cat(radii)
    inside = []
    for rows in samples.split(ROW_BLOCK):
        distances, rounding = _squared_distances(rows, manifold)
        inside.append((distances <= radii + rounding).any(dim=1))  # a border belongs to its ball
    return torch.cat(inside)


def _squared_distances(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
    """Squared distances, and how far rounding may move them."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    distances = squares - 2 * x @ y.T
    # Features that differ only by float32 rounding (another batch size) count as equal
    rounding = 4 * x.shape[1] ** 0.5 * torch.finfo(x.dtype).eps * squares
    return distances.where(distances > 1e-12 * squares, 0), rounding


class PrecisionRecall(FeatureBank):
    """Improved precision and recall with k = 3, under the keys "precision" and "recall".

    The scores' `n` is the size of the smaller set. `compute` raises ValueError for fewer than 4
    samples in a set.
    """

    min_samples = 4

    def compute(self) -> dict[str, Score]:
        precision, recall = precision_recall(*self.features(), k=3)
        return {
            "precision": self._score("precision_knn3", precision),
            "recall": self._score("recall_knn3", recall),
        }


class DistributionScores(PrecisionRecall):
    """Fréchet distance, KID, precision and recall from one pass of the net.

    The keys are "frechet", "kid", "precision" and "recall"; otherwise as `PrecisionRecall`.
    """

    def compute(self) -> dict[str, Score]:
        features = self.features()
        return {
            "frechet": self._score("frechet_ddof1", frechet_distance(*features)),
            "kid": self._score("kid_cubic_unbiased", kernel_distance(*features)),
            **super().compute(),
        }


# Inception Score


def inception_score(
    logits: Tensor, *, num_splits: int = 1, seed: int = 0
) -> Float[Tensor, "splits"]:
    """exp(E KL(p(y|x) || p(y))) of each split of the shuffled samples (Salimans et al. 2016).

    The score is 1 if all predictions are alike or all uniform, and at most k. p(y) is estimated
    from the split, so small splits give lower scores: 200 perfect samples of 10 classes score 10 in
    one split, and 8.0 in ten.

    Args:
        logits: (n, k) of any classifier.
        num_splits: number of splits; published scores use 10 splits of 50,000 samples.
        seed: seed of the shuffling.

    Raises:
        ValueError: for bad input, or fewer than 2 samples per split.
    """
    check_tensor("logits", logits, "(n, d)")
    _check_splits(num_splits, seed)
    check_count("logits: samples", len(logits), 2 * num_splits)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    values = []
    log_probs = logits.double().log_softmax(dim=1)[order.to(logits.device)]
    for log_p in log_probs.tensor_split(num_splits):
        # log of the mean of p, finite where p underflows to 0
        log_mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
        values.append((log_p.exp() * (log_p - log_mean)).sum(dim=1).mean().exp())
    return torch.stack(values)


class InceptionScore(VideoMetric):
    """Inception Score with any classifier; `n` counts samples.

    Args:
        net: videos to logits (n, k); `frame_features` makes frames the samples.
        name: name of the net.
        num_splits: see `inception_score`.
        seed: see `inception_score`.

    Raises:
        ValueError: for a net in training mode, less than one split, or a seed below 0.
    """

    def __init__(self, net: VideoNet, name: str, *, num_splits: int = 1, seed: int = 0) -> None:
        super().__init__()
        check_net("net", net)
        _check_splits(num_splits, seed)
        self.net = net
        self.num_splits = num_splits
        self.seed = seed
        self.name = f"inception_score_{num_splits}split{'s' * (num_splits > 1)}[{name}]"
        self.add_state("logits", [], "cat")

    def update(self, video: Tensor) -> None:
        """Add a batch.

        Args:
            video: (b, c, f, h, w) in [-1, 1].

        Raises:
            ValueError: see `extract_features`; or for another number of classes than before.
        """
        logits = extract_features(self.net, video).to(self.device)
        check_width(logits, self.logits)
        self.logits = [*self.logits, logits]

    def compute(self) -> dict[str, Score]:
        """Scores under the keys "mean" and, for several splits, "std" (ddof 0; torchmetrics: 1).

        Raises:
            ValueError: for fewer than 2 samples per split.
        """
        logits = cat_rows(self.logits)
        values = inception_score(logits, num_splits=self.num_splits, seed=self.seed)
        scores = {"mean": Score(self.name, values.mean().item(), len(logits))}
        if self.num_splits > 1:
            name = self.name.replace("[", "_std_ddof0[")
            scores["std"] = Score(name, values.std(correction=0).item(), len(logits))
        return scores


def _check_splits(num_splits: int, seed: int) -> None:
    check_int("num_splits", num_splits, 1)
    check_int("seed", seed, 0)
