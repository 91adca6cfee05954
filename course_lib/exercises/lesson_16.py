"""Exercises of lesson 16, metrics: their checks, hints and reference solutions.

The oracle is `course_lib.metrics`. A mistake is known by the number it leads to on the check's own input. The checks of
16.2 to 16.4 are in `lesson_16_distances.py`, that of 16.6 in `lesson_16_order.py`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, brief, same
from course_lib.lab.checks.engine import Exercise, call
from course_lib.exercises.lesson_16_distances import verify_gaussian, verify_kid, verify_trace_sqrt
from course_lib.exercises.lesson_16_order import verify_order_blind
from course_lib.lab.checks.mistakes import judge_number, normal
from course_lib.metrics.consistency import frame_consistency
from course_lib.metrics.distribution import inception_score
from course_lib.metrics.image import psnr

# 16.1 -----------------------------------------------------------------------------------------------------------------


def mean_psnr(video, reference):
    """Mean over all frames of each frame's PSNR in dB; values in [-1, 1], so that the peak is 2."""
    error = (video - reference).square().mean(dim=(1, 3, 4))  # (b, f)
    return (10 * torch.log10(2**2 / error)).mean()


_POOLS = (
    ((0, 1, 2, 3, 4), "You averaged the squared error over everything, then took one logarithm: the pooled convention. "
     "Asked for: the PSNR of every frame, then their mean. The logarithm is concave, so that one is never lower."),
    ((1, 2, 3, 4), "That is one PSNR per clip, then the mean over clips. Asked for: one per frame (keep b and f)."),
    ((0, 1, 3, 4), "Your squared error is averaged over the clips too: keep b and f, average over c, h and w."),
    ((2, 3, 4), "Your squared error is averaged over the frames: axis 2 is f. Keep b and f."),
    ((3, 4), "That is one PSNR per channel. A frame's error is averaged over c, h and w."),
)  # fmt: skip


def _verify_psnr(attempt):
    clip, off = torch.full((1, 3, 1, 4, 4), 0.1), torch.full((1, 3, 1, 4, 4), -0.1)
    mistakes = [
        (
            20 + 20 * math.log10(1 / 2),
            "6.02 dB low: a peak of 1 belongs to [0, 1]. From -1 to 1 it is 2.",
        ),
        (20 + 20 * math.log10(255 / 2), "A peak of 255 belongs to bytes. From -1 to 1 it is 2."),
        (
            20 + 20 * math.log10(2),
            "6.02 dB high: the video was halved to [0, 1], where the peak is 1, but the 2 stayed.",
        ),
        (
            10 * math.log(100),
            "That is the natural logarithm: decibels count in powers of ten, torch.log10.",
        ),
        (10, "Half of it: a root has slipped in. 10 log10 of squares, or 20 log10 of their roots."),
        (40, "Twice too much: 20 log10 belongs to the root of the squared error."),
        (10 * math.log10(2 / 0.04), "The error is squared, so the peak must be too: 2²."),
        (-20, "The sign is flipped: the smaller the error, the more decibels."),
        (0.04, "That is the mean squared error. Now 10 log10(peak² / error)."),
    ]
    judge_number(
        call(attempt, off, clip), 20.0, mistakes, "one frame that is off by 0.2 everywhere"
    )
    yield "a frame that is off by 0.2 everywhere has 20 dB"
    reference = normal(1, 2, 3, 4, 6, 6).clamp(-3, 3) / 6
    noise = normal(2, 2, 3, 4, 6, 6).clamp(-3, 3) * torch.tensor([[0.01, 0.02, 0.05, 0.15], [0.02, 0.04, 0.08, 0.01]])[
        :, None, :, None, None
    ] * torch.tensor([0.3, 1.0, 0.6])[:, None, None, None]  # fmt: skip
    video = reference + noise
    got, frames = call(attempt, video, reference), psnr(video, reference)
    if isinstance(got, Tensor) and got.shape == frames.shape:
        raise Wrong(
            "You returned a table (b, f), the PSNR of every frame. Asked for: one number, their mean."
        )
    pooled = [
        ((10 * torch.log10(4 / noise.square().mean(axes))).mean(), message)
        for axes, message in _POOLS
    ]
    judge_number(got, frames.mean().item(), pooled, "2 clips of 4 frames, some of them noisier")
    yield "of clips with good and bad frames, the mean of the frames' decibels"


