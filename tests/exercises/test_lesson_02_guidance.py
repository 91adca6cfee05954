"""Lesson 02's exercise 2.5, guidance in one call: mistakes get their own message."""

import pytest
import torch

from course_lib.diffusion import cfg_model, classifier_free_guidance
from course_lib.exercises.lesson_02 import EXERCISES, cfg_prediction
from course_lib.lab.checks import IncorrectAnswer, randn

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def rows(empty, prompt):
    return empty.expand_as(prompt)


def one_after_the_other(a, b):
    return torch.cat([a, b])


def guidance(mix, order=1, join=one_after_the_other, split=lambda pred: pred.chunk(2)):
    """A mutant of 2.5. mix: of cond, uncond, scale. order: -1 for the conditional half first."""

    def my_guided(model, x, t, prompt, empty, scale):
        halves = [rows(empty, prompt), prompt][::order]
        unprompted, prompted = split(model(join(x, x), join(t, t), join(*halves)))[::order]
        return mix(prompted, unprompted, scale)

    return my_guided


def right_mix(c, u, scale):
    return u + scale * (c - u)


def interleave(a, b):
    return torch.stack([a, b], dim=1).flatten(0, 1)


def every_second(pred):
    return pred[::2], pred[1::2]


def one_call(
    x_times=2, t_times=2, condition=lambda empty, prompt: torch.cat([rows(empty, prompt), prompt])
):
    def my_guided(model, x, t, prompt, empty, scale):
        u, c = model(
            torch.cat([x] * x_times), torch.cat([t] * t_times), condition(empty, prompt)
        ).chunk(2)
        return u + scale * (c - u)

    return my_guided


def two_calls(model, x, t, prompt, empty, scale):
    return right_mix(model(x, t, prompt), model(x, t, rows(empty, prompt)), scale)


def two_calls_unexpanded(model, x, t, prompt, empty, scale):
    return right_mix(model(x, t, prompt), model(x, t, empty), scale)


def all_rows(model, x, t, prompt, empty, scale):
    pred = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([rows(empty, prompt), prompt]))
    return pred + scale * (pred.flip(0) - pred)


def mixed_orders(model, x, t, prompt, empty, scale):
    pred = model(
        torch.cat([x, x]), t.repeat_interleave(2), torch.cat([rows(empty, prompt), prompt])
    )
    return right_mix(*pred.chunk(2)[::-1], scale)


def mixed_prompts(model, x, t, prompt, empty, scale):
    pred = model(
        x.repeat_interleave(2, 0), t.repeat_interleave(2), torch.cat([rows(empty, prompt), prompt])
    )
    return right_mix(pred[1::2], pred[::2], scale)


def scaled_input(model, x, t, prompt, empty, scale):
    return cfg_prediction(model, 2 * x, t, prompt, empty, scale)


def one_timestep(model, x, t, prompt, empty, scale):
    pred = model(torch.cat([x, x]), t[0], torch.cat([rows(empty, prompt), prompt]))
    return right_mix(*pred.chunk(2)[::-1], scale)


def along_the_channels(model, x, t, prompt, empty, scale):
    pred = model(torch.cat([x, x], dim=1), t, prompt)
    return right_mix(*pred.chunk(2, dim=1), scale)


def only_prompted(model, x, t, prompt, empty, scale):
    return scale * model(x, t, prompt)


