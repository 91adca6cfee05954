"""What every check answers: the mistakes that a student can make in any exercise."""

import inspect

import numpy as np
import pytest
import torch

from course_lib.exercises import check, lesson_06
from course_lib.lab.checks import engine, present

EXERCISES = [exercise for lesson in engine.lessons() for exercise in engine.exercises(lesson)]
FUNCTIONS = [e for e in EXERCISES if not inspect.isclass(e.solution) and e.id != "6.2"]


@pytest.fixture
def shown(monkeypatch):
    """What a cell would have displayed."""
    outputs = []
    monkeypatch.setattr(present, "display", outputs.append)
    monkeypatch.setattr(engine, "_progress", {})
    return outputs


def by_id(exercise):
    return exercise.id


def attempt(exercise, change):
    """The solution with its result changed, in the form that the check takes."""
    if exercise.id == "6.2":
        pair = lesson_06.encode_to_latents, lesson_06.decode_latents
        return tuple(lambda *a, f=function: change(f(*a)) for function in pair)
    return lambda *args: change(exercise.solution(*args))


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=by_id)
@pytest.mark.parametrize("value", [torch.ones(2, 3), 3, "text", [1, 2]], ids=str)
def test_a_result_in_place_of_the_function(exercise, value, shown):
    check(exercise.id, value)
    assert "takes your function itself, got" in repr(shown[0])


@pytest.mark.parametrize("exercise", EXERCISES, ids=by_id)
def test_an_instance_in_place_of_the_class_or_function(exercise, shown):
    check(exercise.id, object())
    assert repr(shown[0]).startswith("✘") and "takes your" in repr(shown[0])


@pytest.mark.parametrize("exercise", EXERCISES, ids=by_id)
def test_a_missing_return(exercise, shown):
    check(exercise.id, attempt(exercise, lambda result: None))
    assert "Is a `return` missing?" in repr(shown[0])


@pytest.mark.parametrize("exercise", EXERCISES, ids=by_id)
@pytest.mark.parametrize("value", ["text", 3, [], {}, object(), 1j, np.ones(2)])
def test_a_wrong_type_is_no_error_of_the_check(exercise, value, shown):
    check(exercise.id, attempt(exercise, lambda result: value))
    assert repr(shown[0]).startswith("✘"), repr(shown[0])


def to_numpy(result):
    if isinstance(result, list | tuple) and isinstance(result[0], torch.Tensor):
        return [to_numpy(part) for part in result]
    return result.detach().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)


def to_list(result):
    return list(result) if isinstance(result, tuple) else result


@pytest.mark.parametrize("exercise", [e for e in FUNCTIONS if e.id != "7.4"], ids=by_id)
@pytest.mark.parametrize("change", [to_numpy, to_list])
def test_a_right_value_in_another_container_is_accepted_or_explained(exercise, change, shown):
    torch.manual_seed(0)
    check(exercise.id, attempt(exercise, change))
    text = repr(shown[0])
    assert text.startswith("✔") or "the values are right, but in a" in text, text
