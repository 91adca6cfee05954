"""Knowing a mistake by what it leads to: the check works out what each plausible mistake gives on its own input."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks.compare import Wrong, same

CLOSE = 1e-4  # of the largest value: float32 passes, and the mistakes are further away


def normal(seed: int, *shape: int) -> Tensor:
    """The same standard normal numbers every time, in float64. seed, shape: of them."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_tensor(got: object) -> object:
    """Numbers in any style (float32, an array, lists, a list of equal tensors) as a float64 tensor; else `got`."""
    try:
        if isinstance(got, list | tuple) and got and all(isinstance(part, Tensor) for part in got):
            got = torch.stack(list(got))
        numbers = torch.as_tensor(got)  # of None a TypeError
    except (TypeError, ValueError, RuntimeError):
        return got
    return got if numbers.is_complex() else numbers.detach().cpu().double()


def near(got: object, expected: Tensor) -> bool:
    """Whether `got` is a tensor that equals `expected`, NaN for NaN, up to `CLOSE` of the largest value."""
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return False
    atol = CLOSE * max(1.0, expected.nan_to_num().abs().max().item())
    return torch.allclose(got, expected, rtol=0, atol=atol, equal_nan=True)


def judge(got: object, expected: Tensor, mistakes: Sequence[tuple[Tensor, str]], what: str) -> None:
    """Raise Wrong unless `got`, what the student returned for `what`, has the values of `expected`, in any style.

    mistakes: the values that each leads to, of any shape, and its message.
    """
    got, expected = as_tensor(got), expected.detach().double()
    if near(got, expected):
        return
    for wrong, message in mistakes:
        if near(got, wrong.double()):
            if got.shape != expected.shape:
                raise Wrong(f"{what}: {message}")
            # the first number that is clearly off: a mistake may leave some rows right
            off = (got - expected).abs()
            where = tuple((~(off <= 0.1 * off.nan_to_num().max())).nonzero()[0].tolist())
            at = f" at index {where}" if expected.numel() > 1 else ""
            raise Wrong(
                f"{what}: got {got[where].item():.4g}{at}, expected {expected[where].item():.4g}. {message}"
            )
    same(got, expected, what, atol=CLOSE * max(1.0, expected.abs().max().item()))


def judge_number(
    got: object, expected: float, mistakes: list[tuple[object, str]], what: str
) -> None:
    """Raise Wrong unless `got`, what the student returned for `what`, is the number `expected`, to 1e-4 of it.

    mistakes: the number that each leads to, and its message.
    """
    if isinstance(got, Tensor | np.ndarray) and got.shape == ():
        got = got.item()
    if isinstance(got, Real) and not math.isclose(got, expected, rel_tol=1e-4, abs_tol=1e-6):
        for wrong, message in mistakes:
            if np.isclose(got, float(wrong), rtol=1e-4, atol=1e-8, equal_nan=True):
                raise Wrong(f"{what}: got {got:.5g}, expected {expected:.5g}. {message}")
    same(got, expected, what, atol=1e-6 + 1e-4 * abs(expected))
