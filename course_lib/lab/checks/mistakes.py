"""Recognises a mistake by its consequence: a check computes what each likely mistake returns.

Helpers that the checks of all lessons share. Those about the order of rows and axes are in
`layouts.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.lab.checks.compare import (
    IncorrectAnswer,
    as_number,
    as_tensor,
    assert_matches,
    describe_value,
    require,
)
from course_lib.lab.checks.engine import call

CLOSE = 1e-4  # relative to the largest value: float32 passes, mistakes are further away

Mistake = tuple[Any, str]
"""What a mistake returns on the check's input, and what to say about it."""


def randn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64, the same ones for the same seed and shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def is_close(result: object, expected: Tensor) -> bool:
    """Whether `result` is a tensor equal to `expected`, up to CLOSE of the largest value.

    NaN equals NaN.
    """
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        return False
    largest = expected.nan_to_num().abs().max().item() if expected.numel() else 0.0
    atol = CLOSE * max(1.0, largest)
    return torch.allclose(result, expected, rtol=0, atol=atol, equal_nan=True)


def diagnose(result: object, expected: Tensor, mistakes: Sequence[Mistake], case: str) -> None:
    """Compares a student's result with the expected tensor and with those of likely mistakes.

    Args:
        result: what the student's function returned: a tensor, an array or lists of numbers.
        expected: the right values.
        mistakes: the tensor that each mistake leads to, of any shape, and its message.
        case: the input, described for the message.

    Raises:
        IncorrectAnswer: if the result is wrong.
    """
    result, expected = as_tensor(result), expected.detach().double()
    if is_close(result, expected):
        return
    for wrong, message in mistakes:
        if is_close(result, wrong.double()):
            require(result.shape == expected.shape, f"{case}: {message}")
            # The first value that is clearly off: a mistake may leave some rows right
            off = (result - expected).abs()
            index = tuple((~(off <= 0.1 * off.nan_to_num().max())).nonzero()[0].tolist())
            where = f" at index {index}" if expected.numel() > 1 else ""
            values = f"got {result[index].item():.4g}{where}, expected {expected[index].item():.4g}"
            raise IncorrectAnswer(f"{case}: {values}. {message}")
    atol = CLOSE * max(1.0, expected.abs().max().item())
    assert_matches(result, expected, case, atol=atol)


def diagnose_number(
    result: object, expected: float | int, mistakes: Sequence[Mistake], case: str
) -> None:
    """`diagnose` for one number, to a relative accuracy of 1e-4."""
    result = as_number(result)
    if isinstance(result, Real) and not math.isclose(result, expected, rel_tol=1e-4, abs_tol=1e-6):
        for wrong, message in mistakes:
            is_this = np.isclose(result, float(wrong), rtol=1e-4, atol=1e-8, equal_nan=True)
            require(not is_this, f"{case}: got {result:.5g}, expected {expected:.5g}. {message}")
    assert_matches(result, expected, case, atol=1e-6 + 1e-4 * abs(expected))


def split_result(result: object, names: str, case: str) -> list[Tensor]:
    """The parts of a result such as "x0, eps", as float64 tensors.

    Raises:
        IncorrectAnswer: unless it is a list or tuple with that number of parts, all numeric.
    """
    wrong = f"{case}: expected ({names}), got {describe_value(result)}"
    require(isinstance(result, list | tuple) and len(result) == names.count(",") + 1, wrong)
    parts = [as_tensor(part) for part in result]
    require(all(isinstance(part, Tensor) for part in parts), wrong)
    return parts


def call_on_copies(function: Callable, /, **inputs: Any) -> Any:
    """Calls a student's function on copies of the inputs, by position, and checks the copies.

    Args:
        function: the student's function.
        inputs: its arguments in order; the names are for the message.

    Returns:
        What the function returned.

    Raises:
        IncorrectAnswer: if the function changed one of the tensors.
    """
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    result = call(function, *copies.values())
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            require(torch.equal(copies[name], value), f"Your function has changed `{name}` itself, "
                    f"which its caller still needs. Work on {name}.clone(), and beware of +=, of "
                    "assignments to a part and of functions whose name ends in _.")  # fmt: skip
            require(copies[name].requires_grad == value.requires_grad, f"After the call, `{name}` "
                    f"itself requires a gradient: {name} = {name}.detach().requires_grad_() makes "
                    "another tensor of the same numbers.")  # fmt: skip
    return result


@dataclass(repr=False)
class Recorder:
    """A callable for a student's function to call, such as a model. It keeps what it was given.

    Attributes:
        name: how messages call it.
        function: computes what it returns.
        validate: raises IncorrectAnswer for arguments that it does not take.
        calls: the arguments of each call so far, detached.
    """

    name: str
    function: Callable
    validate: Callable
    calls: list[tuple] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.validate(*args, **kwargs)
        values = (*args, *kwargs.values())
        self.calls.append(tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in values))
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return self.name

    def require_call(self, case: str = "") -> None:
        """Raises IncorrectAnswer if it was never called."""
        prefix = f"{case}: " if case else ""
        require(self.calls, f"{prefix}{self.name} was never called: the result must come from it.")

    def first_args(self) -> Tensor:
        """The first arguments of all calls, joined along the batch, in float64."""
        return torch.cat([args[0] for args in self.calls]).double()


def guidance_mistakes(cond: Tensor, uncond: Tensor, scale: float) -> list[Mistake]:
    """What likely mistakes make of classifier-free guidance, uncond + scale * (cond - uncond).

    Args:
        cond: prediction with the prompt.
        uncond: prediction with the empty prompt, of the same shape.
        scale: the guidance scale.
    """
    c, u = cond, uncond
    difference = "It belongs to the difference"
    return [
        (c + scale * (u - c), "The halves are swapped: the larger the scale, the further away "
                              "from the prompt. Which one had the empty prompt?"),
        (c + scale * (c - u), "That is 1 + scale, the w of Ho & Salimans. Here a scale of 1 "
                              "gives the conditional prediction: start from the unconditional "
                              "one."),
        (u - scale * (c - u), "A sign is flipped: the direction away from the empty prompt is "
                              "cond minus uncond."),
        (scale * (c - u), "That is only the difference. It is added to the unconditional "
                          "prediction."),
        (scale * c, f"The scale multiplies only the conditional prediction. {difference}: scale "
                    "* (cond - uncond), brackets included."),
        (u + scale * c, f"The scale multiplies the conditional prediction. {difference}."),
        (scale * c - u, f"The scale multiplies the conditional prediction. {difference}."),
        (scale * u + c - u, f"The scale is on the unconditional prediction. {difference}."),
        (u + (c - u) / scale, "You divide by the scale."),
        (c, "That is the conditional prediction: the scale does nothing."),
        (u, "That is the unconditional prediction: the scale does nothing."),
    ]  # fmt: skip
