"""Lesson 02's exercises 2.6 and 2.7, parts of a U-Net: mistakes get their own message."""

import itertools
import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from course_lib.exercises.lesson_02 import EXERCISES, ddpm_timestep_embedding, unet_forward
from course_lib.exercises.lesson_02_unet import (
    embedding_mistakes,
    flat_unet,
    skip_mistakes,
)
from course_lib.lab.checks import IncorrectAnswer, randn

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def geometric(k, half):
    return 10000.0 ** (-k / (half - 1))


def sin_cos(angles):
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def embedding(frequency=geometric, join=sin_cos, scale=1):
    """A mutant of 2.6: other frequencies, or joined in another way."""

    def my_embedding(t, dim):
        half = dim // 2
        return join(scale * t[:, None] * frequency(torch.arange(half), half))

    return my_embedding


def joined(choose, join="cat", dim=0):
    return lambda angles: getattr(torch, join)(choose(angles.sin(), angles.cos()), dim=dim)


def both(sin, cos):
    return [sin, cos]


def forward(
    keep=lambda before, after: after,
    take=lambda skips: skips.pop(),
    join=lambda x, skip: torch.cat([x, skip], dim=1),
    see_middle=True,
):
    """A mutant of 2.7: other skips, or joined in another way."""

    def my_unet(x, down, middle, up):
        skips = []
        for layer in down:
            before, x = x, layer(x)
            skips.append(keep(before, x))
        if see_middle:
            x = middle(x)
        for layer in up:
            x = layer(join(x, take(skips)))
        return x

    return my_unet


def popping_layers(x, down, middle, up):
    skips = []
    while down:
        x = down.pop(0)(x)
        skips.append(x)
    x = middle(x)
    for layer in up:
        x = layer(torch.cat([x, skips.pop()], dim=1))
    return x


def twice_the_middle(x, down, middle, up):
    return unet_forward(x, down, lambda x: middle(middle(x)), up)


def in_place(x, down, middle, up):
    x += 1
    return unet_forward(x - 1, down, middle, up)


def first(skips):
    return skips.pop(0)


def skip_first(x, skip):
    return torch.cat([skip, x], dim=1)


MUTANTS = [
    ("2.6", embedding(join=joined(lambda s, c: [c, s], dim=1)), "Sines and cosines are swapped"),
    ("2.6", lambda t, dim: embedding(join=joined(both, "stack", 2))(t, dim).flatten(1),
     "You interleave sines and cosines"),
    ("2.6", embedding(join=joined(both)), "You joined sines and cosines along the batch"),
    ("2.6", embedding(join=joined(both, "stack", 1)), "on an axis of their own"),
    ("2.6", embedding(join=joined(both, "stack", 0)), "on an axis of their own"),
    ("2.6", embedding(join=torch.sin), "The cosines are missing"),
    ("2.6", embedding(join=torch.cos), "The sines are missing"),
    ("2.6", embedding(lambda k, half: 10000 ** (-k / half)), "stop one short of 1/10,000"),
    ("2.6", embedding(lambda k, half: 10000 ** (-(k + 1) / half)), "begin one too late"),
    ("2.6", embedding(lambda k, half: 10000 ** (-(k + 1) / (half - 1))), "begin one too late"),
    ("2.6", embedding(lambda k, half: 10000 ** (-k / (2 * half - 1))), "You divide k by dim - 1"),
    ("2.6", embedding(lambda k, half: 10000 ** (-k / (2 * half))), "You divide k by dim."),
    ("2.6", embedding(lambda k, half: 10000.0 ** -(k // (half - 1))), "// rounds"),
    ("2.6", embedding(lambda k, half: 10000 ** (k / (half - 1))), "A minus is missing"),
    ("2.6", embedding(lambda k, half: -math.log(10000) * k / (half - 1)),
     "The exponential is missing"),
    ("2.6", embedding(lambda k, half: k / (half - 1) / 10000), "The exponent is missing"),
    ("2.6", embedding(lambda k, half: torch.linspace(1, 1e-4, half)), "fall in equal steps"),
    ("2.6", embedding(lambda k, half: torch.exp(-k / (half - 1))), "log(10000) is missing"),
    ("2.6", embedding(scale=2 * math.pi), "There is no 2π"),
    ("2.6", embedding(scale=1e-3), "You divide t by 1000"),
    ("2.6", lambda t, dim: None, "Is a `return` missing?"),
    ("2.6", lambda t, dim: ddpm_timestep_embedding(t, 2 * dim), "shape"),
    ("2.7", forward(join=lambda x, skip: x), "The skip is missing"),
    ("2.7", forward(join=lambda x, skip: x + skip), "that is another design"),
    ("2.7", forward(take=first), "first in, first out"),
    ("2.7", forward(take=first, join=skip_first), "first in, first out"),
    ("2.7", forward(join=skip_first), "The skip stands before what comes from below"),
    ("2.7", forward(keep=lambda before, after: before), "the input of a layer on the way down"),
    ("2.7", forward(keep=lambda before, after: before, take=first), "the input of a layer"),
    ("2.7", forward(take=lambda skips: skips[-1]), "the same skip, the last one"),
    ("2.7", forward(take=lambda skips: skips[0]), "the same skip, the first one"),
    ("2.7", forward(join=lambda x, skip: torch.cat([x, x], dim=1)), "comes from below twice"),
    ("2.7", forward(join=lambda x, skip: torch.cat([x, 0 * skip], dim=1)), "You join zeros"),
    ("2.7", forward(see_middle=False), "middle was never called"),
    ("2.7", twice_the_middle, "middle was called 2 times"),
    ("2.7", popping_layers, "changed the lists of layers"),
    ("2.7", in_place, "changed x itself"),
    ("2.7", lambda x, down, middle, up: down[0](torch.cat([x, x], dim=1)), "and no skip"),
    ("2.7", lambda *parts: None, "Is a `return` missing?"),
]  # fmt: skip


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


def interleaved_views(t, dim):
    result = torch.empty(len(t), dim)
    result[:, : dim // 2] = torch.sin(t[:, None] * torch.logspace(0, -4, dim // 2))
    result[:, dim // 2 :] = torch.cos(t[:, None] * torch.logspace(0, -4, dim // 2))
    return result


def by_index(x, down, middle, up):
    skips = [x := layer(x) for layer in down]
    x = middle(x)
    for i, layer in enumerate(up):
        x = layer(torch.cat((x, skips[-1 - i]), 1))
    return x


OTHERS = [
    ("2.6", ddpm_timestep_embedding),
    ("2.6", get_timestep_embedding),
    ("2.6", interleaved_views),
    ("2.6", lambda t, dim: ddpm_timestep_embedding(t.double(), dim).numpy()),
    ("2.7", unet_forward),
    ("2.7", by_index),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


def clearly_different(values):
    for (i, a), (j, b) in itertools.combinations(enumerate(values), 2):
        alike = a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=0, atol=2e-3)
        assert not alike, f"{i} and {j} look alike"


def test_mistakes_differ():
    t = torch.tensor([0, 1, 500, 999])
    wrong = [values for values, _ in embedding_mistakes(t, 8)]
    clearly_different([get_timestep_embedding(t, 8), *wrong])
    x, parts = randn(75, 2, 4, 3, 3), flat_unet(3)
    clearly_different([unet_forward(x, *parts), *(values for values, _ in skip_mistakes(x, parts))])