# 16.2 -----------------------------------------------------------------------------------------------------------------


def fit_gaussian(features):
    """Mean (d,) and covariance (d, d) of features (n, d); the covariance divides by n - 1."""
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


# 16.3 -----------------------------------------------------------------------------------------------------------------


def trace_sqrt(cov_1, cov_2):
    """Tr (Σ₁Σ₂)^½: the product has the eigenvalues of RᵀΣ₂R with Σ₁ = RRᵀ, and that one is symmetric."""
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is cov_1
    values = torch.linalg.eigvalsh(root.T @ cov_2 @ root)
    return values.clamp(min=0).sqrt().sum()  # rounding leaves some -1e-17 where there should be 0


# 16.4 -----------------------------------------------------------------------------------------------------------------


def kid(real, generated):
    """Squared MMD under the kernel (x·y / d + 1)³; within a set, no sample is paired with itself."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    distance = -2 * kernel(real, generated).mean()
    for x in (real, generated):
        k, n = kernel(x, x), len(x)
        distance = distance + (k.sum() - k.trace()) / (n * (n - 1))
    return distance


# 16.5 -----------------------------------------------------------------------------------------------------------------


def score_of_probabilities(probabilities):
    """exp of the mean KL divergence of p(y|x) from p(y); probabilities (n, k), zeros allowed."""
    marginal = probabilities.mean(dim=0)  # p(y), (k,)
    terms = torch.xlogy(probabilities, probabilities) - torch.xlogy(
        probabilities, marginal
    )  # xlogy(0, 0) is 0
    return terms.sum(dim=1).mean().exp()


def _verify_inception_score(attempt):
    p = (normal(40, 6, 4) * 1.5).softmax(dim=1)
    marginal = p.mean(dim=0)
    terms, reverse = p * (p / marginal).log(), marginal * (marginal / p).log()
    each = terms.sum(dim=1)
    hot, shared = (
        torch.eye(4).double().repeat(3, 1),
        torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1]]).double(),
    )
    mistakes = [
        (each.mean(), "exp is missing at the end: with it the score runs from 1 to k."),
        (-torch.special.entr(marginal).sum(), "That is minus the entropy of p(y): variety only, and no exp."),
        (torch.special.entr(marginal).sum().exp(), "That is exp of the entropy of p(y): it rewards variety, but a "
         "classifier unsure of every sample gets full marks. Subtract the mean entropy of p(y|x)."),
        ((-torch.special.entr(p).sum(dim=1).mean()).exp(), "That is only how sure p(y|x) is; p(y) does not enter."),
        (reverse.sum(dim=1).mean().exp(), "The divergence is the other way round: p(y|x) stands before the logarithm."),
        ((p * (4 * p).log()).sum(dim=1).mean().exp(), "Your p(y) is the same for all classes. It is the mean over "
         "samples (dim=0); over classes (dim=1) every row has the mean 1/k."),
        (each.exp().mean(), "The mean belongs inside: exp of the mean divergence, not the mean of exps."),
        (each.sum().exp(), "That sums over samples too: sum over classes, mean over samples."),
        (terms.mean().exp(), "That averages over classes too: a divergence is a sum over classes."),
        (terms.sum(dim=0).mean().exp(), "Sums and means are swapped: sum over classes (dim=1), mean over samples."),
        ((each.mean() / math.log(2)).exp(), "log2 and exp do not belong together: use log."),
        ((-each.mean()).exp(), "The sign is flipped: log p(y|x) - log p(y)."),
        *_safeguards(p),
    ]  # fmt: skip
    judge_number(
        call(attempt, p), inception_score(p.log()).item(), mistakes, "6 unsure samples of 4 classes"
    )
    yield "right for samples of which the classifier is half sure"
    judge_number(call(attempt, p[:1].expand(5, -1)), 1.0, [], "5 samples with equal probabilities")
    yield "samples that are all alike score 1"
    nan = [
        (math.nan, "0 · log 0 is NaN in floating point; its limit is 0. torch.xlogy knows that.")
    ]
    judge_number(
        call(attempt, hot),
        4.0,
        nan + _safeguards(hot),
        "12 samples of 4 classes, the classifier quite sure (one-hot)",
    )
    judge_number(
        call(attempt, shared),
        2.0,
        nan,
        "[[½, ½, 0, 0], [0, 0, 0, 1]], with a class that never comes up",
    )
    yield "sure and balanced samples of k classes score k, zeros and all"


def _safeguards(p: Tensor) -> list[tuple[Tensor, str]]:
    """The scores that a constant inside both logarithms leads to, when it is large enough to matter."""
    message = "The constant {} inside the logarithm changes the score: take a smaller one, or torch.xlogy and none."
    marginal = p.mean(dim=0)
    return [
        (
            (p * ((p + small) / (marginal + small)).log()).sum(dim=1).mean().exp(),
            message.format(small),
        )
        for small in (0.1, 0.01, 0.001, 0.0001)
    ]


# 16.6 -----------------------------------------------------------------------------------------------------------------


def order_blind(net, video):
    """True if no reordering of the frames changes the net's features by more than rounding."""
    features = net(video)
    rounding = 1e-4 * features.abs().max()
    for _ in range(10):
        order = torch.randperm(video.shape[2])
        if (net(video[:, :, order]) - features).abs().max() > rounding:
            return False
    return True


