"""Compares an attempt with the expected value and explains the difference to a student."""

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

RELATIVE_TOLERANCE = 1e-5


class IncorrectAnswer(AssertionError):
    """An attempt is wrong. The message says what is wrong and which input shows it."""


def require(condition: object, message: str) -> None:
    """Raises IncorrectAnswer with the message unless the condition is true."""
    if not condition:
        raise IncorrectAnswer(message)


def describe_value(value: Any) -> str:
    """A value in a few words: "tensor of shape (2, 3), float32", "[1, 2]", "'left'"."""
    return safe_text(value, _describe)


def _describe(value: Any) -> str:
    match value:
        case Tensor(ndim=0):
            return f"tensor({value.item():.6g})"
        case Tensor(shape=shape, dtype=dtype):
            return f"tensor of shape {tuple(shape)}, {str(dtype).removeprefix('torch.')}"
        case np.ndarray(shape=shape, dtype=dtype):
            return f"array of shape {shape}, {dtype}"
        case float():
            return f"{value:.6g}"
        case torch.nn.Module():
            return f"a {type(value).__name__} module"
        case list() | tuple() if any(isinstance(x, Tensor | np.ndarray) for x in value):
            return f"{type(value).__name__} of ({', '.join(map(describe_value, value))})"
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def safe_text(value: object, convert: Callable[[object], str] = str) -> str:
    """A value as text; if the conversion raises an error, words that say so.

    Args:
        value: anything, such as an object of a student's own class.
        convert: makes the text.
    """
    try:
        text = convert(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = f"a {type(value).__name__} without a text: {type(error).__name__}"
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be shown


def as_tensor(value: object) -> object:
    """Numbers in any container as a float64 tensor on the CPU; anything else unchanged.

    Args:
        value: a tensor, an array, numbers in nested lists, or a list of equally shaped tensors.
    """
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(x, Tensor) for x in value):
            value = torch.stack(list(value))
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value
    return value if numbers.is_complex() else numbers.detach().cpu().double()


def as_number(value: object) -> object:
    """The number in a tensor or array of shape () or (1,); anything else unchanged."""
    has_one = isinstance(value, Tensor | np.ndarray) and tuple(value.shape) in ((), (1,))
    return value.item() if has_one else value


def assert_matches(
    actual: Any,
    expected: Any,
    name: str = "the result",
    atol: float | int = 1e-5,
    input: Any = None,
) -> None:
    """Compares two values; lists, tuples, arrays of numbers and NumPy numbers stand for each other.

    Args:
        actual: what the student's code returned.
        expected: a tensor, an array, a number, a string, or a tuple or list of them; other values
            are compared by ==.
        name: the subject of the message.
        atol: absolute tolerance, in addition to 1e-5 of the expected value.
        input: what the student's function was called with: a description, or the value itself.

    Raises:
        IncorrectAnswer: if they differ. The message says how.
    """
    problem = _problem(actual, expected, float(atol))
    if problem:
        text = input if isinstance(input, str) else describe_value(input)
        raise IncorrectAnswer(f"{name}{'' if input is None else f' (input: {text})'}: {problem}")


def _problem(actual: Any, expected: Any, atol: float) -> str:
    """Describes the difference; empty if there is none."""
    if actual is None and expected is not None:
        return f"got None, expected {describe_value(expected)}. Is a `return` missing?"
    match expected:
        case Tensor() | np.ndarray():
            return _array_problem(actual, expected, atol)
        case list() | tuple():
            return _sequence_problem(actual, expected, atol)
    unequal = f"got {describe_value(actual)}, expected {describe_value(expected)}"
    if isinstance(expected, bool | str) or not isinstance(expected, int | float):
        is_equal = type(actual) is not Tensor and bool(actual == expected)
        return "" if is_equal else unequal
    actual = as_number(actual)
    if not isinstance(actual, int | float | np.number):
        return f"got {describe_value(actual)}, expected the number {describe_value(expected)}"
    if abs(actual - expected) <= atol + RELATIVE_TOLERANCE * abs(expected):
        return ""
    is_ratio = expected != 0 and np.isfinite(actual)
    factor = _describe_factor(float(actual) / float(expected)) if is_ratio else ""
    return f"{unequal}: {factor}" if factor else unequal


def _describe_factor(ratio: float) -> str:
    """Describes a simple ratio such as 2, 1/3, the square root of 2 or -1; else empty."""
    if abs(ratio + 1) < 1e-4:
        return "of the wrong sign"
    for power, form in ((1, "{}"), (2, "the square root of {}")):
        value = abs(ratio) ** power
        simple = Fraction(value).limit_denominator(64)
        if 0 < simple.numerator <= 4096 and abs(float(simple) / value - 1) < 1e-5:
            sign = "minus " if ratio < 0 else ""
            return f"off by a factor of exactly {sign}{form.format(simple)}"
    return ""


