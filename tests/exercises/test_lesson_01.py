"""Lesson 01's exercises: solutions pass, every likely mistake gets its own message."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_lib.exercises import check
from course_lib.exercises.lesson_01 import (
    EXERCISES,
    causal_pseudo3d,
    inflate_causal,
    midplanes,
    motion_kernel,
    output_shape,
    temporal_receptive_field,
)
from course_lib.lab.checks import IncorrectAnswer, engine, present
from tests.exercises.mutants_01 import MUTANTS, padded_by_the_wrong_kernel, padded_with_frame_zero

BY_ID = {exercise.id: exercise for exercise in EXERCISES}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_the_reference_solution_passes(exercise):
    assert len(list(exercise.verify(exercise.solution))) >= 1
    assert exercise.hints and exercise.minutes >= 1


@pytest.mark.parametrize(("id", "mutant", "message"), MUTANTS)
def test_a_mistake_gets_its_message(id, mutant, message):
    with pytest.raises(IncorrectAnswer) as caught:
        list(BY_ID[id].verify(mutant))
    assert message in str(caught.value), str(caught.value)
    assert "off by a factor" not in str(caught.value)


OTHERS = [
    ("1.1", lambda *args: torch.tensor(output_shape(*args))),
    ("1.1", lambda *args: np.array(output_shape(*args))),
    ("1.1", lambda *args: [float(size) for size in output_shape(*args)]),
    ("1.1", lambda *args: torch.Size(output_shape(*args))),
    ("1.2", lambda *args: torch.tensor(temporal_receptive_field(*args))),
    ("1.2", lambda *args: float(temporal_receptive_field(*args))),
    ("1.3", lambda vx, vy: motion_kernel(vx, vy).tolist()),
    ("1.4", lambda *args: np.int64(midplanes(*args))),
    ("1.6", padded_with_frame_zero),
]


@pytest.mark.parametrize(("id", "attempt"), OTHERS)
def test_other_right_answers_pass(id, attempt):
    assert list(BY_ID[id].verify(attempt))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_nonsense_gets_a_sentence(exercise, monkeypatch):
    """A value of a wrong type is called wrong; no error of Python's own is shown."""
    shown = []
    monkeypatch.setattr(present, "display", shown.append)
    monkeypatch.setattr(engine, "_progress", {})
    for value in (None, 1j, "x", [], {}, torch.zeros(0), torch.ones(2, 3), (1, 2), "ab", object()):
        check(exercise.id, lambda *_, value=value: value)
        assert "not right yet" in repr(shown[-1]), (value, repr(shown[-1]))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_a_solution_says_why(exercise):
    assert any(word in exercise.solution.__doc__ for word in ("because", "the + 1"))


def test_every_exercise_has_two_mutants():
    for id in BY_ID:
        assert sum(mutant[0] == id for mutant in MUTANTS) >= 2


def test_the_causal_kernel_equals_the_image_convolution_on_every_frame():
    weight, video = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 5, 8, 8)
    frames = [F.conv2d(frame, weight, padding=1) for frame in video.unbind(2)]
    for kernel_t in (1, 3, 4):
        padded = torch.cat([video[:, :, :1]] * (kernel_t - 1) + [video], dim=2)
        out = F.conv3d(padded, inflate_causal(weight, kernel_t), padding=(0, 1, 1))
        torch.testing.assert_close(out, torch.stack(frames, dim=2))


def test_the_bug_hides_where_both_kernels_have_the_same_size():
    """That is what makes it a good bug: the usual 3x3 and 3 taps work."""
    video, spatial, temporal = (
        torch.randn(1, 2, 4, 6, 6),
        torch.randn(3, 2, 3, 3),
        torch.randn(2, 3, 3),
    )
    expected = causal_pseudo3d(video, spatial, temporal)
    torch.testing.assert_close(padded_by_the_wrong_kernel(video, spatial, temporal), expected)
