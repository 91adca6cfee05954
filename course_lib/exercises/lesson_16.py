"""Exercises of lesson 16, metrics: checks, hints and reference solutions.

The reference is `course_lib.metrics`. The checks of 16.2 to 16.4 are in `lesson_16_distances.py`,
that of 16.6 in `lesson_16_order.py`.
"""

import math

import torch
from torch import Tensor

from course_lib import metrics
from course_lib.exercises.lesson_16_distances import (
    verify_fit_gaussian,
    verify_kid,
    verify_trace_sqrt,
)
from course_lib.exercises.lesson_16_order import verify_is_order_invariant
from course_lib.lab.checks import (
    Exercise,
    Mistake,
    assert_matches,
    call,
    call_on_copies,
    diagnose_number,
    is_close,
    randn,
    require,
    split_result,
)

# 16.1 ---------------------------------------------------------------------------------------------


def mean_psnr(video, reference):
    """Mean over all frames of each frame's PSNR in dB; values in [-1, 1], so that the peak is 2."""
    # f is kept, because the mean of logarithms is not the logarithm of the mean
    error = (video - reference).square().mean(dim=(1, 3, 4))  # (b, f)
    return (10 * torch.log10(2**2 / error)).mean()


_POOLS = (
    ((0, 1, 2, 3, 4), "You averaged the squared error over everything, then took one logarithm: "
                      "the pooled convention. The exercise wants the PSNR of every frame, then "
                      "their mean. The logarithm is concave, so that one is never lower."),
    ((1, 2, 3, 4), "That is one PSNR per clip, then the mean over clips. It is one per frame "
                   "(keep b and f)."),
    ((0, 1, 3, 4), "Your squared error is averaged over the clips too: keep b and f, average "
                   "over c, h and w."),
    ((2, 3, 4), "Your squared error is averaged over the frames: axis 2 is f. Keep b and f."),
    ((3, 4), "That is one PSNR per channel. A frame's error is averaged over c, h and w."),
)  # fmt: skip


def _verify_mean_psnr(attempt):
    frame = torch.full((1, 3, 1, 4, 4), 0.1)
    mistakes = [
        (20 + 20 * math.log10(1 / 2), "6.02 dB low: a peak of 1 belongs to [0, 1]. From -1 to 1 "
                                      "it is 2."),
        (20 + 20 * math.log10(255 / 2), "A peak of 255 belongs to bytes. From -1 to 1 it is 2."),
        (20 + 20 * math.log10(2), "6.02 dB high: the video was halved to [0, 1], where the peak "
                                  "is 1, but the 2 stayed."),
        (10 * math.log(100), "That is the natural logarithm: decibels count in powers of ten, "
                             "torch.log10."),
        (10, "Half of it: a root has slipped in. 10 log10 of squares, or 20 log10 of their roots."),
        (40, "Twice too much: 20 log10 belongs to the root of the squared error."),
        (10 * math.log10(2 / 0.04), "The error is squared, so the peak must be too: 2²."),
        (-20, "The sign is flipped: the smaller the error, the more decibels."),
        (0.04, "That is the mean squared error. Now 10 log10(peak² / error)."),
    ]  # fmt: skip
    diagnose_number(
        call(attempt, -frame, frame), 20.0, mistakes, "one frame that is off by 0.2 everywhere"
    )
    yield "a frame that is off by 0.2 everywhere has 20 dB"
    stds = torch.tensor([[0.01, 0.02, 0.05, 0.15], [0.02, 0.04, 0.08, 0.01]])  # (b, f)
    scales = torch.einsum("bf,c->bcf", stds, torch.tensor([0.3, 1.0, 0.6]))
    noise = randn(2, 2, 3, 4, 6, 6).clamp(-3, 3) * scales[..., None, None]
    reference = randn(1, 2, 3, 4, 6, 6).clamp(-3, 3) / 6
    frames = metrics.psnr(reference + noise, reference)
    result = call_on_copies(attempt, video=reference + noise, reference=reference)
    require(
        not (isinstance(result, Tensor) and result.shape == frames.shape),
        "You returned a table (b, f), the PSNR of every frame. The result is one number, their "
        "mean.",
    )
    diagnose_number(
        result,
        frames.mean().item(),
        [((10 * torch.log10(4 / noise.square().mean(axes))).mean(), m) for axes, m in _POOLS],
        "2 clips of 4 frames, some noisier",
    )
    yield "of clips with good and bad frames, the mean of the frames' decibels"


