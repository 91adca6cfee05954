"""The exercise engine, on a small lesson of its own."""

import importlib
import json
import subprocess
import sys
from datetime import date

import pytest
import torch

from course_lib import exercises
from course_lib.lab import checks
from course_lib.lab.checks import engine, present, progress

LESSON = '''
"""Lesson 98 exists only in this test."""
import torch
from course_lib.lab.checks import Exercise, assert_matches, call


def double(x):
    return 2 * x  # the reference


def verify_double(attempt):
    x = torch.ones(2, 3)
    assert_matches(call(attempt, x), double(x), "double(x)", input=x)
    yield "ones are doubled"
    x = torch.arange(3.0)
    assert_matches(call(attempt, x), double(x), "double(x)", input=x)
    yield "0 … 2 are doubled"


def verify_number(value):
    assert_matches(value, 42, "the number")
    return ["it is 42", "<b>really</b>"]


class Doubler(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def verify_class(attempt):
    x = torch.ones(2)
    assert_matches(call(attempt)(x), 2 * x)
    yield "ones are doubled"


EXERCISES = (
    Exercise("98.1", "Double it", 5, 1, verify_double, ("Think of +.", "x + x"), double),
    Exercise("98.2", "A number", 10, 4, verify_number, (), "forty-two"),
    Exercise("98.3", "A class", 5, 2, verify_class, (), Doubler),
)
'''


