"""The checks of exercises 16.2 to 16.4, distances of two sets of features.

Solutions and hints are in `lesson_16.py`.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_lib.lab.checks import (
    IncorrectAnswer,
    Mistake,
    assert_matches,
    call_on_copies,
    diagnose,
    diagnose_number,
    randn,
    require,
    split_result,
)
from course_lib.metrics.distribution import kernel_distance
from course_lib.metrics.frechet import frechet_from_moments, gaussian

# 16.2 ---------------------------------------------------------------------------------------------


def verify_fit_gaussian(attempt: Callable) -> Iterator[str]:
    """Checks more and fewer samples than features, and features far from zero."""
    for seed, n, d in ((3, 12, 4), (4, 3, 5)):
        features = randn(seed, n, d) @ randn(seed + 1, d, d) + torch.arange(1.0, d + 1)
        _check_gaussian(attempt, features, f"features ({n}, {d})")
        yield f"mean and covariance of features ({n}, {d}) are right"
    far = (3000 + randn(5, 60, 3)).float()
    case = "60 features around 3000 in float32, of variance 1"
    mean, covariance = split_result(call_on_copies(attempt, features=far), "mean, cov", case)
    expected = gaussian(far)
    off = (covariance - expected.cov_root.T @ expected.cov_root).abs().max()
    require(
        off < 0.02,
        f"{case}: your covariance is off by {off:.2g}. The mean of the squares minus the square "
        "of the mean cancels nearly all digits. Subtract the mean first, then multiply.",
    )
    assert_matches(mean, expected.mean, "the mean of 60 features around 3000", atol=0.01)
    yield "features far from zero lose no digits in float32"


def _check_gaussian(attempt: Callable, features: Tensor, case: str) -> None:
    n, d = features.shape
    mean, covariance = split_result(
        call_on_copies(attempt, features=features), "mean, covariance", case
    )
    require(
        not ((mean.shape, covariance.shape) == ((d, d), (d,))),
        f"{case}: you returned the covariance first. The order is mean, covariance.",
    )
    require(
        mean.shape != (n,),
        f"{case}: your mean has {n} numbers: one per sample. Average over the samples, dim=0.",
    )
    require(
        covariance.shape != (n, n),
        f"{case}: your covariance is {n} x {n}: of samples, not of features. torch.cov takes "
        "every *row* for a variable: give it features.T. A public diffusion library reported "
        "FIDs between 0 and 1 by this slip.",
    )
    true_mean, root = gaussian(features)
    true = root.T @ root
    moment, deviations = features.T @ features, true.diagonal().sqrt()
    raw = "These are products of raw features. Subtract the mean first"
    mistakes = [
        (true * (n - 1) / n, f"You divided by n = {n}. The exercise wants n - 1 = {n - 1} (some "
                             "code does divide by n, and its FID is another number)."),
        (true * (n - 1), f"That is a sum over samples: divide by n - 1 = {n - 1}."),
        (moment / (n - 1), f"{raw}."),
        (moment / n, f"{raw} (and divide by n - 1)."),
        (true / deviations.outer(deviations),
         "That is the correlation, with ones on its diagonal: how wide the cloud is, is lost."),
        (torch.diag(true.diagonal()), "These are only the variances: the features have "
                                      "covariances too."),
    ]  # fmt: skip
    diagnose(mean, true_mean, [], f"{case}, the mean")
    diagnose(covariance, true, mistakes, f"{case}, the covariance")


# 16.3 ---------------------------------------------------------------------------------------------


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _trace_mistakes(a: Tensor, b: Tensor) -> list[Mistake]:
    p, linalg = a @ b, torch.linalg
    not_symmetric = "not symmetric. eigvalsh reads one triangle only"
    return [
        (linalg.eigvalsh(p).clamp(min=0).sqrt().sum(),
         f"The product of these symmetric matrices is [[3, 5], [2, 4]]: {not_symmetric} and "
         "takes it for [[3, 2], [2, 4]]."),
        (linalg.eigvalsh(p.T).clamp(min=0).sqrt().sum(),
         f"The product is [[3, 5], [2, 4]]: {not_symmetric}, whichever it is."),
        (linalg.eigvalsh((p + p.T) / 2).clamp(min=0).sqrt().sum(),
         "Making the product symmetric, (P + Pᵀ) / 2, gives eigvalsh what it expects, but that "
         "matrix has other eigenvalues."),
        (p.sqrt().trace(), "P.sqrt() takes the root of every entry. The root of a matrix is R "
                           "with R @ R = P."),
        ((a.sqrt() @ b.sqrt()).trace(), "sqrt() takes the root of every entry. Of a matrix, R "
                                        "with R @ R = Σ."),
        ((_root(a) @ _root(b)).trace(), "That is Tr Σ₁^½ Σ₂^½, which is right only where Σ₁ and "
                                        "Σ₂ commute."),
        (linalg.svdvals(p).sqrt().sum(), "Those are singular values. For a matrix that is not "
                                         "symmetric they are not the eigenvalues."),
    ]  # fmt: skip


_CLAMP = "The root of that is NaN: clamp(min=0) before each sqrt."


def _check_trace(
    attempt: Callable, covariances: list[Tensor], expected: Tensor, mistakes: list, case: str
) -> None:
    try:
        result = call_on_copies(attempt, cov_1=covariances[0], cov_2=covariances[1])
    except torch.linalg.LinAlgError as error:
        cholesky = "zero eigenvalues, and no Cholesky factor: eigh gives a root of any covariance."
        rounding = f"eigenvalues that should be 0 and come out as -1e-17. {_CLAMP}"
        reason = cholesky if "cholesky" in str(error) else rounding
        raise IncorrectAnswer(
            f"{case}: {error} With fewer samples than features a covariance has {reason}"
        ) from error
    require(
        not (isinstance(result, Tensor) and result.is_complex()),
        f"{case}: you returned a complex number, {result}. The eigenvalues of Σ₁Σ₂ are real: .real",
    )
    diagnose_number(result, float(expected), mistakes, case)


def verify_trace_sqrt(attempt: Callable) -> Iterator[str]:
    """Checks diagonal matrices, 2 x 2, 6 x 6, and singular ones."""
    diagonal = torch.diag_embed(torch.tensor([[1.0, 4, 9], [16.0, 1, 4]]).double())
    small = torch.tensor([[[2.0, 1], [1, 1]], [[1, 1], [1, 3]]]).double()
    for case, (cov_1, cov_2), mistakes in (
        ("diagonal matrices, (1, 4, 9) and (16, 1, 4)", diagonal, [
            (56, "That is Tr Σ₁Σ₂: the root is missing."),
            (56**0.5, "That is the root of the trace, not the trace of the root, a sum of roots."),
        ]),
        ("[[2, 1], [1, 1]] and [[1, 1], [1, 3]]", small, _trace_mistakes(*small)),
        ("covariances of 30 samples with 6 features",
         [torch.cov(2 * randn(seed, 6, 30)) for seed in (7, 8)], []),
    ):  # fmt: skip
        zero = torch.zeros(len(cov_1)).double()
        distance = frechet_from_moments(zero, cov_1, zero, cov_2)
        expected = (cov_1.trace() + cov_2.trace() - distance) / 2
        _check_trace(attempt, [cov_1, cov_2], expected, mistakes, case)
        yield f"{case}: as in the library's Fréchet distance"
    nan = [(math.nan, f"Where an eigenvalue should be 0, rounding leaves some -1e-17. {_CLAMP}")]
    for seed in range(10, 15):
        roots = [gaussian(randn(seed + 10 * i, 4 + i, 12)).cov_root for i in range(2)]
        _check_trace(
            attempt,
            [root.T @ root for root in roots],
            torch.linalg.svdvals(roots[0] @ roots[1].T).sum(),
            nan,
            "covariances of 4 and 5 samples, 12 features",
        )
    yield "works with fewer samples than features"


# 16.4 ---------------------------------------------------------------------------------------------


def verify_kid(attempt: Callable) -> Iterator[str]:
    """Checks two sets of different sizes, then two equal ones, where KID is negative."""
    real, generated = randn(20, 7, 5), randn(21, 4, 5) + 0.5
    d, expected = real.shape[1], kernel_distance(real, generated)
    cross = ((real @ generated.T / d + 1) ** 3).mean().item()
    biased = kernel_distance(real, generated, unbiased=False)
    traces = [((x.square().sum(dim=1) / d + 1) ** 3).sum().item() for x in (real, generated)]
    within = (((generated @ generated.T / d + 1) ** 3).sum().item() - traces[1]) / 12  # 4 · 3 pairs
    mistakes = [
        (expected - within + within * 12 / 42,
         "The pairs of generated samples are m (m - 1), not n (n - 1)."),
        (biased, "That counts every sample's pair with itself, the diagonal of k(x, x): the "
                 "biased estimate, too high. Leave it out, and divide by n (n - 1)."),
        (biased - traces[0] / 49 - traces[1] / 16,
         "The diagonals are left out, but you still divide by n²: n (n - 1) pairs are left."),
        (kernel_distance(real, generated, gamma=1),
         "The kernel is (x·y / d + 1)³: the division by d is missing."),
        (kernel_distance(real, generated, gamma=1) / d,
         "d divides the product x·y inside the kernel, not the kernel."),
        (kernel_distance(real, generated, coef=0),
         "The kernel is (x·y / d + 1)³: without the + 1 it is odd, and blind to everything that "
         "is symmetric about zero."),
        (kernel_distance(real, generated, degree=2), "The kernel is cubic: you squared it."),
        (kernel_distance(real, generated, degree=1), "The kernel is cubic: the power is missing."),
        (expected + cross, "The pairs across the two sets count twice: -2 k(x, y)."),
        (expected + 4 * cross, "The pairs across the two sets are subtracted: they are the "
                               "likeness of the two."),
        (-expected, "The sign is flipped: within minus across."),
        (abs(expected) ** 0.5, "That is the MMD. KID is its square: no root."),
    ]  # fmt: skip
    diagnose_number(
        call_on_copies(attempt, real=real, generated=generated),
        expected,
        mistakes,
        "real (7, 5) and generated (4, 5)",
    )
    yield "right for 7 real and 4 generated samples"
    expected = kernel_distance(real, real)
    why = (
        "For two sets of one distribution the mean must be zero, so some values must be negative; "
        "with the very same samples twice it is negative too."
    )
    mistakes = [
        (0, f"You cut it off at 0. {why}"),
        (abs(expected), f"You took the absolute value. {why}"),
    ]
    diagnose_number(
        call_on_copies(attempt, real=real, generated=real),
        expected,
        mistakes,
        "the same samples twice",
    )
    yield "may fall below zero, as an unbiased estimate must"