# 16.2 ---------------------------------------------------------------------------------------------


def fit_gaussian(features):
    """Mean (d,) and covariance (d, d) of features (n, d); the covariance divides by n - 1."""
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


# 16.3 ---------------------------------------------------------------------------------------------


def trace_sqrt(cov_1, cov_2):
    """Tr (Σ₁Σ₂)^½: the product has the eigenvalues of RᵀΣ₂R with Σ₁ = RRᵀ, which is symmetric."""
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is cov_1
    values = torch.linalg.eigvalsh(root.T @ cov_2 @ root)
    return values.clamp(min=0).sqrt().sum()  # rounding leaves some -1e-17 in place of 0


# 16.4 ---------------------------------------------------------------------------------------------


def kid(real, generated):
    """Squared MMD under the kernel (x·y / d + 1)³; no sample is paired with itself."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    distance = -2 * kernel(real, generated).mean()
    for x in (real, generated):
        k, n = kernel(x, x), len(x)
        distance = distance + (k.sum() - k.trace()) / (n * (n - 1))
    return distance


# 16.5 ---------------------------------------------------------------------------------------------


def inception_score(probabilities):
    """exp of the mean KL divergence of p(y|x) from p(y); probabilities (n, k), zeros allowed."""
    p, marginal = probabilities, probabilities.mean(dim=0)  # p(y|x), p(y)
    divergence = torch.xlogy(p, p) - torch.xlogy(p, marginal)  # xlogy(0, 0) is 0
    return divergence.sum(dim=1).mean().exp()


def _verify_inception_score(attempt):
    p = (randn(40, 6, 4) * 1.5).softmax(dim=1)
    marginal = p.mean(dim=0)
    terms, reverse = p * (p / marginal).log(), marginal * (marginal / p).log()
    each, entropy = terms.sum(dim=1), torch.special.entr
    mistakes = [
        (each.mean(), "exp is missing at the end: with it the score runs from 1 to k."),
        (-entropy(marginal).sum(), "That is minus the entropy of p(y): variety only, and no exp."),
        (entropy(marginal).sum().exp(), "That is exp of the entropy of p(y): it rewards variety, "
                                        "but a classifier unsure of every sample gets full "
                                        "marks. Subtract the mean entropy of p(y|x)."),
        ((-entropy(p).sum(dim=1).mean()).exp(),
         "That is only how sure p(y|x) is; p(y) does not enter."),
        (reverse.sum(dim=1).mean().exp(), "The divergence is the other way round: p(y|x) stands "
                                          "before the logarithm."),
        ((p * (4 * p).log()).sum(dim=1).mean().exp(),
         "Your p(y) is the same for all classes. It is the mean over samples (dim=0); over "
         "classes (dim=1) every row has the mean 1/k."),
        (each.exp().mean(), "The mean belongs inside: exp of the mean divergence, not the mean "
                            "of exps."),
        (each.sum().exp(), "That sums over samples too: sum over classes, mean over samples."),
        (terms.mean().exp(), "That averages over classes too: a divergence is a sum over classes."),
        (terms.sum(dim=0).mean().exp(), "Sums and means are swapped: sum over classes (dim=1), "
                                        "mean over samples."),
        ((each.mean() / math.log(2)).exp(), "log2 and exp do not belong together: use log."),
        ((-each.mean()).exp(), "The sign is flipped: log p(y|x) - log p(y)."),
    ]  # fmt: skip
    expected = metrics.inception_score(p.log()).item()
    nan = [
        (math.nan, "0 · log 0 is NaN in floating point; its limit is 0. torch.xlogy knows that.")
    ]
    one_hot = torch.eye(4).double().repeat(3, 1)
    shared = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1]]).double()
    for table, score, table_mistakes, case, fact in (
        (p, expected, mistakes, "6 unsure samples of 4 classes",
         "right for samples of which the classifier is half sure"),
        (p[:1].expand(5, -1), 1.0, [], "5 samples with equal probabilities",
         "samples that are all alike score 1"),
        (one_hot, 4.0, nan, "12 samples of 4 classes, the classifier quite sure (one-hot)",
         "sure and balanced samples of k classes score k"),
        (shared, 2.0, nan, "[[½, ½, 0, 0], [0, 0, 0, 1]], with a class that never comes up",
         "zeros and all"),
    ):  # fmt: skip
        diagnose_number(
            call_on_copies(attempt, probabilities=table),
            score,
            table_mistakes + _constant_mistakes(table),
            case,
        )
        yield fact


def _constant_mistakes(p: Tensor) -> list[Mistake]:
    """The scores with a constant inside both logarithms, where it is large enough to matter."""
    message = (
        "The constant {} inside the logarithm changes the score: take a smaller one, or "
        "torch.xlogy and none."
    )
    ratios = {c: (p + c) / (p.mean(dim=0) + c) for c in (0.1, 0.01, 0.001, 0.0001)}
    return [((p * r.log()).sum(1).mean().exp(), message.format(c)) for c, r in ratios.items()]


# 16.6 ---------------------------------------------------------------------------------------------


def is_order_invariant(net, video):
    """True if no reordering of the frames changes the net's features by more than rounding."""
    features = net(video)
    rounding = 1e-4 * features.abs().max()
    for _ in range(10):
        order = torch.randperm(video.shape[2])
        if (net(video[:, :, order]) - features).abs().max() > rounding:
            return False
    return True