MUTANTS = [
    ("2.5", guidance(lambda c, u, s: c + s * (u - c)), "The halves are swapped"),
    ("2.5", guidance(lambda c, u, s: c + s * (u - c), order=-1), "The halves are swapped"),
    ("2.5", guidance(lambda c, u, s: (1 + s) * c - s * u), "That is 1 + scale"),
    ("2.5", guidance(lambda c, u, s: u - s * (c - u)), "A sign is flipped"),
    ("2.5", guidance(lambda c, u, s: s * (c - u)), "only the difference"),
    ("2.5", guidance(lambda c, u, s: u + s * c - u), "brackets included"),
    ("2.5", guidance(lambda c, u, s: u + s * c), "It belongs to the difference"),
    ("2.5", guidance(lambda c, u, s: s * c - u), "It belongs to the difference"),
    ("2.5", guidance(lambda c, u, s: s * u + (c - u)), "The scale is on the unconditional"),
    ("2.5", guidance(lambda c, u, s: c), "the scale does nothing"),
    ("2.5", guidance(lambda c, u, s: u), "That is the unconditional prediction"),
    ("2.5", guidance(right_mix, split=every_second), "but you take every second row"),
    ("2.5", guidance(right_mix, join=interleave), "but you take its two halves"),
    ("2.5", one_call(t_times=1), "x and conditioning are doubled, t is not"),
    ("2.5", one_call(x_times=1), "3, 6 and 6 rows"),
    (
        "2.5",
        one_call(condition=lambda empty, prompt: torch.cat([empty, prompt])),
        "that cat with the prompts makes 4",
    ),
    ("2.5", one_call(condition=lambda empty, prompt: prompt), "6, 6 and 3 rows"),
    (
        "2.5",
        one_call(condition=lambda empty, prompt: torch.cat([prompt, prompt])),
        "with the empty prompt, only with",
    ),
    (
        "2.5",
        one_call(condition=lambda empty, prompt: empty.repeat(6)),
        "with its prompt, only with",
    ),
    ("2.5", two_calls, "The values are right. But model was called 2 times"),
    ("2.5", two_calls_unexpanded, "uncond has one row for all 3 clips: expand it"),
    ("2.5", all_rows, "You returned 6 rows for 3 clips"),
    ("2.5", mixed_orders, "row 1 of model's batch has the x of clip 1 and t of clip 0"),
    ("2.5", mixed_prompts, "row 3 of model's batch has the x of clip 1 and the prompt of clip 0"),
    ("2.5", scaled_input, "row 0 of the x that model was called with is none"),
    ("2.5", one_timestep, "It takes three tensors"),
    ("2.5", along_the_channels, "join along dim=0"),
    ("2.5", only_prompted, "never called for a clip with the empty prompt"),
    ("2.5", lambda model, x, t, prompt, empty, scale: x, "model was never called"),
    ("2.5", lambda *a: (cfg_prediction(*a), None)[1], "got None"),
    (
        "2.5",
        lambda *a: cfg_prediction(*a[:5], max(a[5], 1.0)),
        "it is to be the unconditional prediction",
    ),
]


@pytest.mark.parametrize(("identifier", "attempt", "message"), MUTANTS)
def test_a_mistake_gets_its_message(identifier, attempt, message):
    torch.manual_seed(0)
    with pytest.raises(IncorrectAnswer) as wrong:
        list(BY_ID[identifier].verify(attempt))
    assert message in str(wrong.value), str(wrong.value)


# Right answers in another style

OTHERS = [
    ("2.5", guidance(right_mix, order=-1)),
    ("2.5", guidance(right_mix, join=interleave, split=every_second)),
    ("2.5", guidance(lambda c, u, s: s * c + (1 - s) * u)),
    ("2.5", guidance(lambda c, u, s: c + (s - 1) * (c - u))),
    ("2.5", lambda model, x, t, prompt, empty, s: cfg_model(model, empty, s)(x, t, prompt)),
    (
        "2.5",
        lambda model, x, t, prompt, empty, s: cfg_prediction(
            model, x.float(), t.float(), prompt, empty, s
        ),
    ),
]


@pytest.mark.parametrize(("identifier", "attempt"), OTHERS)
def test_other_right_answers_pass(identifier, attempt):
    assert list(BY_ID[identifier].verify(attempt))


def test_the_solution_of_2_4_is_guide():
    def model(x, t, conditioning):
        return x * conditioning[:, None] + t[:, None]

    x, t, prompt, empty = (
        randn(52, 3, 4),
        torch.arange(3.0),
        torch.tensor([1.0, 2, 3]),
        torch.tensor([7.0]),
    )
    expected = classifier_free_guidance(model(x, t, prompt), model(x, t, empty.expand(3)), 4.0)
    torch.testing.assert_close(cfg_prediction(model, x, t, prompt, empty, 4.0), expected)