@pytest.fixture(autouse=True)
def lesson(tmp_path, monkeypatch):
    """Adds lesson 98 to the others, and starts with nothing attempted."""
    (tmp_path / "lesson_98.py").write_text(LESSON, encoding="utf-8")
    monkeypatch.setattr(exercises, "__path__", [*exercises.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.delenv("COURSE_PROGRESS", raising=False)
    new_kernel(monkeypatch)
    yield
    sys.modules.pop("course_lib.exercises.lesson_98", None)


def new_kernel(monkeypatch):
    """Forgets what this kernel knows."""
    monkeypatch.setattr(engine, "_progress", {})
    monkeypatch.setattr(progress, "_solved", {})
    monkeypatch.setattr(progress, "_shown_notices", set())


@pytest.fixture
def shown(monkeypatch):
    """What a cell would have displayed."""
    outputs = []
    monkeypatch.setattr(present, "display", outputs.append)
    return outputs


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A progress file that does not exist yet."""
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    return tmp_path / "progress.json"


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
        "**Exercise 98.1: a solution**\n\n```python\ndef double(x):\n    return 2 * x  # the "
        "reference\n```"
    )
    assert checks.report()[0]["solution_shown"]


def test_solution_after_an_attempt_is_shown_at_once(shown):
    checks.check("98.2", 41)
    checks.solution("98.2")
    assert repr(shown[-1]).endswith("forty-two")


def test_describe(shown):
    checks.describe("98.2")
    assert repr(shown[0]) == "10 minutes · ●●●●○"


def test_report_counts_and_can_be_collected(shown, tmp_path):
    checks.check("98.1", lambda x: x)
    checks.check("98.1", double)
    checks.hint("98.1")
    rows = checks.report(tmp_path / "scores.json")
    today = date.today().isoformat()
    assert rows[:2] == [
        {"id": "98.1", "title": "Double it", "minutes": 5, "difficulty": 1, "status": "right",
         "attempts": 2, "hints": 1, "solution_shown": False, "solved_since": today},
        {"id": "98.2", "title": "A number", "minutes": 10, "difficulty": 4, "status":
            "not attempted",
         "attempts": 0, "hints": 0, "solution_shown": False, "solved_since": None},
    ]  # fmt: skip
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == rows
    text = repr(shown[-1])
    assert "solved since" in text and today in text
    assert "✔ right" in text and "○ not attempted" in text and text.endswith("1 of 3 right")
    assert rows._ipython_display_() is None  # shown once, not again as the cell's value


def test_report_before_anything_is_done_lists_every_lesson(shown):
    assert [row["id"] for row in checks.report()][-3:] == ["98.1", "98.2", "98.3"]
    assert len(checks.report(lesson=98)) == 3


def test_unknown_ids_are_the_authors_mistake():
    with pytest.raises(
        ValueError, match="there is no exercise '98.7'; this lesson has 98.1, 98.2, 98.3"
    ):
        checks.check("98.7", double)
    with pytest.raises(
        ValueError, match=r"lesson 97 has no exercises; lessons with exercises: \[.*98\]"
    ):
        checks.hint("97.1")
    with pytest.raises(ValueError, match="a string like \"3.2\" as the first argument, got 'two'"):
        checks.solution("two")


@pytest.mark.parametrize(
    ("id", "difficulty", "message"),
    [("x", 1, "id: expected one like 3.2, got 'x'"), ("1.1", 6, "got 6")],
)
def test_a_badly_declared_exercise_is_refused(id, difficulty, message):
    with pytest.raises(ValueError, match=message):
        checks.Exercise(id, "t", 1, difficulty, list, (), "")


def test_an_empty_cell_takes_nothing_back(shown):
    checks.check("98.2", 42)
    checks.check("98.2", None)
    (row,) = [row for row in checks.report(lesson=98) if row["id"] == "98.2"]
    assert row["status"] == engine.RIGHT and row["attempts"] == 1


# Solved stays solved


def test_solved_stays_solved_whatever_is_tried_afterwards(shown):
    checks.check("98.1", double)
    checks.check("98.1", lambda x: x)
    since = date.today().isoformat()
    assert "✘ Exercise 98.1: not right yet" in repr(shown[-1])
    assert f"Solved on {since}, and it stays solved." in repr(shown[-1])
    row = checks.report(lesson=98)[0]
    assert row["status"] == engine.RIGHT and row["solved_since"] == since and row["attempts"] == 2


def test_solved_outlives_the_kernel(shown, file, monkeypatch):
    checks.check("98.1", lambda x: x)
    assert not file.exists()
    checks.check("98.1", double)
    new_kernel(monkeypatch)
    checks.check("98.1", None)
    assert f"Solved on {date.today().isoformat()}" in repr(shown[-1])
    row = checks.report()[0]
    assert row["status"] == engine.RIGHT and row["attempts"] == 0
    assert [path for path in file.parent.iterdir() if path.suffix not in (".py", ".lock")] == [
        file
    ]  # no temporary file is left


def test_the_first_date_counts_and_other_exercises_are_kept(shown, file):
    solved = {"98.2": "2020-02-20", "3.1": "2021-03-03"}
    file.write_text(json.dumps({"format": progress.FORMAT, "solved": solved}), encoding="utf-8")
    checks.check("98.2", 42)
    checks.check("98.1", double)
    stored = json.loads(file.read_text(encoding="utf-8"))["solved"]
    assert stored == solved | {"98.1": date.today().isoformat()}
    assert "2020-02-20" in repr(checks.report(lesson=98) and shown[-1])
    assert {row["id"][:2] for row in checks.report()} == {"3.", "98"}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"format": "other", "solved": {}}', '{"format": 1, "solved": []}', "\0",
     '{"format": "course_lib exercises 1", "solved": {"98.1": "yesterday"}}'],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_reported_once_and_left_alone(shown, file, content):
    file.write_text(content, encoding="utf-8")
    checks.check("98.1", double)
    assert "is damaged or not a progress file of this course" in repr(shown[0])
    assert "✔ Exercise 98.1: right" in repr(shown[1])
    assert checks.report()[0]["status"] == engine.RIGHT
    assert len(shown) == 3 and file.read_text(encoding="utf-8") == content


def test_an_unwritable_folder_is_tolerated_with_one_notice(shown, tmp_path, monkeypatch):
    (tmp_path / "no").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "no" / "folder" / "progress.json"))
    checks.check("98.1", double)
    checks.check("98.2", 42)
    assert "cannot be written" in repr(shown[0]) and len(shown) == 3
    assert [row["status"] for row in checks.report()[:2]] == [engine.RIGHT] * 2


def test_a_failed_write_leaves_the_old_file(shown, file, monkeypatch):
    checks.check("98.1", double)
    before = file.read_text(encoding="utf-8")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(progress.os, "replace", fail)
    checks.check("98.2", 42)
    assert file.read_text(encoding="utf-8") == before
    assert {path.suffix for path in file.parent.iterdir()} == {".json", ".py", ".lock"}
    assert any("disk full" in repr(output) for output in shown)


def test_where_progress_is_stored(monkeypatch):
    assert progress.progress_path() is None  # in a test run
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert progress.progress_path().name == ".course_progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", "")
    assert progress.progress_path() is None
    monkeypatch.setenv("COURSE_PROGRESS", "elsewhere.json")
    assert progress.progress_path().name == "elsewhere.json"


# Common answers


@pytest.mark.parametrize("id", [1.2, 1, None, double, ("98.1",), b"98.1"])
def test_an_id_that_is_no_string_is_named(id):
    for function in (checks.hint, checks.solution, checks.describe, lambda id: checks.check(id, 1)):
        with pytest.raises(ValueError, match='expected a string like "3.2" as the first argument'):
            function(id)


@pytest.mark.parametrize("attempt", [torch.ones(2), 6, "double", [double]])
def test_a_result_in_place_of_the_function(shown, attempt):
    checks.check("98.1", attempt)
    text = repr(shown[0])
    assert "takes your function itself, got" in text and "without calling it" in text


def test_an_instance_in_place_of_the_class(shown):
    checks.check("98.3", torch.nn.Identity())
    assert "takes your class itself, got a Identity module" in repr(shown[0])
    checks.check("98.3", torch.nn.Identity)
    assert "every value is off by a factor of exactly 1/2" in repr(shown[1])


def test_a_missing_return_is_named_with_the_input(shown):
    checks.check("98.1", lambda x: None)
    text = repr(shown[0])
    assert "got None for the input tensor of shape (2, 3), float32. Is a `return` missing?" in text


def test_exit_does_not_stop_the_notebook(shown):
    checks.check("98.1", lambda x: sys.exit(1))
    assert repr(shown[0]).startswith("⚠ Exercise 98.1: stopped with an error\n  SystemExit: 1")


def test_the_engine_does_not_import_the_exercises():
    code = "import sys, course_lib.lab.checks; assert 'course_lib.exercises' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
