"""Lesson 16's checks of the distances between two sets of features: 16.2, 16.3 and 16.4.

Solutions and hints are in `lesson_16.py`. A mistake is known by the number it leads to on the check's own input.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, same
from course_lib.lab.checks.engine import call
from course_lib.lab.checks.mistakes import judge_number, normal
from course_lib.metrics.distribution import kernel_distance
from course_lib.metrics.frechet import frechet_from_moments, gaussian

# 16.2 -----------------------------------------------------------------------------------------------------------------


def verify_gaussian(attempt: Callable) -> Iterator[str]:
    """Features (n, d) to mean and covariance: more and fewer samples than features, and features far from zero."""
    for seed, n, d in ((3, 12, 4), (4, 3, 5)):
        features = normal(seed, n, d) @ normal(seed + 1, d, d) + torch.arange(1.0, d + 1)
        told = f"features ({n}, {d})"
        _judge_gaussian(call(attempt, features), features, told)
        yield f"mean and covariance of {told} are right"
    far = (3000 + normal(5, 60, 3)).float()
    mean, covariance = (part.double() for part in call(attempt, far))
    expected = gaussian(far)
    off = (covariance - expected.root.T @ expected.root).abs().max()
    if not off < 0.02:  # NaN too
        raise Wrong(
            f"60 features around 3000 in float32, of variance 1: your covariance is off by {off:.2g}. The mean of the "
            "squares minus the square of the mean cancels nearly all digits. Subtract the mean first, then multiply."
        )
    same(mean, expected.mean, "the mean of 60 features around 3000", atol=0.01)
    yield "features far from zero lose no digits in float32"


def _judge_gaussian(got: object, features: Tensor, told: str) -> None:
    n, d = features.shape
    mean, root = gaussian(features)
    covariance = root.T @ root
    if (
        isinstance(got, list | tuple)
        and len(got) == 2
        and all(isinstance(part, Tensor) for part in got)
    ):
        shapes = [tuple(part.shape) for part in got]
        if shapes == [(d, d), (d,)]:
            raise Wrong(f"{told}: you returned the covariance first. Asked for: mean, covariance.")
        if shapes[0] == (n,):
            raise Wrong(
                f"{told}: your mean has {n} numbers: one a sample. Average over the samples, dim=0."
            )
        if shapes[1] == (n, n):
            raise Wrong(
                f"{told}: your covariance is {n} x {n}: of samples, not of features. torch.cov takes every *row* for a "
                "variable: give it features.T. A public diffusion library reported FIDs between 0 and 1 by this slip."
            )
        moment, deviations = features.T @ features, covariance.diagonal().sqrt()
        mistakes = [
            (covariance * (n - 1) / n, f"You divided by n = {n}. Asked for: n - 1 = {n - 1} (some code does divide "
             "by n, and its FID is another number)."),
            (covariance * (n - 1), f"That is a sum over samples: divide by n - 1 = {n - 1}."),
            (moment / (n - 1), "These are products of raw features. Subtract the mean first."),
            (moment / n, "These are products of raw features. Subtract the mean first (and divide by n - 1)."),
            (covariance / deviations.outer(deviations), "That is the correlation, with ones on its diagonal: it has "
             "forgotten how wide the cloud is."),
            (torch.diag(covariance.diagonal()), "Only the variances: between the features there are covariances too."),
        ]  # fmt: skip
        for wrong, message in mistakes:
            if shapes[1] == (d, d) and torch.allclose(got[1].double(), wrong, rtol=1e-4):
                raise Wrong(f"{told}: {message}")
    same(got, (mean, covariance), "(mean, covariance)", input=told)


# 16.3 -----------------------------------------------------------------------------------------------------------------


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


_SMALL = torch.tensor([[2.0, 1], [1, 1]]).double(), torch.tensor([[1.0, 1], [1, 3]]).double()


def _trace_mistakes(a: Tensor, b: Tensor) -> list[tuple[Tensor, str]]:
    p = a @ b
    return [
        (torch.linalg.eigvalsh(p).clamp(min=0).sqrt().sum(), "The product of these symmetric matrices is "
         "[[3, 5], [2, 4]]: not symmetric. eigvalsh reads one triangle only and takes it for [[3, 2], [2, 4]]."),
        (torch.linalg.eigvalsh(p.T).clamp(min=0).sqrt().sum(), "The product is [[3, 5], [2, 4]]: not symmetric. "
         "eigvalsh reads one triangle only, whichever it is."),
        (torch.linalg.eigvalsh((p + p.T) / 2).clamp(min=0).sqrt().sum(), "Making the product symmetric, (P + Pᵀ) / 2, "
         "gives eigvalsh what it wants, but that matrix has other eigenvalues."),
        (p.sqrt().trace(), "P.sqrt() takes the root of every entry. The root of a matrix is R with R @ R = P."),
        ((a.sqrt() @ b.sqrt()).trace(), "sqrt() takes the root of every entry. Of a matrix, R with R @ R = Σ."),
        ((_root(a) @ _root(b)).trace(), "That is Tr Σ₁^½ Σ₂^½, which is right only where Σ₁ and Σ₂ commute."),
        (torch.linalg.svdvals(p).sqrt().sum(), "Those are singular values. For a matrix that is not symmetric they "
         "are not the eigenvalues."),
    ]  # fmt: skip


_CLAMP = "The root of that is NaN: clamp(min=0) before each sqrt."


def _judge_trace(
    attempt: Callable, cov_1: Tensor, cov_2: Tensor, expected: Tensor, mistakes: list, told: str
) -> None:
    try:
        got = call(attempt, cov_1.clone(), cov_2.clone())
    except torch.linalg.LinAlgError as error:
        reason = "zero eigenvalues, and no Cholesky factor: eigh gives a root of any covariance."
        if "cholesky" not in str(error):
            reason = f"eigenvalues that should be 0 and come out as -1e-17. {_CLAMP}"
        raise Wrong(
            f"{told}: {error} With fewer samples than features a covariance has {reason}"
        ) from error
    if isinstance(got, Tensor) and got.is_complex():
        raise Wrong(
            f"{told}: you returned a complex number, {got.item():.4g}. The eigenvalues of Σ₁Σ₂ are real: .real"
        )
    judge_number(got, float(expected), mistakes, told)


def verify_trace_sqrt(attempt: Callable) -> Iterator[str]:
    """Tr (Σ₁Σ₂)^½: diagonal, 2 x 2 by a closed form, 6 x 6 by the library, and singular covariances."""
    diagonal = torch.tensor([1.0, 4, 9]).double(), torch.tensor([16.0, 1, 4]).double()
    expected = (diagonal[0] * diagonal[1]).sqrt().sum()
    mistakes = [
        (56, "That is Tr Σ₁Σ₂: the root is missing."),
        (
            56**0.5,
            "That is the root of the trace. Asked for: the trace of the root, a sum of roots.",
        ),
    ]
    _judge_trace(
        attempt,
        *map(torch.diag, diagonal),
        expected,
        mistakes,
        "diagonal matrices, (1, 4, 9) and (16, 1, 4)",
    )
    yield "for diagonal matrices it is the sum of √(a·b)"
    product = _SMALL[0] @ _SMALL[1]
    expected = (product.trace() + 2 * product.det().sqrt()).sqrt()  # true of any 2 x 2 matrix
    _judge_trace(
        attempt,
        *_SMALL,
        expected,
        _trace_mistakes(*_SMALL),
        "[[2, 1], [1, 1]] and [[1, 1], [1, 3]]",
    )
    covariances = [torch.cov(normal(seed, 6, 30) * 2) for seed in (7, 8)]
    zero = torch.zeros(6).double()
    distance = frechet_from_moments(zero, covariances[0], zero, covariances[1])
    expected = (covariances[0].trace() + covariances[1].trace() - distance) / 2
    _judge_trace(attempt, *covariances, expected, [], "covariances of 30 samples with 6 features")
    yield "right for matrices that do not commute, by a closed form and by the library's Fréchet distance"
    nan = [(math.nan, f"Where an eigenvalue should be 0, rounding leaves some -1e-17. {_CLAMP}")]
    for seed in range(10, 15):
        fits = [gaussian(normal(seed, 4, 12)), gaussian(normal(seed + 10, 5, 12))]
        expected = torch.linalg.svdvals(fits[0].root @ fits[1].root.T).sum()
        singular = [fit.root.T @ fit.root for fit in fits]
        _judge_trace(
            attempt, *singular, expected, nan, "covariances of 4 and 5 samples, 12 features"
        )
    yield "works with fewer samples than features"


# 16.4 -----------------------------------------------------------------------------------------------------------------


def verify_kid(attempt: Callable) -> Iterator[str]:
    """Unbiased cubic MMD²: two sets of different sizes, and two equal ones, where it is negative."""
    real, generated = normal(20, 7, 5), normal(21, 4, 5) + 0.5
    d, expected = real.shape[1], kernel_distance(real, generated)
    cross = ((real @ generated.T / d + 1) ** 3).mean().item()
    biased = kernel_distance(real, generated, unbiased=False)
    traces = [((x.square().sum(dim=1) / d + 1) ** 3).sum().item() for x in (real, generated)]
    among = (((generated @ generated.T / d + 1) ** 3).sum().item() - traces[1]) / 12  # 4 · 3 pairs
    mistakes = [
        (expected - among + among * 12 / 42, "The pairs of generated samples are m (m - 1), not n (n - 1)."),
        (biased, "That counts every sample's pair with itself, the diagonal of k(x, x): the biased estimate, too high. "
         "Leave it out, and divide by n (n - 1)."),
        (biased - traces[0] / 49 - traces[1] / 16, "The diagonals are left out, but you still divide by n²: "
         "n (n - 1) pairs are left."),
        (kernel_distance(real, generated, gamma=1), "The kernel is (x·y / d + 1)³: the division by d is missing."),
        (kernel_distance(real, generated, gamma=1) / d, "d divides the product x·y inside the kernel, not the kernel."),
        (kernel_distance(real, generated, coef=0), "The kernel is (x·y / d + 1)³: without the + 1 it is odd, and "
         "blind to everything that is symmetric about zero."),
        (kernel_distance(real, generated, degree=2), "The kernel is cubic: you squared it."),
        (kernel_distance(real, generated, degree=1), "The kernel is cubic: the power is missing."),
        (expected + cross, "The pairs between the sets count twice: -2 k(x, y)."),
        (expected + 4 * cross, "The pairs between the sets are subtracted: they are the likeness of the two."),
        (-expected, "The sign is flipped: within minus between."),
        (abs(expected) ** 0.5, "That is the MMD. KID is its square: no root."),
    ]  # fmt: skip
    judge_number(
        call(attempt, real, generated), expected, mistakes, "real (7, 5) and generated (4, 5)"
    )
    yield "right for 7 real and 4 generated samples"
    expected = kernel_distance(real, real)
    message = ("You cut it off at 0. Between two draws of one distribution the mean must be zero, so some values must "
               "be negative; with the very same samples twice it is negative too.")  # fmt: skip
    mistakes = [
        (0, message),
        (abs(expected), "An absolute value: " + message[0].lower() + message[1:]),
    ]
    judge_number(call(attempt, real, real.clone()), expected, mistakes, "the same samples twice")
    yield "may fall below zero, as an unbiased estimate must"
