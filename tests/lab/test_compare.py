"""`assert_matches`: right answers pass, wrong ones are explained."""

import numpy as np
import pytest
import torch

from course_lib.lab.checks import IncorrectAnswer, assert_matches, describe_value

X = torch.arange(24.0).reshape(2, 3, 4) ** 1.5


@pytest.mark.parametrize(
    "value",
    [
        X,
        X.numpy(),
        3,
        2.5,
        True,
        "left",
        (2, 3),
        [X, "a"],
        None,
        torch.tensor([True]),
        torch.tensor([torch.nan]),
    ],
)
def test_equal_things_are_the_same(value):
    assert_matches(value, value)


def test_tolerance():
    assert_matches(X + 5e-6, X)
    assert_matches(1.01, 1, atol=0.1)
    assert_matches(torch.tensor(2.0), 2)
    assert_matches(np.float32(2.0), 2.0)
    assert_matches(torch.Size([2, 3]), (2, 3))
    assert_matches(torch.nn.Parameter(X), X)
    assert_matches(torch.tensor([2, 3]), (2, 3))
    assert_matches(np.array([2.0, 3.0]), [2, 3])
    assert_matches([torch.tensor(2), np.float64(3)], (2, 3))
    with pytest.raises(IncorrectAnswer):
        assert_matches(1.01, 1)


S = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
CASES = {
    "nothing": (
        None, X, "got None, expected tensor of shape (2, 3, 4), float32. Is a `return` missing?"
    ),
    "not a tensor": (3.0, X, "got 3, expected a tensor of shape (2, 3, 4), float32"),
    "an array": (X.numpy(), X, "got array of shape (2, 3, 4), float32, expected a tensor"),
    "a right array": (X.numpy(), X, ": the values are right, but in a ndarray, not in a Tensor"),
    "a right list": (X.tolist(), X, ": the values are right, but in a list, not in a Tensor"),
    "shape": (X[:1], X, "shape is (1, 3, 4), expected (2, 3, 4)"),
    "swapped axes": (
        X.permute(1, 0, 2), X, "right values, but axes are swapped; .permute(1, 0, 2) puts"
    ),
    "reshaped": (X.reshape(3, 2, 4), X, "the same sizes in another order"),
    "flat": (X.flatten(), X, "the right number of values, but in another shape"),
    "dtype": (X.double(), X, "dtype is torch.float64, expected torch.float32"),
    "nan": (torch.where(X == 1, torch.nan, X), X, "the value at index (0, 0, 1) is nan"),
    "zero": (torch.zeros_like(X), X, "every value is zero"),
    "factor": (2 * X, X, "every value is off by a factor of exactly 2."),
    "fraction": (X / 12, X, "off by a factor of exactly 1/12."),
    "root": (X * 3**0.5, X, "off by a factor of exactly the square root of 3."),
    "sign": (-X, X, "every value is of the wrong sign"),
    "offset": (X + 0.25, X, "every value is off by the same +0.25"),
    "transposed": (S.T, S, "axes are swapped: .permute(1, 0) would put them right"),
    "backwards": (X.flip(1), X, "axis 1 runs backwards"),
    "late": (X.roll(1, 2), X, "everything sits one step too late along axis 2"),
    "early": (X.roll(-1, 2), X, "everything sits one step too early along axis 2"),
    "one value": (
        torch.where(X == 1, 9.0, X), X,
        "It differs first at index (0, 0, 1): got 9, expected 1 (1 of 24 values differ, by at most "
        "8)",
    ),
    "number": (6, 3, "got 6, expected 3: off by a factor of exactly 2"),
    "sign of a number": (-3.0, 3.0, "got -3, expected 3: of the wrong sign"),
    "no factor": (3.21987, 3, "got 3.21987, expected 3"),
    "text": ("right", "left", "got 'right', expected 'left'"),
    "bool": (False, True, "got False, expected True"),
    "words for a number": ("6", 6, "got '6', expected the number 6"),
    "parts": ((1, 2), (1, 2, 3), "got 2 parts, expected 3: (1, 2)"),
    "one part": (
        (1, X), (1, 2 * X), "part 1: the shape is right, but every value is off by a factor"
    ),
    "no parts": (1, (1, 2), "got 1, expected a tuple of 2 parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_mistake_is_named(case):
    actual, expected, message = CASES[case]
    with pytest.raises(IncorrectAnswer) as caught:
        assert_matches(actual, expected, "the output", input=torch.zeros(2, 3))
    assert message in str(caught.value)
    assert str(caught.value).startswith("the output (input: tensor of shape (2, 3), float32): ")


def test_input_may_be_described():
    with pytest.raises(
        IncorrectAnswer, match=r"^M \(input: 64 channels in, 64 out\): got 1, expected 144"
    ):
        assert_matches(1, 144, "M", input="64 channels in, 64 out")


def test_describe_value():
    assert describe_value(torch.nn.ReLU()) == "a ReLU module"
    assert describe_value([torch.zeros(2), 1]) == "list of (tensor of shape (2,), float32, 1)"
    assert describe_value(torch.tensor(0.5)) == "tensor(0.5)"
    assert len(describe_value("x" * 500)) == 80
