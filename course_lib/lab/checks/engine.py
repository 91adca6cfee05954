"""Finds an exercise, runs its check and shows the outcome. No attempt stops a notebook."""

import importlib
import inspect
import linecache
import pkgutil
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib import files
from course_lib.lab.checks import present, progress
from course_lib.lab.checks.compare import IncorrectAnswer, describe_value, require, safe_text

NOT_ATTEMPTED = "not attempted"
WRONG = "not right yet"
ERROR = "stopped with an error"
RIGHT = "right"
ID_FORM = r"\d+\.\d+"


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Attributes:
        id: the lesson's number, a dot and the exercise's number: "1.2".
        title: shown in its headline.
        minutes: how long it takes.
        difficulty: 1 to 5.
        verify: called with the attempt; returns or yields what the attempt has passed, in words,
            and raises IncorrectAnswer with a message for the student.
        hints: from a nudge to nearly the answer.
        solution: the reference function or class, whose source is shown, or a text.
    """

    id: str
    title: str
    minutes: int
    difficulty: int
    verify: Callable[[Any], Iterable[str]]
    hints: tuple[str, ...]
    solution: Any

    def __post_init__(self) -> None:
        if not re.fullmatch(ID_FORM, self.id):
            raise ValueError(f"id: expected one like 3.2, got {self.id!r}")
        if self.difficulty not in range(1, 6):
            raise ValueError(f"difficulty of {self.id}: expected 1 to 5, got {self.difficulty}")


@dataclass
class Progress:
    """What a student has done about one exercise in this kernel."""

    status: str = NOT_ATTEMPTED
    attempts: int = 0
    hints: int = 0
    nudge_shown: bool = False
    solution_shown: bool = False


_progress: dict[str, Progress] = {}
_package = ""


def set_package(package: str) -> None:
    """Names the package whose modules `lesson_NN` define EXERCISES: tuple[Exercise, ...]."""
    global _package
    _package = package


def lessons() -> list[int]:
    """Numbers of the lessons that have exercises."""
    modules = pkgutil.iter_modules(importlib.import_module(_package).__path__)
    matches = (re.fullmatch(r"lesson_(\d\d)", module.name) for module in modules)
    return sorted(int(match[1]) for match in matches if match)


def exercises(lesson: int) -> tuple[Exercise, ...]:
    """The exercises of a lesson. Raises ValueError for a lesson that has none."""
    if lesson not in lessons():
        raise ValueError(f"lesson {lesson} has no exercises; lessons with exercises: {lessons()}")
    return importlib.import_module(f"{_package}.lesson_{lesson:02d}").EXERCISES


def _find(id: object) -> tuple[Exercise, Progress]:
    if not isinstance(id, str) or not re.fullmatch(ID_FORM, id):
        text = describe_value(id)
        raise ValueError(f'id: expected a string like "3.2" as the first argument, got {text}')
    lesson = {exercise.id: exercise for exercise in exercises(int(id.split(".")[0]))}
    if id not in lesson:
        raise ValueError(f"there is no exercise {id!r}; this lesson has {', '.join(lesson)}")
    return lesson[id], _progress.setdefault(id, Progress())


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a student's function or class.

    An error that it raises gets a note with the input.

    Raises:
        IncorrectAnswer: if it returns None.
    """
    values = [*map(describe_value, args), *(f"{k}={describe_value(v)}" for k, v in kwargs.items())]
    inputs = ", ".join(values) or "nothing"
    try:
        result = function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        if "__notes__" not in error.__dict__:
            BaseException.add_note(error, f"The input was: {inputs}.")
        raise
    require(result is not None, f"got None for the input {inputs}. Is a `return` missing?")
    return result


