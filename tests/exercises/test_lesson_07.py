"""Lesson 07's exercises: solutions pass, every likely mistake gets its own message."""

import re

import pytest
import torch
from torch import nn

from course_lib.exercises import check
from course_lib.exercises.lesson_07 import (
    EXERCISES,
    AlphaBlend,
    apply_per_frame,
    call_with_layer,
    given_frames,
)
from course_lib.lab.checks import IncorrectAnswer
from course_lib.nn.temporal import AlphaBlend as LibraryBlend
from course_lib.nn.utils import zero_module as library_zero_module
from course_lib.pipelines.frame_condition import FrameCondition
from tests.exercises.mutants_07 import (
    BLEND,
    FOLD,
    SILENCE,
    Lerp,
    Mix,
    frames_outside,
)
from tests.exercises.mutants_07_insertion import CHOICES, GIVEN, HOOKS, hooked, wrapped_forward

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


MISTAKES = {
    "7.1": FOLD,
    "7.2": HOOKS,
    "7.3": CHOICES,
    "7.4": SILENCE,
    "7.5": BLEND,
    "7.6": GIVEN,
}


def by_condition(given, num_frames, stride):
    condition = FrameCondition.keyframes(given, stride)
    if stride == 1:
        condition = FrameCondition.prefix(given, num_frames)
    return condition.mask, condition.channels()


RIGHT = [
    ("7.1", frames_outside),
    ("7.2", hooked(lambda layer, args, output: layer(output))),
    ("7.2", wrapped_forward),
    ("7.6", by_condition),
    ("7.4", lambda layer: library_zero_module(layer)),
    ("7.5", Mix),
    ("7.5", LibraryBlend),
    ("7.5", Lerp),
    (
        "7.5",
        type("Squashed", (Mix,), {"alpha": staticmethod(lambda number: 0.5 + 0.5 * number.tanh())}),
    ),
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_reference_solution_is_right(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 2


@pytest.mark.parametrize(("id", "attempt"), RIGHT)
def test_other_ways_are_right_too(id, attempt):
    list(BY_ID[id].verify(attempt))


@pytest.mark.parametrize(
    ("id", "attempt", "message"), [(id, *row) for id, rows in MISTAKES.items() for row in rows]
)
def test_every_mistake_gets_its_message(id, attempt, message):
    with pytest.raises(IncorrectAnswer, match=re.escape(message)):
        list(BY_ID[id].verify(attempt))


def test_the_references_are_the_librarys_own():
    torch.manual_seed(0)
    video, layer = torch.randn(2, 3, 4, 2, 2), nn.Conv3d(3, 3, 1)
    ours, library = AlphaBlend(layer), LibraryBlend(layer)
    for alpha in (0.0, -1.5, 2.0):
        ours.mix_factor.data.fill_(alpha)
        library.mix_factor.data.fill_(alpha)
        torch.testing.assert_close(ours(video), library(video))
    text = torch.zeros(2, 1, 1)
    out = apply_per_frame(lambda images, t, text: images.sin(), video, torch.zeros(2), text)
    torch.testing.assert_close(out, video.sin())


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_an_empty_exercise_is_not_attempted_and_stops_nothing(exercise, capsys):
    def attempt(*_):
        raise NotImplementedError(f"Exercise {exercise.id}: …")

    check(exercise.id, attempt)
    assert "not attempted yet" in capsys.readouterr().out.lower()


def test_a_network_that_fails_keeps_no_hook():
    part = nn.Identity()
    unet = nn.Sequential(part, nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        call_with_layer(unet, part, nn.Identity(), torch.zeros(1, 2))
    assert not part._forward_hooks


def test_the_right_prediction_is_what_the_norm_does():
    clip = torch.randn(1, 8, 6, 32, 32)
    clip[:, :, 3] *= 20
    quiet = nn.GroupNorm(4, 8)(clip)[:, :, 0].std()
    assert 1 / 9 < quiet < 1 / 7.5


def test_given_frames_are_those_of_the_library():
    given = torch.randn(2, 3, 4, 2, 2)
    mask, channels = given_frames(given, 13, 4)
    condition = FrameCondition.keyframes(given, 4)
    assert torch.equal(mask, condition.mask) and torch.equal(channels, condition.channels())