def _sequence_problem(actual: Any, expected: list | tuple, atol: float) -> str:
    if isinstance(actual, Tensor | np.ndarray) and actual.ndim:
        actual = list(actual)
    if not isinstance(actual, list | tuple):
        parts = f"a {type(expected).__name__} of {len(expected)} parts"
        return f"got {describe_value(actual)}, expected {parts}"
    if len(actual) != len(expected):
        return f"got {len(actual)} parts, expected {len(expected)}: {describe_value(actual)}"
    problems = (_problem(*pair, atol) for pair in zip(actual, expected, strict=True))
    return next((f"part {i}: {text}" for i, text in enumerate(problems) if text), "")


def _array_problem(actual: Any, expected: Tensor | np.ndarray, atol: float) -> str:
    if not isinstance(actual, Tensor if isinstance(expected, Tensor) else np.ndarray):
        values = as_tensor(actual)
        is_right = isinstance(values, Tensor) and _is_close(values, as_tensor(expected), atol)
        container = type(expected).__name__
        advice = f": the values are right, but in a {type(actual).__name__}, not in a {container}"
        problem = f"got {describe_value(actual)}, expected a {describe_value(expected)}"
        return problem + advice * is_right
    mine, true = (torch.as_tensor(value).detach().cpu() for value in (actual, expected))
    if mine.shape != true.shape:
        return _shape_problem(mine.double(), true.double(), atol)
    if mine.dtype != true.dtype:
        return f"dtype is {mine.dtype}, expected {true.dtype}"
    mine, true = mine.double(), true.double()
    if _is_close(mine, true, atol):
        return ""
    if not torch.isfinite(mine).all() and torch.isfinite(true).all():
        index = tuple((~torch.isfinite(mine)).nonzero()[0].tolist())
        return f"the shape is right, but the value at index {index} is {mine[index].item()}"
    pattern = _value_pattern(mine, true, atol)
    verdict = f"but {pattern}" if pattern else "the values are not"
    return f"the shape is right, {verdict}. {_first_difference(mine, true, atol)}"


def _is_close(mine: Tensor, true: Tensor, atol: float) -> bool:
    return mine.shape == true.shape and torch.allclose(
        mine, true, rtol=RELATIVE_TOLERANCE, atol=atol, equal_nan=True
    )


def _axis_order(mine: Tensor, true: Tensor, atol: float) -> tuple[int, ...] | None:
    """The permutation of axes that turns one tensor into the other, if there is one."""
    orders = itertools.permutations(range(mine.ndim)) if 1 < mine.ndim <= 5 else ()
    return next((order for order in orders if _is_close(mine.permute(order), true, atol)), None)


def _shape_problem(mine: Tensor, true: Tensor, atol: float) -> str:
    text = f"shape is {tuple(mine.shape)}, expected {tuple(true.shape)}"
    if order := _axis_order(mine, true, atol):
        return f"{text}: right values, but axes are swapped; .permute{order} puts them right"
    if sorted(mine.shape) == sorted(true.shape):
        return f"{text}: the same sizes in another order"
    if mine.numel() == true.numel():
        return f"{text}: the right number of values, but in another shape"
    return text


def _value_pattern(mine: Tensor, true: Tensor, atol: float) -> str:
    """Describes a common mistake that explains all values at once; empty if none does."""
    if mine.numel() < 2:
        return ""
    if not mine.any():
        return "every value is zero"
    return next((text for text, *pair in _patterns(mine, true) if _is_close(*pair, atol)), "")


def _patterns(mine: Tensor, true: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Common mistakes: the words, and two tensors that are equal if it is this one."""
    ratio = float((mine * true).sum() / true.square().sum().clamp(min=1e-30))
    if ratio and (factor := _describe_factor(ratio)):
        yield f"every value is {factor}", mine / ratio, true
    if mine.unique().numel() > 1:
        offset = (mine - true).mean()
        yield f"every value is off by the same {offset.item():+.6g}", mine - offset, true
    for order in itertools.permutations(range(mine.ndim)) if mine.ndim <= 5 else ():
        yield f"axes are swapped: .permute{order} would put them right", mine.permute(order), true
    for axis, n in enumerate(mine.shape):
        yield f"axis {axis} runs backwards", mine.flip(axis), true
        if n > 2:
            start, end = ((0, n - 1), (1, n - 1))
            text = f"everything sits one step too {{}} along axis {axis}"
            yield text.format("late"), mine.narrow(axis, *end), true.narrow(axis, *start)
            yield text.format("early"), mine.narrow(axis, *start), true.narrow(axis, *end)


def _first_difference(mine: Tensor, true: Tensor, atol: float) -> str:
    off = ~torch.isclose(mine, true, rtol=RELATIVE_TOLERANCE, atol=atol, equal_nan=True)
    index = tuple(off.nonzero()[0].tolist())
    largest = (mine - true).abs().nan_to_num(torch.inf).max().item()
    got = f"got {mine[index].item():.6g}, expected {true[index].item():.6g}"
    share = f"{int(off.sum())} of {off.numel()} values differ, by at most {largest:.3g}"
    return f"It differs first at index {index}: {got} ({share})"