# 16.7 -----------------------------------------------------------------------------------------------------------------


def consistency(frames):
    """Mean cosine over all pairs of different frames, and over neighbours; frames (f, d)."""
    unit = frames / frames.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T  # (f, f)
    f = len(frames)
    all_pairs = (cosine.sum() - cosine.trace()) / (f * (f - 1))
    return all_pairs, cosine.diagonal(offset=1).mean()


def _verify_consistency(attempt):
    frames = normal(30, 5, 3).cumsum(dim=0) * torch.tensor([1.0, 3, 0.5, 2, 4])[:, None]
    got = _pair(call(attempt, frames))
    both = [frame_consistency(frames[None])[key].item() for key in ("all_pairs", "consecutive")]
    if np.allclose(got, both[::-1], rtol=1e-4):
        raise Wrong("The two are swapped. Asked for: all pairs first, then neighbours.")
    unit = frames / frames.norm(dim=1, keepdim=True)
    columns = frames / frames.norm(dim=0)
    raw, cosine, wrong_axis = frames @ frames.T, unit @ unit.T, columns @ columns.T
    off = cosine.sum() - cosine.trace()
    lengths = "The embeddings are not of length 1: divide each by its norm over d, or long ones count more."
    axis = (
        "You divided by norms over the frames (dim=0). A cosine needs each embedding's own, dim=1."
    )
    first = (cosine[0, 1:].mean(), "That compares every frame with the first one only.")
    diagonals = [
        (matrix.mean(), message) for matrix, message in ((raw, lengths), (wrong_axis, axis))
    ]
    mistakes = [
        (cosine.mean(), "The frames' cosine with themselves is in it: f ones on the diagonal, which flatter."),
        (off / 25, "The diagonal is left out of the sum, but you divide by f²: f (f - 1) pairs are left."),
        (off / 40, "Half of it: one triangle of the matrix holds f (f - 1) / 2 pairs."),
        ((raw.sum() - raw.trace()) / 20, lengths), ((wrong_axis.sum() - wrong_axis.trace()) / 20, axis),
        (both[1], "That is the mean over neighbours. All pairs: every frame with every other."), first, *diagonals,
    ]  # fmt: skip
    judge_number(got[0], both[0], mistakes, "the first number, over all pairs of 5 frames")
    yield "all pairs: every two different frames count, and none with itself"
    ring = (unit * unit.roll(1, dims=0)).sum(dim=1).mean()
    mistakes = [
        (raw.diagonal(offset=1).mean(), lengths), (wrong_axis.diagonal(offset=1).mean(), axis), first,
        (ring, "The last frame is compared with the first, as roll does. They are no neighbours."),
        (both[1] * 4 / 5, "5 frames have 4 pairs of neighbours: divide by f - 1."),
        (both[0], "That is the mean over all pairs. Neighbours: frames t and t + 1."),
    ]  # fmt: skip
    judge_number(got[1], both[1], mistakes, "the second number, over neighbours of 5 frames")
    yield "consecutive: f - 1 pairs of neighbours"
    got = _pair(call(attempt, frames[:1].expand(4, -1)))
    same(got, (1.0, 1.0), "four equal frames", atol=1e-4)
    yield "a frozen clip scores 1 in both, the best that there is: never read this metric alone"