# 16.7 ---------------------------------------------------------------------------------------------


def frame_consistency(embeddings):
    """Mean cosine over all pairs of different frames, and over neighbours; embeddings (f, d)."""
    # Length one first, because only then is a product of two rows their cosine
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T  # (f, f)
    f = len(embeddings)
    all_pairs = (cosine.sum() - cosine.trace()) / (f * (f - 1))
    return all_pairs, cosine.diagonal(offset=1).mean()


def _ask_for_pair(attempt, embeddings: Tensor) -> Tensor:
    parts = split_result(
        call_on_copies(attempt, embeddings=embeddings),
        "all_pairs, consecutive",
        f"{len(embeddings)} frames",
    )
    require(
        all(part.numel() == 1 for part in parts),
        "expected two numbers, (all_pairs, consecutive); got shapes "
        f"{[tuple(part.shape) for part in parts]}",
    )
    return torch.cat([part.flatten() for part in parts])


def _verify_frame_consistency(attempt):
    frames = randn(30, 5, 3).cumsum(dim=0) * torch.tensor([1.0, 3, 0.5, 2, 4])[:, None]
    result = _ask_for_pair(attempt, frames)
    scores = metrics.frame_consistency(frames[None])
    expected = torch.cat([scores["all_pairs"], scores["consecutive"]])
    require(
        not is_close(result, expected.flip(0)),
        "The two are swapped. The order is all pairs, then neighbours.",
    )
    unit, columns = frames / frames.norm(dim=1, keepdim=True), frames / frames.norm(dim=0)
    raw, cosine, wrong_axis = (x @ x.T for x in (frames, unit, columns))
    all_pairs, consecutive = expected.tolist()
    off = cosine.sum() - cosine.trace()
    lengths = (
        "The embeddings are not of length 1: divide each by its norm over d, or long ones count "
        "more."
    )
    axis = (
        "You divided by norms over the frames (dim=0). A cosine needs each embedding's own, dim=1."
    )
    first = cosine[0, 1:].mean(), "That compares every frame with the first one only."
    mistakes = [
        (cosine.mean(), "The frames' cosine with themselves is in it: f ones on the diagonal, "
                        "which flatter."),
        (off / 25, "The diagonal is left out of the sum, but you divide by f²: f (f - 1) pairs "
                   "are left."),
        (off / 40, "Half of it: one triangle of the matrix has f (f - 1) / 2 pairs."),
        ((raw.sum() - raw.trace()) / 20, lengths),
        ((wrong_axis.sum() - wrong_axis.trace()) / 20, axis),
        (consecutive, "That is the mean over neighbours. All pairs: every frame with every other."),
        first,
        (raw.mean(), lengths),
        (wrong_axis.mean(), axis),
    ]  # fmt: skip
    diagnose_number(result[0], all_pairs, mistakes, "the first number, over all pairs of 5 frames")
    yield "all pairs: every two different frames count, and none with itself"
    mistakes = [
        (raw.diagonal(offset=1).mean(), lengths),
        (wrong_axis.diagonal(offset=1).mean(), axis),
        first,
        ((unit * unit.roll(1, dims=0)).sum(dim=1).mean(),
         "The last frame is compared with the first, as roll does. They are no neighbours."),
        (consecutive * 4 / 5, "5 frames have 4 pairs of neighbours: divide by f - 1."),
        (all_pairs, "That is the mean over all pairs. Neighbours: frames t and t + 1."),
    ]  # fmt: skip
    diagnose_number(
        result[1], consecutive, mistakes, "the second number, over neighbours of 5 frames"
    )
    yield "consecutive: f - 1 pairs of neighbours"
    assert_matches(
        _ask_for_pair(attempt, frames[:1].expand(4, -1)), (1.0, 1.0), "four equal frames", atol=1e-4
    )
    yield "a frozen clip scores 1 in both, the best that there is: never read only this metric"


