"""Lesson 02's exercises 2.1 and 2.2, and what is true of all: mistakes get their own message."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from course_lib.diffusion import AlphaSigma
from course_lib.exercises import check
from course_lib.exercises.lesson_02 import (
    EXERCISES,
    add_noise,
    add_noise_mistakes,
    v_mistakes,
    x0_eps_from_v,
)
from course_lib.lab.checks import IncorrectAnswer, randn

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def noising(
    signal=lambda a: a.sqrt(), noise=lambda a: (1 - a).sqrt(), at=lambda table, t: table[t], axes=3
):
    """A mutant of 2.1: other factors, another entry of the table, other axes behind (b,)."""

    def my_add_noise(x0, e, t, table):
        a = at(table, t)
        a = a if a.ndim == 0 else a.reshape(-1, *[1] * axes)
        return signal(a) * x0 + noise(a) * e

    return my_add_noise


def one_step(table, t):
    before = torch.cat([torch.ones(1).double(), table[:-1]])
    return table[t] / before[t]


def by_dividing(v, x, s, n):
    """Right but for 0 / 0."""
    x0 = s * x - n * v
    return x0, (x - s * x0) / n


def by_the_other_division(v, x, s, n):
    e = n * x + s * v
    return (x - n * e) / s, e


def with_a_constant(v, x, s, n):
    x0 = s * x - n * v
    return x0, (x - s * x0) / (n + 1e-8)


def turned(x0=lambda v, x, s, n: s * x - n * v, e=lambda v, x, s, n: n * x + s * v):
    return lambda v, x, s, n: (x0(v, x, s, n), e(v, x, s, n))


MUTANTS = [
    ("2.1", noising(lambda a: (1 - a).sqrt(), lambda a: a.sqrt()), "Signal and noise are swapped"),
    ("2.1", noising(lambda a: a, lambda a: 1 - a), "The roots are missing"),
    ("2.1", noising(noise=lambda a: 1 - a), "The noise lacks its root"),
    ("2.1", noising(signal=lambda a: a), "The signal lacks its root"),
    ("2.1", noising(noise=lambda a: 1 - a.sqrt()), "Your noise has the factor 1 - √ᾱ"),
    ("2.1", noising(lambda a: a, lambda a: (1 - a**2).sqrt()), "You take ᾱ for alpha"),
    ("2.1", noising(noise=lambda a: -(1 - a).sqrt()), "The noise is added, not subtracted"),
    ("2.1", lambda x0, e, t, a: add_noise(e, -x0, t, a), "That is v"),
    ("2.1", noising(noise=lambda a: 1), "The noise has no factor"),
    ("2.1", noising(signal=lambda a: 1), "The image has no factor"),
    ("2.1", noising(lambda a: 1, lambda a: (1 / a - 1).sqrt()), "the scale of Euler samplers"),
    ("2.1", lambda x0, e, t, a: add_noise(x0, e, t - 1, a), "one timestep too early"),
    ("2.1", lambda x0, e, t, a: add_noise(x0, e, t + 1, a), "one timestep too late"),
    ("2.1", noising(at=lambda table, t: table.cumprod(0)[t]), "no cumprod"),
    (
        "2.1",
        noising(at=lambda table, t: (1 - table).cumprod(0)[t]),
        "You take alphas_cumprod for betas",
    ),
    ("2.1", noising(at=one_step), "one step's worth of noise"),
    ("2.1", noising(axes=0), "one for each column"),
    ("2.1", noising(axes=1), "one for each line"),
    ("2.1", noising(axes=2), "one for each channel"),
    ("2.1", noising(at=lambda table, t: table[t[0]]), "that of t[0]"),
    ("2.1", noising(at=lambda table, t: table[t[-1]]), "that of t[-1]"),
    ("2.1", noising(at=lambda table, t: table[t].mean()), "that of the mean ᾱ"),
    ("2.1", lambda x0, e, t, a: None, "Is a `return` missing?"),
    (
        "2.1",
        lambda x0, e, t, a: add_noise(x0, e, t, a)[0],
        "shape is (1, 1, 1), expected (1, 1, 1, 1)",
    ),
    ("2.1", lambda x0, e, t, a: "noise", "got 'noise'"),
    ("2.2", lambda *a: x0_eps_from_v(*a)[::-1], "the two are swapped"),
    (
        "2.2",
        turned(x0=lambda v, x, s, n: s * x + n * v),
        "your x0: got 3.16, expected 1. A sign is flipped",
    ),
    (
        "2.2",
        turned(e=lambda v, x, s, n: n * x - s * v),
        "your ε: got 0.12, expected 3. A sign is flipped",
    ),
    ("2.2", lambda v, x, s, n: x0_eps_from_v(-v, x, s, n), "A sign is flipped, as if v were sigma"),
    ("2.2", lambda v, x, s, n: x0_eps_from_v(v, x, n, s), "alpha · x_t is what brings x0 back"),
    ("2.2", turned(e=lambda v, x, s, n: s * x + n * v), "sigma · x_t is what brings ε back"),
    (
        "2.2",
        lambda v, x, s, n: [-part for part in x0_eps_from_v(v, x, s, n)],
        "All signs are flipped",
    ),
    ("2.2", turned(e=lambda v, x, s, n: s * v - n * x), "sigma · x_t is added, not subtracted"),
    ("2.2", turned(x0=lambda v, x, s, n: (x - n * v) / s), "as if it were ε"),
    ("2.2", turned(e=lambda v, x, s, n: (x - s * v) / n), "as if it were x0"),
    ("2.2", turned(e=lambda v, x, s, n: v), "That is v itself"),
    ("2.2", turned(x0=lambda v, x, s, n: n * x + s * v), "That is ε"),
    ("2.2", turned(e=lambda v, x, s, n: s * x - n * v), "That is x0"),
    (
        "2.2",
        turned(x0=lambda v, x, s, n: (s * x - n * v) / s**2),
        "what stands before x0 is alpha² + sigma²",
    ),
    (
        "2.2",
        turned(x0=lambda v, x, s, n: (s * x - n * v) / s),
        "what stands before x0 is alpha² + sigma²",
    ),
    (
        "2.2",
        turned(e=lambda v, x, s, n: (n * x + s * v) / n**2),
        "what stands before ε is alpha² + sigma²",
    ),
    ("2.2", turned(e=lambda v, x, s, n: (n * x + s * v) / (s + n)), "alpha + sigma is not 1"),
    ("2.2", turned(e=lambda v, x, s, n: v / s), "v contains - sigma · x0 too"),
    ("2.2", lambda v, x, s, n: x0_eps_from_v(v, x, s**2, n**2), "not their squares"),
    ("2.2", lambda v, x, s, n: x0_eps_from_v(v, x, s**0.5, n**0.5), "no more roots"),
    ("2.2", by_dividing, "your ε is right where both"),
    ("2.2", by_the_other_division, "your x0 is right where both"),
    ("2.2", with_a_constant, "with a small constant added"),
    ("2.2", lambda *a: x0_eps_from_v(*a)[0], "expected (x0, eps), got tensor"),
    ("2.2", lambda *a: None, "Is a `return` missing?"),
]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    torch.manual_seed(0)
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def test_there_are_five_mistakes_or_more():
    for exercise in ("2.1", "2.2"):
        assert len({message for identifier, _, message in MUTANTS if identifier == exercise}) >= 5


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_solution_passes(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 3
    assert len(exercise.hints) >= 3 and 5 <= exercise.minutes <= 15


@pytest.mark.parametrize("identifier", BY_ID)
@pytest.mark.parametrize(
    "nonsense", [lambda *a: [], lambda *a: {}, lambda *a: "x", lambda *a: 1 / 0, 5, math.nan]
)
def test_nonsense_never_stops_a_notebook(identifier, nonsense, capsys):
    check(identifier, nonsense)
    assert "right yet" in (shown := capsys.readouterr().out) or "stopped with an error" in shown


# What the messages rest on: mistakes that lead to clearly different values


def clearly_different(values):
    for (i, a), (j, b) in itertools.combinations(enumerate(values), 2):
        assert not torch.allclose(a, b, rtol=0, atol=5e-3), f"{i} and {j} look alike"


@pytest.mark.parametrize(
    ("x0", "e", "t"),
    [
        (torch.ones(1, 1, 1, 1).double(), torch.full((1, 1, 1, 1), 3.0).double(), [2]),
        (randn(30, 3, 3, 3, 3), randn(32, 3, 3, 3, 3), [4, 0, 2]),
        (randn(31, 2, 3, 4, 5), randn(32, 2, 3, 4, 5), [5, 1]),
    ],
)
def test_mistakes_of_2_1_differ(x0, e, t):
    table, t = torch.tensor([0.98, 0.85, 0.64, 0.4, 0.2, 0.03]).double(), torch.tensor(t)
    clearly_different(
        [add_noise(x0, e, t, table), *(wrong for wrong, _ in add_noise_mistakes(x0, e, t, table))]
    )


def test_mistakes_of_2_2_differ():
    one = torch.ones(1, 1, 1, 1).double()
    for number, wrong in enumerate(v_mistakes(1.8 * one, 2.6 * one, 0.8 * one, 0.6 * one)):
        clearly_different([one * (1, 3)[number], *(values for values, _ in wrong)])


# Right answers in another style

OTHERS = [
    (
        "2.1",
        lambda x0, e, t, a: torch.stack(
            [a[k] ** 0.5 * x + (1 - a[k]) ** 0.5 * n for x, n, k in zip(x0, e, t, strict=True)]
        ),
    ),
    (
        "2.1",
        lambda x0, e, t, a: [
            math.sqrt(a[k]) * x + math.sqrt(1 - a[k]) * n for x, n, k in zip(x0, e, t, strict=True)
        ],
    ),
    ("2.1", lambda x0, e, t, a: add_noise(x0.float(), e.float(), t, a.float())),
    ("2.1", lambda x0, e, t, a: add_noise(x0, e, t, a).numpy()),
    ("2.1", lambda x0, e, t, a: add_noise(x0, e, t, a).tolist()),
    (
        "2.1",
        lambda x0, e, t, a: (
            torch.einsum("b,bchw->bchw", a[t] ** 0.5, x0)
            + (1 - a[t])[:, None, None, None] ** 0.5 * e
        ),
    ),
    ("2.2", lambda v, x, s, n: list(x0_eps_from_v(v.float(), x.float(), s.float(), n.float()))),
    ("2.2", lambda v, x, s, n: torch.stack(x0_eps_from_v(v, x, s, n))),
    ("2.2", lambda v, x, s, n: [part / (s**2 + n**2) for part in x0_eps_from_v(v, x, s, n)]),
    ("2.2", lambda v, x, s, n: tuple(part.numpy() for part in x0_eps_from_v(v, x, s, n))),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


# The solutions against the libraries


def test_the_solution_of_2_1_is_that_of_diffusers():
    scheduler, x, e, t = (
        DDIMScheduler(),
        randn(50, 2, 3, 4, 4),
        randn(51, 2, 3, 4, 4),
        torch.tensor([3, 700]),
    )
    got = add_noise(x, e, t, scheduler.alphas_cumprod.double())
    torch.testing.assert_close(got, scheduler.add_noise(x, e, t), rtol=1e-4, atol=1e-6)


def test_levels_of_the_library_fit_2_2():
    level = AlphaSigma(torch.tensor([0.6]).double(), torch.tensor([0.8]).double())
    x0, e = randn(57, 1, 2, 3, 3), randn(58, 1, 2, 3, 3)
    s, n = level.like(x0)
    got = x0_eps_from_v(s * e - n * x0, s * x0 + n * e, s, n)
    assert all(np.allclose(part, true) for part, true in zip(got, (x0, e), strict=True))
