"""Wrong answers to the exercises of lesson 16, and the message that each gets."""

import math

import torch

from course_lib.exercises.lesson_16 import (
    EXERCISES,
    frame_consistency,
)

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def decibels(video, reference, axes=(1, 3, 4), peak=2, log=torch.log10, power=2):
    return (10 * log(peak**power / (video - reference).square().mean(axes))).mean()


def moments(features, ddof=1, centre=True):
    mean = features.mean(0)
    rows = features - mean if centre else features
    return mean, rows.T @ rows / (len(features) - ddof)


def cancelling(features):
    """Mean of squares minus square of the mean: right in exact arithmetic."""
    n, mean = len(features), features.mean(0)
    return mean, (features.T @ features / n - mean.outer(mean)) * n / (n - 1)


def flat(values):
    return values.clamp(min=0).sqrt().sum()


def root(matrix, least=0.0):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=least).sqrt() @ vectors.T


def the_bug(a, b):
    """What the student is given in 16.3."""
    return flat(torch.linalg.eigvalsh(a @ b))


def without_any_clamp(a, b):
    values, vectors = torch.linalg.eigh(a)
    half = vectors * values.sqrt()
    return torch.linalg.eigvalsh(half.T @ b @ half).sqrt().sum()


def without_the_last_clamp(a, b):
    return torch.linalg.eigvalsh(root(a) @ b @ root(a)).sqrt().sum()


def by_cholesky(a, b):
    lower = torch.linalg.cholesky(a)
    return flat(torch.linalg.eigvalsh(lower.T @ b @ lower))


def mmd(real, generated, gamma=None, coef=1, degree=3, own=False, cross=2, pairs=True):
    gamma = 1 / real.shape[1] if gamma is None else gamma

    def within(x):
        kernel, n = (x @ x.T * gamma + coef) ** degree, len(x)
        return (
            kernel.mean()
            if own
            else (kernel.sum() - kernel.trace()) / (n * (n - 1) if pairs else n * n)
        )

    return (
        within(real)
        + within(generated)
        - cross * ((real @ generated.T * gamma + coef) ** degree).mean()
    )


def one_count_for_both(real, generated):
    """Divides both sums by n (n - 1), although the generated samples are m."""
    kernel, n = (generated @ generated.T / real.shape[1] + 1) ** 3, len(real)
    among, m = kernel.sum() - kernel.trace(), len(generated)
    return mmd(real, generated) - among / (m * (m - 1)) + among / (n * (n - 1))


def cosines(frames, dim=1):
    unit = frames / frames.norm(dim=dim, keepdim=True)
    return unit @ unit.T


def off_diagonal(matrix):
    return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))


def to_the_first(frames):
    return cosines(frames)[0, 1:].mean()


def divergences(p, marginal_axis=0):
    return p * (p.log() - p.mean(marginal_axis, keepdim=True).log())


def with_a_constant(p, small):
    return (p * ((p + small) / (p.mean(0) + small)).log()).sum(1).mean().exp()


def tries(orders, same=None):
    """A test of order-blindness that tries these orders, and compares by `same`."""
    same = same or (lambda a, b: (a - b).abs().max() <= 1e-4 * a.abs().max())
    return lambda net, video: bool(
        all(same(net(video), net(video[:, :, order])) for order in orders)
    )


def random_orders(same, count=10):
    return lambda net, video: tries([torch.randperm(8) for _ in range(count)], same)(net, video)


BACK = torch.arange(7, -1, -1)
ROUND = [torch.arange(8).roll(k) for k in range(1, 8)]

