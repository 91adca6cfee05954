"""The exercise engine, on a small lesson of its own."""

import importlib
import json
import sys

import pytest
import torch

from course_lib.lab import checks
from course_lib.lab.checks import engine, present

LESSON = '''
"""Lesson 98 exists only here."""
import torch
from course_lib.lab.checks import Exercise, Wrong, call, same


def double(x):
    return 2 * x  # the reference


def verify_double(attempt):
    x = torch.ones(2, 3)
    same(call(attempt, x), double(x), "double(x)", input=x)
    yield "ones are doubled"
    x = torch.arange(3.0)
    same(call(attempt, x), double(x), "double(x)", input=x)
    yield "0 … 2 are doubled"


def verify_number(value):
    same(value, 42, "the number")
    return ["it is 42", "<b>really</b>"]


EXERCISES = (
    Exercise("98.1", "Double it", 5, 1, verify_double, ("Think of +.", "x + x"), double),
    Exercise("98.2", "A number", 10, 4, verify_number, (), "forty-two"),
)
'''


@pytest.fixture(autouse=True)
def lesson(tmp_path, monkeypatch):
    """Put lesson 98 beside the others, and start from nothing attempted."""
    (tmp_path / "lesson_98.py").write_text(LESSON, encoding="utf-8")
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.setattr(engine, "_progress", {})
    yield
    sys.modules.pop("course_lib.exercises.lesson_98", None)


@pytest.fixture
def shown(monkeypatch):
    """What a cell would have displayed."""
    words = []
    monkeypatch.setattr(present, "display", words.append)
    return words


def double(x):
    return x + x


def test_right_says_what_was_proved(shown):
    assert checks.check("98.1", double) is None
    assert repr(shown[0]) == "✔ Exercise 98.1: right\n  ✔ ones are doubled\n  ✔ 0 … 2 are doubled"


def test_a_value_is_as_good_as_a_function_and_html_is_escaped(shown):
    checks.check("98.2", 42)
    bundle = shown[0]._repr_mimebundle_()
    assert (
        "✔ Exercise 98.2: right" in bundle["text/html"] and "&lt;b&gt;really" in bundle["text/html"]
    )
    assert bundle["text/plain"] == repr(shown[0])


def test_wrong_says_what_is_right_and_what_is_not(shown):
    checks.check("98.1", lambda x: x + 1)
    text = repr(shown[0])
    assert text.startswith(
        "✘ Exercise 98.1: not right yet\n  ✔ ones are doubled\n  double(x) (input: tensor"
    )
    assert (
        "It differs first at index (0,): got 1, expected 0" in text
        and 'Stuck? hint("98.1")' in text
    )


def test_stub_is_not_an_attempt(shown):
    def stub(x):
        raise NotImplementedError("Exercise 98.1: your code here")

    def bare_stub(x):
        raise NotImplementedError

    for attempt in (stub, bare_stub, None, ...):
        checks.check("98.1", attempt)
        assert repr(shown[-1]).startswith("○ Exercise 98.1: not attempted yet")
    assert checks.report()[0]["attempts"] == 0


def test_an_error_shows_the_students_own_line_and_the_input(shown):
    def attempt(x):
        wide = torch.zeros(5)
        return x + wide

    checks.check("98.1", attempt)
    text = repr(shown[0])
    assert text.startswith(
        "⚠ Exercise 98.1: stopped with an error\n  RuntimeError: The size of tensor a (3)"
    )
    assert "return x + wide" in text and "in attempt, line" in text
    assert "The input was: tensor of shape (2, 3), float32." in text


def test_an_error_deep_in_a_library_still_shows_the_students_line(shown):
    def attempt(x):
        return torch.nn.functional.conv2d(x, torch.zeros(1, 2, 3, 3))

    checks.check("98.1", attempt)
    assert "return torch.nn.functional.conv2d" in repr(shown[0])