def check(id: Any, attempt: Any) -> None:
    """Checks an attempt and shows what is right and what is wrong.

    No attempt makes it raise, not even one that calls exit(): a notebook runs to its end. Only an
    interrupt by the keyboard gets through. Once solved, an exercise stays solved.

    Args:
        id: the exercise, such as "1.2".
        attempt: the student's function, class or value; None if there is none yet.

    Raises:
        ValueError: for an id that does not exist.
    """
    exercise, work = _find(id)
    passed: list[str] = []
    if attempt is None or attempt is Ellipsis:
        return _show_not_attempted(exercise)
    try:
        _require_kind(exercise, attempt)
        for fact in exercise.verify(attempt):
            passed.append(fact)
    except IncorrectAnswer as answer:
        work.status, message = WRONG, [safe_text(answer)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and others are no Exceptions
        try:
            is_stub, message = _is_stub(error), _explain(error)
        except Exception:  # a class of errors whose attributes raise errors
            is_stub, message = False, [type(error).__name__]
        if is_stub:
            return _show_not_attempted(exercise)
        work.status = ERROR
    else:
        work.status, message = RIGHT, []
        progress.record_solved(id)
    work.attempts += 1
    kind = {RIGHT: present.GOOD, WRONG: present.BAD, ERROR: present.BROKEN}[work.status]
    present.box(
        kind,
        f"Exercise {id}: {work.status}",
        passed,
        message,
        "" if work.status == RIGHT else f'Stuck? hint("{id}") helps.{_solved_note(id)}',
    )


def _require_kind(exercise: Exercise, attempt: object) -> None:
    """Raises IncorrectAnswer for a result or an instance in place of a function or class."""
    text = f'check("{exercise.id}", …) takes your {{}} itself, got {describe_value(attempt)}. '
    advice = "Give its name, without calling it: no brackets behind it."
    if inspect.isclass(exercise.solution):
        require(
            inspect.isclass(attempt) or inspect.isroutine(attempt), text.format("class") + advice
        )
    if inspect.isfunction(exercise.solution):
        require(callable(attempt), text.format("function") + advice)


def _solved_note(id: str) -> str:
    since = progress.solved_dates().get(id)
    return f" Solved on {since}, and it stays solved." if since else ""


def _show_not_attempted(exercise: Exercise) -> None:
    id = exercise.id
    footer = f'About {exercise.minutes} minutes. hint("{id}") helps.{_solved_note(id)}'
    present.box(present.OPEN, f"Exercise {id}: not attempted yet", [], [], footer)


def _is_stub(error: BaseException) -> bool:
    """Whether an unfilled exercise raised this; torch raises NotImplementedError too."""
    if not isinstance(error, NotImplementedError):
        return False
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return "raise NotImplementedError" in line or safe_text(error).startswith("Exercise ")


def _explain(error: BaseException) -> list[str]:
    """Type and message, the student's own line, and the input if `call` noted it."""
    text = safe_text(error).strip()
    headline = f"{type(error).__name__}: {text}" if text else type(error).__name__
    notes = error.__dict__.get("__notes__", [])  # a class may define anything of that name
    notes = map(safe_text, notes if isinstance(notes, list) else [])
    return [text for text in (headline, _student_line(error), *notes) if text]


def _student_line(error: BaseException) -> str:
    """The innermost line outside the course and installed libraries."""
    paths = sysconfig.get_paths()
    folders = (str(Path(__file__).parents[2]), paths["stdlib"], paths["purelib"], paths["platlib"])
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith(("<frozen", *folders)):
            line = linecache.getline(file, number).strip()
            return f"in {frame.f_code.co_name}, line {number}: {line}"
    return ""


def hint(id: Any) -> None:
    """Shows the next hint. Raises ValueError for an id that does not exist."""
    exercise, work = _find(id)
    total = len(exercise.hints)
    if work.hints == total:
        headline, footer = f"Exercise {id}: no more hints", f'solution("{id}") shows an answer.'
        return present.box(present.OPEN, headline, [], [], footer)
    text = exercise.hints[work.hints]
    work.hints += 1
    present.box(present.HINT, f"Exercise {id}: hint {work.hints} of {total}", [], [text], "")


def solution(id: Any) -> None:
    """Shows the reference solution; before a first attempt it suggests, once, to try first.

    Raises:
        ValueError: for an id that does not exist.
    """
    exercise, work = _find(id)
    if work.attempts == 0 and not work.nudge_shown:
        work.nudge_shown = True
        return present.box(
            present.OPEN,
            f"Exercise {id}: not attempted yet",
            [],
            ["You learn more from a wrong attempt than from a right answer: try first."],
            f'hint("{id}") helps; solution("{id}") once more shows the answer.',
        )
    work.solution_shown = True
    answer = exercise.solution
    has_source = inspect.isfunction(answer) or inspect.isclass(answer)
    source = inspect.getsource(answer) if has_source else str(answer)
    present.code(f"Exercise {id}: a solution", source)


def describe(id: Any) -> None:
    """Shows time and difficulty, "10 minutes · ●●○○○". Raises ValueError as `hint`."""
    exercise, _ = _find(id)
    present.line(f"{exercise.minutes} minutes · {present.dots(exercise.difficulty)}")


class Report(list):
    """Rows that a notebook has shown already and does not print again as a cell's value."""

    def _ipython_display_(self) -> None:
        pass


def report(path: str | Path | None = None, *, lesson: int | None = None) -> list[dict[str, Any]]:
    """Shows a table of exercises with their status, attempts and the date they were solved.

    Args:
        path: a file to write the table to as JSON, for a class to collect.
        lesson: show only this one; by default the lessons with any work, or all.

    Returns:
        One dict per exercise.

    Raises:
        ValueError: for a lesson without exercises.
    """
    solved = progress.solved_dates()
    started = sorted({int(id.split(".")[0]) for id in (*_progress, *solved)} & {*lessons()})
    rows = Report()
    for number in [lesson] if lesson is not None else started or lessons():
        for exercise in exercises(number):
            work, since = _progress.get(exercise.id, Progress()), solved.get(exercise.id)
            rows.append({
                "id": exercise.id, "title": exercise.title, "minutes": exercise.minutes,
                "difficulty": exercise.difficulty, "status": RIGHT if since else work.status,
                "solved_since": since, "attempts": work.attempts, "hints": work.hints,
                "solution_shown": work.solution_shown,
            })  # fmt: skip
    present.table(rows)
    if path is not None:
        files.write_json(Path(path), rows)
    return rows