MUTANTS = [
    ("16.1", lambda v, r: decibels(v, r, peak=1), "6.02 dB low"),
    ("16.1", lambda v, r: decibels(v, r, peak=255), "belongs to bytes"),
    ("16.1", lambda v, r: decibels(v / 2, r / 2), "6.02 dB high"),
    ("16.1", lambda v, r: decibels(v, r, log=torch.log), "natural logarithm"),
    ("16.1", lambda v, r: decibels(v, r) / 2, "a root has slipped in"),
    ("16.1", lambda v, r: 2 * decibels(v, r), "20 log10 belongs to the root"),
    ("16.1", lambda v, r: decibels(v, r, power=1), "the peak must be too"),
    ("16.1", lambda v, r: -decibels(v, r), "The sign is flipped"),
    ("16.1", lambda v, r: (v - r).square().mean(), "That is the mean squared error"),
    ("16.1", lambda v, r: decibels(v, r, axes=(0, 1, 2, 3, 4)), "the pooled convention"),
    ("16.1", lambda v, r: decibels(v, r, axes=(1, 2, 3, 4)), "one PSNR per clip"),
    ("16.1", lambda v, r: decibels(v, r, axes=(0, 1, 3, 4)), "averaged over the clips too"),
    ("16.1", lambda v, r: decibels(v, r, axes=(2, 3, 4)), "axis 2 is f"),
    ("16.1", lambda v, r: decibels(v, r, axes=(3, 4)), "one PSNR per channel"),
    (
        "16.1",
        lambda v, r: (10 * torch.log10(4 / (v - r).square().mean((1, 3, 4)))).squeeze(),
        "a table (b, f)",
    ),
    ("16.1", lambda v, r: None, "Is a `return` missing?"),
    ("16.2", lambda x: moments(x, ddof=0), "You divided by n = 12"),
    ("16.2", lambda x: moments(x, ddof=len(x) - 1), "a sum over samples"),
    ("16.2", lambda x: moments(x, centre=False), "Subtract the mean first."),
    ("16.2", lambda x: moments(x, ddof=0, centre=False), "Subtract the mean first (and divide"),
    ("16.2", lambda x: (x.mean(0), torch.cov(x)), "12 x 12: of samples"),
    ("16.2", lambda x: (x.mean(0), torch.corrcoef(x.T)), "That is the correlation"),
    ("16.2", lambda x: (x.mean(0), x.var(0).diag()), "only the variances"),
    ("16.2", lambda x: (x.mean(0), x.var(0)), "the covariance: shape is (4,), expected (4, 4)"),
    ("16.2", lambda x: (x.mean(1), torch.cov(x.T)), "your mean has 12 numbers"),
    ("16.2", lambda x: moments(x)[::-1], "the covariance first"),
    ("16.2", lambda x: torch.cov(x.T), "expected (mean, covariance), got tensor"),
    ("16.2", cancelling, "cancels nearly all digits"),
    ("16.3", the_bug, "takes it for [[3, 2], [2, 4]]"),
    ("16.3", lambda a, b: flat(torch.linalg.eigvalsh(a @ b, UPLO="U")), "whichever it is"),
    (
        "16.3",
        lambda a, b: flat(torch.linalg.eigvalsh((a @ b + b @ a) / 2)),
        "has other eigenvalues",
    ),
    ("16.3", lambda a, b: (a @ b).sqrt().trace(), "P.sqrt() takes the root of every entry"),
    (
        "16.3",
        lambda a, b: (a.sqrt() @ b.sqrt()).trace(),
        "sqrt() takes the root of every entry. Of a matrix",
    ),
    ("16.3", lambda a, b: (root(a) @ root(b)).trace(), "only where Σ₁ and Σ₂ commute"),
    ("16.3", lambda a, b: torch.linalg.svdvals(a @ b).sqrt().sum(), "Those are singular values"),
    (
        "16.3",
        lambda a, b: torch.linalg.eigvals(a @ b).sqrt().sum(),
        "you returned a complex number",
    ),
    ("16.3", lambda a, b: (a @ b).trace(), "the root is missing"),
    ("16.3", lambda a, b: (a @ b).trace().sqrt(), "a sum of roots"),
    ("16.3", without_any_clamp, "clamp(min=0) before each sqrt"),
    ("16.3", without_the_last_clamp, "clamp(min=0) before each sqrt"),
    ("16.3", by_cholesky, "no Cholesky factor"),
    ("16.4", lambda x, y: mmd(x, y, own=True), "pair with itself"),
    ("16.4", lambda x, y: mmd(x, y, pairs=False), "you still divide by n²"),
    ("16.4", one_count_for_both, "are m (m - 1), not n (n - 1)"),
    ("16.4", lambda x, y: mmd(x, y, gamma=1), "the division by d is missing"),
    ("16.4", lambda x, y: mmd(x, y, gamma=1) / x.shape[1], "inside the kernel"),
    ("16.4", lambda x, y: mmd(x, y, coef=0), "without the + 1 it is odd"),
    ("16.4", lambda x, y: mmd(x, y, degree=2), "you squared it"),
    ("16.4", lambda x, y: mmd(x, y, degree=1), "the power is missing"),
    ("16.4", lambda x, y: mmd(x, y, cross=1), "count twice"),
    ("16.4", lambda x, y: mmd(x, y, cross=-2), "are subtracted"),
    ("16.4", lambda x, y: -mmd(x, y), "The sign is flipped"),
    ("16.4", lambda x, y: mmd(x, y).clamp(min=0).sqrt(), "That is the MMD"),
    ("16.4", lambda x, y: mmd(x, y).clamp(min=0), "You cut it off at 0"),
    ("16.4", lambda x, y: abs(mmd(x, y)), "You took the absolute value"),
    ("16.5", lambda p: divergences(p).sum(1).mean(), "exp is missing"),
    ("16.5", lambda p: torch.special.entr(p.mean(0)).sum().exp(), "exp of the entropy of p(y)"),
    ("16.5", lambda p: (-torch.special.entr(p).sum(1).mean()).exp(), "p(y) does not enter"),
    (
        "16.5",
        lambda p: (p.mean(0) * (p.mean(0) / p).log()).sum(1).mean().exp(),
        "the other way round",
    ),
    ("16.5", lambda p: divergences(p, 1).sum(1).mean().exp(), "the same for all classes"),
    ("16.5", lambda p: divergences(p).sum(1).exp().mean(), "not the mean of exps"),
    ("16.5", lambda p: divergences(p).sum().exp(), "sums over samples too"),
    ("16.5", lambda p: divergences(p).mean().exp(), "averages over classes too"),
    ("16.5", lambda p: divergences(p).sum(0).mean().exp(), "Sums and means are swapped"),
    ("16.5", lambda p: (divergences(p).sum(1).mean() / math.log(2)).exp(), "log2 and exp"),
    ("16.5", lambda p: (-divergences(p).sum(1).mean()).exp(), "The sign is flipped"),
    ("16.5", lambda p: divergences(p).sum(1).mean().exp(), "0 · log 0 is NaN"),
    ("16.5", lambda p: with_a_constant(p, 1e-2), "The constant 0.01 inside the logarithm"),
    ("16.5", lambda p: with_a_constant(p, 1e-4), "The constant 0.0001 inside the logarithm"),
    ("16.6", tries([BACK]), "the mean step from frame to frame. You tried the order 76543210"),
    ("16.6", lambda net, video: tries([BACK])(net, video[:1]), "You tried the order 76543210"),
    ("16.6", tries(ROUND), "from the last frame to the first. You tried the order 12345670"),
    (
        "16.6",
        tries([torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])]),
        "only frame 2. You tried the order 10234567",
    ),
    ("16.6", tries([torch.tensor([2, 0, 3, 1, 6, 7, 5, 4])]), "one other order only"),
    ("16.6", tries([torch.arange(8)]), "never given the frames in another order"),
    (
        "16.6",
        lambda net, video: torch.equal(net(video), net(video.flip(0))),
        "never given the frames in another order",
    ),
    (
        "16.6",
        lambda net, video: torch.equal(net(video), net(video + 1)),
        "frames that the video does not have",
    ),
    (
        "16.6",
        lambda net, video: net(video.transpose(1, 2)) is not None,
        "it got tensor of shape (2, 8, 3, 4, 4)",
    ),
    ("16.6", lambda net, video: True, "net was never called"),
    ("16.6", random_orders(torch.equal), "You returned False for a mean over frames"),
    ("16.6", random_orders(torch.allclose), "some features are near 0"),
    (
        "16.6",
        random_orders(lambda a, b: (a - b).abs().max() < 1e-7),
        "You returned False for a mean over frames",
    ),
    (
        "16.6",
        random_orders(lambda a, b: (a - b).abs().max() < 0.01),
        "in tiny units, features of about 1e-7",
    ),
    ("16.6", random_orders(lambda a, b: a.shape == b.shape), "your comparison missed it"),
    (
        "16.6",
        random_orders(lambda a, b: abs(a.mean() - b.mean()) <= 1e-4 * abs(a.mean())),
        "each frame's brightness",
    ),
    (
        "16.6",
        random_orders(lambda a, b: (a - b).abs().max() <= 0.2 * a.abs().max()),
        "larger by a few per cent",
    ),
    ("16.6", lambda net, video: net(video) - net(video[:, :, BACK]), "expected True or False"),
    ("16.7", lambda x: (cosines(x).mean(), frame_consistency(x)[1]), "cosine with themselves"),
    ("16.7", lambda x: frame_consistency(x)[::-1], "The two are swapped"),
    ("16.7", lambda x: (off_diagonal(x @ x.T), frame_consistency(x)[1]), "not of length 1"),
    (
        "16.7",
        lambda x: (frame_consistency(x)[0], (x @ x.T).diagonal(offset=1).mean()),
        "not of length 1",
    ),
    (
        "16.7",
        lambda x: (off_diagonal(cosines(x, dim=0)), frame_consistency(x)[1]),
        "norms over the frames",
    ),
    ("16.7", lambda x: (to_the_first(x), frame_consistency(x)[1]), "with the first one only"),
    ("16.7", lambda x: (frame_consistency(x)[0], to_the_first(x)), "with the first one only"),
    (
        "16.7",
        lambda x: (frame_consistency(x)[0] * (len(x) - 1) / len(x), frame_consistency(x)[1]),
        "divide by f²",
    ),
    ("16.7", lambda x: (cosines(x).triu(1).sum() / 20, frame_consistency(x)[1]), "Half of it"),
    (
        "16.7",
        lambda x: (frame_consistency(x)[0], cosines(x).diagonal(offset=1).sum() / len(x)),
        "divide by f - 1",
    ),
    (
        "16.7",
        lambda x: (frame_consistency(x)[0], (cosines(x) * torch.eye(len(x)).roll(1, 0)).sum() / 5),
        "as roll does",
    ),
    ("16.7", lambda x: (frame_consistency(x)[1],) * 2, "All pairs: every frame with every other"),
    ("16.7", lambda x: (frame_consistency(x)[0],) * 2, "Neighbours: frames t and t + 1"),
    ("16.7", lambda x: frame_consistency(x)[0], "expected (all_pairs, consecutive)"),
]