def test_torchs_own_not_implemented_is_an_error(shown):
    def attempt(x):
        message = "\"conv\" not implemented for 'Int'"
        error = NotImplementedError(message)
        throw(error)

    def throw(error):
        raise error

    checks.check("98.1", attempt)
    assert repr(shown[0]).startswith("⚠") and "not implemented for 'Int'" in repr(shown[0])


@pytest.mark.parametrize(
    "attempt", [3, "text", lambda: 1, lambda x: None, lambda x: 1 / 0, torch.nn.Conv2d, object()]
)
def test_nothing_a_student_passes_raises(shown, attempt):
    checks.check("98.1", attempt)
    assert repr(shown[0])[0] in "✘⚠"


def test_interrupt_is_the_students_to_use(shown):
    def attempt(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.check("98.1", attempt)


def test_hints_come_one_by_one(shown):
    for _ in range(3):
        checks.hint("98.1")
    first, second, third = map(repr, shown)
    assert first == "→ Exercise 98.1: hint 1 of 2\n  Think of +."
    assert second == "→ Exercise 98.1: hint 2 of 2\n  x + x"
    assert "no more hints" in third and 'solution("98.1")' in third


def test_solution_nudges_once_then_shows_the_source(shown):
    checks.solution("98.1")
    assert "try first" in repr(shown[0])
    assert not checks.report()[0]["solution_shown"]
    checks.solution("98.1")
    assert shown[-1]._repr_mimebundle_()["text/markdown"] == (
        "**Exercise 98.1: a solution**\n\n```python\ndef double(x):\n    return 2 * x  # the reference\n```"
    )
    assert checks.report()[0]["solution_shown"]


def test_solution_after_an_attempt_is_shown_at_once(shown):
    checks.check("98.2", 41)
    checks.solution("98.2")
    assert repr(shown[-1]).endswith("forty-two")


def test_describe(shown):
    checks.describe("98.2")
    assert repr(shown[0]) == "Exercise 98.2 · A number · 10 min · ●●●●○"


def test_report_counts_and_can_be_collected(shown, tmp_path):
    checks.check("98.1", lambda x: x)
    checks.check("98.1", double)
    checks.hint("98.1")
    rows = checks.report(tmp_path / "scores.json")
    assert rows == [
        {"id": "98.1", "title": "Double it", "minutes": 5, "difficulty": 1, "status": "right", "attempts": 2,
         "hints": 1, "solution_shown": False},
        {"id": "98.2", "title": "A number", "minutes": 10, "difficulty": 4, "status": "not attempted",
         "attempts": 0, "hints": 0, "solution_shown": False},
    ]  # fmt: skip
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == rows
    text = repr(shown[-1])
    assert "✔ right" in text and "○ not attempted" in text and text.endswith("1 of 2 right")
    assert rows._ipython_display_() is None  # shown once, not again as the cell's value


def test_report_before_anything_is_done_lists_every_lesson(shown):
    assert [row["id"] for row in checks.report()][-2:] == ["98.1", "98.2"]
    assert len(checks.report(lesson=98)) == 2


def test_unknown_ids_are_the_authors_mistake():
    with pytest.raises(ValueError, match="there is no exercise '98.7'; this lesson has 98.1, 98.2"):
        checks.check("98.7", double)
    with pytest.raises(
        ValueError, match=r"lesson 97 has no exercises; lessons with exercises: \[.*98\]"
    ):
        checks.hint("97.1")
    with pytest.raises(ValueError, match="an exercise's id reads like \"3.2\"; got 'two'"):
        checks.solution("two")


@pytest.mark.parametrize(
    ("id", "difficulty", "message"), [("x", 1, "read like 3.2; got 'x'"), ("1.1", 6, "got 6")]
)
def test_a_badly_declared_exercise_is_refused(id, difficulty, message):
    with pytest.raises(ValueError, match=message):
        checks.Exercise(id, "t", 1, difficulty, list, (), "")


def test_an_empty_cell_takes_nothing_back(shown):
    checks.check("98.2", 42)
    checks.check("98.2", None)
    (row,) = [row for row in checks.report(lesson=98) if row["id"] == "98.2"]
    assert row["status"] == engine.RIGHT and row["attempts"] == 1
