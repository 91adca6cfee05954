"""Comparing an attempt with the truth, in words a student can act on."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

RELATIVE = 1e-5


class Wrong(AssertionError):
    """An attempt is wrong; the message tells the student what is wrong and which input shows it."""


def brief(value: Any) -> str:
    """A value in a few words: "tensor of shape (2, 3), float32", "[1, 2]", "'left'"."""
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return f"tensor({value.item():.6g})"
        return f"tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}, {value.dtype}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__} module"
    if isinstance(value, list | tuple) and any(
        isinstance(part, Tensor | np.ndarray) for part in value
    ):
        return f"{type(value).__name__} of ({', '.join(brief(part) for part in value)})"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def same(
    actual: Any,
    expected: Any,
    what: str = "the result",
    atol: float | int = 1e-5,
    input: Any = None,
) -> None:
    """Raise Wrong, saying exactly how, unless `actual` is `expected`.

    `expected`: a tensor, array, number, string, or a tuple or list of them; else ==.
    `what`: the subject of the message. `atol`: absolute tolerance (beside 1e-5 of the expected value).
    `input`: what the student's function was given: a description, or the value itself.
    """
    problem = _problem(actual, expected, float(atol))
    if problem:
        given = (
            ""
            if input is None
            else f" (input: {input if isinstance(input, str) else brief(input)})"
        )
        raise Wrong(f"{what}{given}: {problem}")


def _problem(actual: Any, expected: Any, atol: float) -> str:
    """What is wrong with `actual`; empty if nothing is."""
    if actual is None and expected is not None:
        return f"got None, expected {brief(expected)}. Is a `return` missing?"
    if isinstance(expected, Tensor | np.ndarray):
        return _array_problem(actual, expected, atol)
    if isinstance(expected, list | tuple):
        return _sequence_problem(actual, expected, atol)
    if isinstance(expected, bool | str) or not isinstance(expected, int | float):
        return (
            "" if _equal(actual, expected) else f"got {brief(actual)}, expected {brief(expected)}"
        )
    if isinstance(actual, Tensor | np.ndarray) and tuple(actual.shape) in ((), (1,)):
        actual = actual.item()
    if not isinstance(actual, int | float | np.number):
        return f"got {brief(actual)}, expected the number {brief(expected)}"
    if abs(actual - expected) <= atol + RELATIVE * abs(expected):
        return ""
    return f"got {brief(actual)}, expected {brief(expected)}" + _ratio_words(actual, expected)


def _equal(actual: Any, expected: Any) -> bool:
    return type(actual) is not Tensor and bool(actual == expected)


def _ratio_words(actual: float | int, expected: float | int) -> str:
    if expected == 0 or not np.isfinite(actual):
        return ""
    words = _factor(float(actual) / float(expected))
    return f": {words}" if words else ""


def _factor(ratio: float) -> str:
    """Words for a ratio that has a simple form, such as 2, 1/3 or a flipped sign; empty otherwise."""
    if abs(ratio + 1) < 1e-4:
        return "the sign is flipped"
    for power, form in ((1, "{}"), (2, "the square root of {}")):
        simple = Fraction(abs(ratio) ** power).limit_denominator(64)
        if (
            simple > 0
            and simple.numerator <= 4096
            and abs(float(simple) / abs(ratio) ** power - 1) < 1e-5
        ):
            sign = "minus " if ratio < 0 else ""
            return f"off by a factor of exactly {sign}{form.format(simple)}"
    return ""


def _sequence_problem(actual: Any, expected: list | tuple, atol: float) -> str:
    if not isinstance(actual, list | tuple | torch.Size):
        return f"got {brief(actual)}, expected a {type(expected).__name__} of {len(expected)} parts"
    if len(actual) != len(expected):
        return f"got {len(actual)} parts, expected {len(expected)}: {brief(actual)}"
    for i, (mine, true) in enumerate(zip(actual, expected, strict=True)):
        problem = _problem(mine, true, atol)
        if problem:
            return f"part {i}: {problem}"
    return ""


def _array_problem(actual: Any, expected: Tensor | np.ndarray, atol: float) -> str:
    if type(actual) is not type(expected) and not (
        isinstance(actual, Tensor) and isinstance(expected, Tensor)  # a Parameter is a tensor
    ):
        return f"got {brief(actual)}, expected a {brief(expected)}"
    mine, true = (torch.as_tensor(value).detach().cpu() for value in (actual, expected))
    if mine.shape != true.shape:
        return _shape_problem(mine, true, atol)
    if mine.dtype != true.dtype:
        return f"dtype is {mine.dtype}, expected {true.dtype}"
    mine, true = mine.double(), true.double()
    if _close(mine, true, atol):
        return ""
    if not torch.isfinite(mine).all() and torch.isfinite(true).all():
        where = tuple((~torch.isfinite(mine)).nonzero()[0].tolist())
        return f"the shape is right, but the value at index {where} is {mine[where].item()}"
    pattern = _pattern(mine, true, atol)
    return (
        f"the shape is right, but {pattern}. "
        if pattern
        else "the shape is right, the values are not. "
    ) + (_first_difference(mine, true, atol))


def _close(mine: Tensor, true: Tensor, atol: float) -> bool:
    return torch.allclose(mine, true, rtol=RELATIVE, atol=atol, equal_nan=True)


def _shape_problem(mine: Tensor, true: Tensor, atol: float) -> str:
    text = f"shape is {tuple(mine.shape)}, expected {tuple(true.shape)}"
    if sorted(mine.shape) == sorted(true.shape):
        for order in itertools.permutations(range(true.ndim)):
            if mine.permute(order).shape == true.shape and _close(
                mine.permute(order).double(), true.double(), atol
            ):
                return (
                    f"{text}: right values, but axes are swapped; .permute{order} puts them right"
                )
        return f"{text}: the same sizes in another order"
    if mine.numel() == true.numel():
        return f"{text}: as many values, arranged otherwise"
    return text


def _pattern(mine: Tensor, true: Tensor, atol: float) -> str:
    """A known mistake that explains all the values at once; empty if none does."""
    if mine.numel() < 2 or not (mine != 0).any():
        return "every value is zero" if mine.numel() > 1 else ""
    ratio = float((mine * true).sum() / true.square().sum().clamp(min=1e-30))
    words = _factor(ratio) if ratio != 0 and _close(mine / ratio, true, atol) else ""
    if words:
        return (
            f"every value is {words}" if "factor" in words else "every value has its sign flipped"
        )
    offset = (mine - true).mean()
    if _close(mine - offset, true, atol) and mine.unique().numel() > 1:
        return f"every value is off by the same {offset.item():+.6g}"
    if mine.ndim > 1 and mine.ndim <= 5:
        for order in itertools.permutations(range(mine.ndim)):
            moved = mine.permute(order)
            if moved.shape == true.shape and _close(moved, true, atol):
                return f"axes are swapped: .permute{order} would put them right"
    for axis, size in enumerate(mine.shape):
        if size > 1 and _close(mine.flip(axis), true, atol):
            return f"axis {axis} runs backwards"
        for step in (1, -1):
            cut = size - 1
            if size > 2 and _close(
                mine.narrow(axis, max(step, 0), cut), true.narrow(axis, max(-step, 0), cut), atol
            ):
                return f"everything sits one step too {'late' if step == 1 else 'early'} along axis {axis}"
    return ""


def _first_difference(mine: Tensor, true: Tensor, atol: float) -> str:
    off = ~torch.isclose(mine, true, rtol=RELATIVE, atol=atol, equal_nan=True)
    where = tuple(off.nonzero()[0].tolist())
    largest = (mine - true).abs().nan_to_num(torch.inf).max().item()
    return (
        f"It differs first at index {where}: got {mine[where].item():.6g}, expected {true[where].item():.6g} "
        f"({int(off.sum())} of {off.numel()} values differ, by at most {largest:.3g})"
    )
