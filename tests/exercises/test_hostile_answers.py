"""Nothing that a student writes gets out of a check, except an interrupt by the keyboard."""

import asyncio
import sys

import pytest
import torch

from course_lib.exercises import check
from course_lib.lab.checks import IncorrectAnswer, describe_value, engine, present

EXERCISES = [exercise for lesson in engine.lessons() for exercise in engine.exercises(lesson)]


@pytest.fixture
def shown(monkeypatch):
    """What a cell would have displayed."""
    outputs = []
    monkeypatch.setattr(present, "display", outputs.append)
    monkeypatch.setattr(engine, "_progress", {})
    return outputs


def refuse(*_, **__):
    raise RuntimeError("no")


def leave(*_, **__):
    sys.exit("bye")


def of_class(base, **methods):
    return type("Odd", (base,), methods)


NoText = of_class(Exception, __str__=refuse, __repr__=refuse)
ExitText = of_class(ValueError, __str__=leave, __repr__=leave)
NoAttribute = of_class(Exception, __getattribute__=refuse)
OddNotes = of_class(Exception, __notes__=3)
RefusesNotes = of_class(Exception, add_note=refuse)
NoTextAnswer = of_class(IncorrectAnswer, __str__=refuse)
NoTextStub = of_class(NotImplementedError, __str__=refuse)
WithNote = NoText("x")
WithNote.add_note(of_class(str)("x"))
ERRORS = [
    SystemExit(0), SystemExit(), SystemExit([1]), GeneratorExit(), StopIteration(), NoText(),
    asyncio.CancelledError(), BaseException("base"), ExitText(), NoAttribute(), OddNotes(),
    WithNote, RefusesNotes(), NoTextAnswer(), NoTextStub(), RecursionError(), ValueError("\ud800"),
    BaseExceptionGroup("all", [SystemExit(1)]),
]  # fmt: skip

MAGIC = (
    "__repr__", "__str__", "__eq__", "__bool__", "__len__", "__iter__", "__float__", "__int__",
    "__index__", "__array__", "__getitem__", "__sub__", "__abs__", "__lt__", "__format__",
    "__call__", "__getattr__",
)  # fmt: skip
OddShape = of_class(torch.Tensor, shape=property(refuse))
VALUES = {
    "nothing works": of_class(object, **dict.fromkeys(MAGIC, refuse))(),
    "everything exits": of_class(object, **dict.fromkeys(MAGIC, leave))(),
    "repr": of_class(object, __repr__=refuse)(),
    "eq": of_class(object, __eq__=refuse)(),
    "str": of_class(str, __repr__=leave, __eq__=refuse, __hash__=refuse)("a"),
    "float": of_class(float, __repr__=leave, __eq__=refuse, __sub__=leave, __abs__=leave)(1),
    "list": of_class(list, __iter__=leave, __len__=leave, __repr__=leave)([1]),
    "shape": torch.ones(2).as_subclass(OddShape),
    "class": of_class(object, __class__=property(leave))(),
    "attribute": of_class(object, __getattribute__=leave)(),
}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_no_error_gets_out(exercise, shown):
    for error in ERRORS:

        def attempt(*args, error=error, **kwargs):
            raise error

        check(exercise.id, (attempt, attempt) if exercise.id == "6.2" else attempt)
        assert repr(shown[-1])[0] in "✘⚠○", type(error).__mro__
        repr(shown[-1]).encode()
    assert len(shown) == len(ERRORS)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
def test_no_value_gets_out(exercise, shown):
    for name, value in VALUES.items():

        def attempt(*args, value=value, **kwargs):
            return value

        for answer in (attempt, value, (attempt, attempt), type(value)):
            check(exercise.id, answer)
            assert repr(shown[-1])[0] in "✘⚠", name


def test_an_interrupt_gets_through(shown):
    def attempt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("0.1", attempt)


def test_what_is_said_of_an_exit_and_of_an_error_without_text(shown):
    check("0.1", leave)
    assert "stopped with an error\n  SystemExit: bye\n  in leave" in repr(shown[-1])

    def fail(*_):
        raise NoText

    check("0.1", fail)
    text = "Odd: a Odd without a text: RuntimeError\n  in fail, line"
    assert text in repr(shown[-1]) and "The input was: " in repr(shown[-1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing works", "a Odd without a text: RuntimeError"),
        ("everything exits", "a Odd without a text: SystemExit"),
        ("repr", "a Odd without a text: RuntimeError"),
        ("list", "a Odd without a text: SystemExit"),
        ("shape", "a Odd without a text: RuntimeError"),
        ("float", "1"),
    ],
)
def test_a_value_without_a_text_is_described(name, expected):
    assert describe_value(VALUES[name]) == expected