EXERCISES = (
    Exercise(
        "16.1", "Decibels of a video", 5, 1, _verify_mean_psnr,
        ("Three steps: the squared error of every frame, decibels of every frame, the mean of "
         "those.",
         "(video - reference).square().mean(dim=(1, 3, 4)) leaves (b, f): one error per frame.",
         "10 · log10(peak² / error), and from -1 to 1 the peak is 2."),
        mean_psnr,
    ),
    Exercise(
        "16.2", "A cloud of features", 10, 2, verify_fit_gaussian,
        ("The mean is over samples, dim=0. The covariance is about products of what is left after "
         "subtracting it.",
         "centred.T @ centred is (d, d) and sums over samples. What do you divide by?",
         "n - 1. torch.cov does it all, but takes variables in rows: torch.cov(features.T)."),
        fit_gaussian,
    ),
    Exercise(
        "16.3", "Find the bug", 15, 4, verify_trace_sqrt,
        ("Print the product of [[2, 1], [1, 1]] and [[1, 1], [1, 3]]. What does eigvalsh expect, "
         "and what does it get?",
         "A B and B A have the same eigenvalues. So, with Σ₁ = R Rᵀ, have R (Rᵀ Σ₂) and (Rᵀ Σ₂) "
         "R, and that is symmetric.",
         "values, vectors = torch.linalg.eigh(cov_1), and R = vectors * "
         "values.clamp(min=0).sqrt().",
         "Then eigvalsh(R.T @ cov_2 @ R); rounding makes some eigenvalues -1e-17, so clamp "
         "again before the root."),
        trace_sqrt,
    ),
    Exercise(
        "16.4", "A distance without a Gaussian", 10, 3, verify_kid,
        ("Write kernel(x, y) first: all products x·y at once are x @ y.T, then divide by d, add "
         "1, cube.",
         "KID is the mean kernel within real, plus that within generated, minus twice the mean "
         "across the two.",
         "Within a set leave out the diagonal: (k.sum() - k.trace()) / (n (n - 1)). Across the "
         "sets keep all pairs."),
        kid,
    ),
    Exercise(
        "16.5", "Sure and varied", 10, 3, _verify_inception_score,
        ("p(y) is the mean of the rows, p(y|x) is a row.",
         "The divergence of a row: the sum over classes of p(y|x) (log p(y|x) - log p(y)). Then "
         "mean, then exp.",
         "0 · log 0 is NaN; torch.xlogy(p, q) is p · log q with 0 where p is 0."),
        inception_score,
    ),
    Exercise(
        "16.6", "Is the metric blind to frame order?", 15, 3, verify_is_order_invariant,
        ("video[:, :, order] has its frames in another order; torch.randperm(f) samples one.",
         "Backwards is one order, and a net of step lengths does not react to it. Try ten.",
         "Compare (net(shuffled) - features).abs().max() with 1e-4 times features.abs().max()."),
        is_order_invariant,
    ),
    Exercise(
        "16.7", "Frame consistency", 10, 2, _verify_frame_consistency,
        ("Make every embedding of length 1; then one matrix product has the cosines of all pairs.",
         "All pairs: everything but the diagonal, f (f - 1) numbers. Neighbours: the diagonal "
         "next to it.",
         "(cosine.sum() - cosine.trace()) / (f * (f - 1)), and cosine.diagonal(offset=1).mean()."),
        frame_consistency,
    ),
)  # fmt: skip
