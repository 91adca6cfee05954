"""Functions with the faults that the fuzz looks for, and one without: they test the judge."""

from pathlib import Path

import torch

from course_lib.validation import check_float, check_int, check_number, check_same_shape
from tests.fuzz.args import F, N, R
from tests.fuzz.harness import Example, Outcome, fuzz


def careless(x, y, scale, count):
    """Checks nothing: broadcasts, truncates, and lets NaN through."""
    return torch.stack([(x + y).to(x.dtype) * torch.tensor(scale).to(x.dtype)] * round(count * 2))


def careful(x, y, scale, count):
    """Does the same for what is right, and refuses the rest."""
    check_float("x", x, "(b, d)")
    check_float("y", y, "(b, d)")
    check_same_shape("y", y, "x", x)
    check_number("scale", scale, at_least=0)
    check_int("count", count, 1)
    return careless(x, y, scale, count)


def destructive(x, count):
    """Refuses too late."""
    x.zero_()
    check_int("count", count, 0)


def writing(count):
    """Refuses after it has written a file."""
    Path("left-over").write_text("x", encoding="utf-8")
    check_int("count", count, 0)


def endless(count):
    """Counts down to zero, which a negative number never reaches."""
    while count:
        count -= 1


def outcomes() -> list[Outcome]:
    """The outcomes of these functions."""
    tensors = {"x": F("b d"), "y": F("b d", scale=0.5)}
    numbers = {"scale": R(0.5, 0), "count": N(2)}
    examples = [
        Example("tests.careless", careless, {**tensors, **numbers}),
        Example("tests.careful", careful, {**tensors, **numbers}),
        Example("tests.destructive", destructive, {"x": F("b d"), "count": N(2)}),
        Example("tests.writing", writing, {"count": N(2)}),
        Example("tests.endless", endless, {"count": N(2)}),
    ]
    return [outcome for example in examples for outcome in fuzz(example, limit_seconds=0.2)]