def _pair(got: object) -> tuple[float, float]:
    if (
        not isinstance(got, list | tuple)
        or len(got) != 2
        or any(torch.as_tensor(part).numel() != 1 for part in got)
    ):
        raise Wrong(f"expected two numbers, (all_pairs, consecutive); got {brief(got)}")
    return float(got[0]), float(got[1])


EXERCISES = (
    Exercise(
        "16.1", "Decibels of a video", 5, 1, _verify_psnr,
        ("Three steps: the squared error of every frame, decibels of every frame, the mean of those.",
         "(video - reference).square().mean(dim=(1, 3, 4)) leaves (b, f): one error a frame.",
         "10 · log10(peak² / error), and from -1 to 1 the peak is 2."),
        mean_psnr,
    ),
    Exercise(
        "16.2", "A cloud of features", 10, 2, verify_gaussian,
        ("The mean is over samples, dim=0. The covariance is about products of what is left after subtracting it.",
         "centred.T @ centred is (d, d) and sums over samples. What do you divide by?",
         "n - 1. torch.cov does it all, but takes variables in rows: torch.cov(features.T)."),
        fit_gaussian,
    ),
    Exercise(
        "16.3", "Find the bug", 15, 4, verify_trace_sqrt,
        ("Print the product of [[2, 1], [1, 1]] and [[1, 1], [1, 3]]. What does eigvalsh expect, and what does it get?",
         "A B and B A have the same eigenvalues. So, with Σ₁ = R Rᵀ, have R (Rᵀ Σ₂) and (Rᵀ Σ₂) R, and that is "
         "symmetric.",
         "values, vectors = torch.linalg.eigh(cov_1), and R = vectors * values.clamp(min=0).sqrt().",
         "Then eigvalsh(R.T @ cov_2 @ R); rounding makes some eigenvalues -1e-17, so clamp again before the root."),
        trace_sqrt,
    ),
    Exercise(
        "16.4", "A distance without a Gaussian", 10, 3, verify_kid,
        ("Write kernel(x, y) first: all products x·y at once are x @ y.T, then divide by d, add 1, cube.",
         "KID is the mean kernel within real, plus that within generated, minus twice the mean between them.",
         "Within a set leave out the diagonal: (k.sum() - k.trace()) / (n (n - 1)). Between the sets keep all pairs."),
        kid,
    ),
    Exercise(
        "16.5", "Sure and varied", 10, 3, _verify_inception_score,
        ("p(y) is the mean of the rows, p(y|x) is a row.",
         "The divergence of a row: the sum over classes of p(y|x) (log p(y|x) - log p(y)). Then mean, then exp.",
         "0 · log 0 is NaN; torch.xlogy(p, q) is p · log q with 0 where p is 0."),
        score_of_probabilities,
    ),
    Exercise(
        "16.6", "Does it watch the film at all?", 15, 3, verify_order_blind,
        ("video[:, :, order] has its frames in another order; torch.randperm(f) draws one.",
         "Backwards is one order, and a net of step lengths does not mind it. Draw ten.",
         "Compare (net(shuffled) - features).abs().max() with 1e-4 times features.abs().max()."),
        order_blind,
    ),
    Exercise(
        "16.7", "Does it look like one film?", 10, 2, _verify_consistency,
        ("Make every embedding of length 1; then one matrix product holds the cosines of all pairs.",
         "All pairs: everything but the diagonal, f (f - 1) numbers. Neighbours: the diagonal beside it.",
         "(cosine.sum() - cosine.trace()) / (f * (f - 1)), and cosine.diagonal(offset=1).mean()."),
        consistency,
    ),
)  # fmt: skip
