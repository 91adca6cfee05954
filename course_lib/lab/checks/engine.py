"""Finds an exercise, runs its check, says what came of it. Nothing that a student writes stops a notebook."""

import importlib
import inspect
import json
import linecache
import pkgutil
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib.lab.checks import present
from course_lib.lab.checks.compare import Wrong, brief

NOT_YET, WRONG, ERROR, RIGHT = "not attempted", "not right yet", "stopped with an error", "right"
PACKAGE = "course_lib.lab.checks"


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    `id`: "1.2", lesson before the dot. `minutes`: what it takes. `difficulty`: 1 … 5.
    `verify`: given the attempt, returns the list of things it has proved, or yields them one by one (then
    those already proved are shown as right even if a later one fails), and raises Wrong with a message for
    the student. `hints`: from a nudge to nearly the answer. `solution`: the reference, whose source is shown.
    """

    id: str
    title: str
    minutes: int
    difficulty: int
    verify: Callable[[Any], Iterable[str]]
    hints: tuple[str, ...]
    solution: Any

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+", self.id):
            raise ValueError(f"an exercise's id must read like 3.2; got {self.id!r}")
        if self.difficulty not in range(1, 6):
            raise ValueError(f"exercise {self.id}: difficulty must be 1 … 5; got {self.difficulty}")


@dataclass
class Progress:
    """What a student has done about one exercise in this kernel."""

    status: str = NOT_YET
    attempts: int = 0
    hints: int = 0
    nudged: bool = False
    solution_shown: bool = False


_progress: dict[str, Progress] = {}


def lessons() -> list[int]:
    """Numbers of the lessons that have exercises."""
    package = importlib.import_module(PACKAGE)
    names = (
        re.fullmatch(r"lesson_(\d\d)", module.name)
        for module in pkgutil.iter_modules(package.__path__)
    )
    return sorted(int(name[1]) for name in names if name)


def exercises(lesson: int) -> tuple[Exercise, ...]:
    """The exercises of a lesson. Raises ValueError for a lesson that has none."""
    if lesson not in lessons():
        raise ValueError(f"lesson {lesson} has no exercises; lessons with exercises: {lessons()}")
    return importlib.import_module(f"{PACKAGE}.lesson_{lesson:02d}").EXERCISES


def _find(id: str) -> tuple[Exercise, Progress]:
    if not re.fullmatch(r"\d+\.\d+", id):
        raise ValueError(f'an exercise\'s id reads like "3.2"; got {id!r}')
    known = exercises(int(id.split(".")[0]))
    for exercise in known:
        if exercise.id == id:
            return exercise, _progress.setdefault(id, Progress())
    raise ValueError(
        f"there is no exercise {id!r}; this lesson has {', '.join(e.id for e in known)}"
    )


def call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`; if it raises, the student is told with which input."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        named = [brief(value) for value in args] + [
            f"{key}={brief(value)}" for key, value in kwargs.items()
        ]
        if not getattr(error, "__notes__", None):
            error.add_note(f"The input was: {', '.join(named) or 'nothing'}.")
        raise


def check(id: str, attempt: Any) -> None:
    """Check an attempt (a function, class or value) and show what is right and what is wrong.

    Nothing that a student writes makes it raise: a notebook runs on to its end.

    Raises ValueError only for an id that does not exist.
    """
    exercise, progress = _find(id)
    proved: list[str] = []
    if attempt is None or attempt is Ellipsis:
        return _not_yet(exercise, progress)
    try:
        for fact in exercise.verify(attempt):
            proved.append(fact)
    except Wrong as wrong:
        progress.status, message = WRONG, [str(wrong)]
    except Exception as error:
        if _is_stub(error):
            return _not_yet(exercise, progress)
        progress.status, message = ERROR, _explain(error)
    else:
        progress.status, message = RIGHT, []
    progress.attempts += 1
    kind = {RIGHT: present.GOOD, WRONG: present.BAD, ERROR: present.BROKEN}[progress.status]
    headline = f"Exercise {id}: {progress.status}"
    later = "" if progress.status == RIGHT else f'Stuck? hint("{id}")'
    present.box(kind, headline, proved, message, later)


def _not_yet(exercise: Exercise, progress: Progress) -> None:
    if progress.attempts == 0:  # an empty cell run later takes nothing back
        progress.status = NOT_YET
    after = f'About {exercise.minutes} minutes. hint("{exercise.id}") helps.'
    present.box(present.OPEN, f"Exercise {exercise.id}: not attempted yet", [], [], after)


def _is_stub(error: Exception) -> bool:
    """Whether an exercise's stub raised this. torch raises NotImplementedError too, for real mistakes."""
    if not isinstance(error, NotImplementedError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "raise NotImplementedError" in (last.line or "") or str(error).startswith("Exercise ")


def _explain(error: Exception) -> list[str]:
    """Type and message, the student's own line, and the input if `call` noted it."""
    text = str(error).strip()
    lines = [f"{type(error).__name__}: {text}" if text else type(error).__name__]
    own = _own_line(error)
    if own:
        lines.append(own)
    return lines + list(getattr(error, "__notes__", []))


def _own_line(error: Exception) -> str:
    """The deepest line outside the course and installed libraries: the student's."""
    paths = sysconfig.get_paths()
    foreign = [str(Path(__file__).parents[2]), paths["stdlib"], paths["purelib"], paths["platlib"]]
    for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = frame.f_code.co_filename
        if name.startswith("<frozen") or any(name.startswith(folder) for folder in foreign):
            continue
        line = linecache.getline(name, number).strip()
        return f"in {frame.f_code.co_name}, line {number}: {line}"
    return ""


def hint(id: str) -> None:
    """Show the next hint. Raises ValueError for an id that does not exist."""
    exercise, progress = _find(id)
    total = len(exercise.hints)
    if progress.hints == total:
        present.box(
            present.OPEN,
            f"Exercise {id}: no more hints",
            [],
            [],
            f'solution("{id}") shows an answer.',
        )
        return
    text = exercise.hints[progress.hints]
    progress.hints += 1
    present.box(present.HINT, f"Exercise {id}: hint {progress.hints} of {total}", [], [text], "")


def solution(id: str) -> None:
    """Show the reference solution; before a first attempt, ask once whether the student would rather try.

    Raises ValueError for an id that does not exist.
    """
    exercise, progress = _find(id)
    if progress.attempts == 0 and not progress.nudged:
        progress.nudged = True
        text = "You learn more from a wrong attempt than from a right answer: try first."
        after = f'hint("{id}") helps; solution("{id}") once more shows the answer.'
        present.box(present.OPEN, f"Exercise {id}: not attempted yet", [], [text], after)
        return
    progress.solution_shown = True
    answer = exercise.solution
    has_source = inspect.isfunction(answer) or inspect.isclass(answer)
    present.code(
        f"Exercise {id}: a solution", inspect.getsource(answer) if has_source else str(answer)
    )


def describe(id: str) -> None:
    """Show an exercise's head line: "Exercise 1.2 · title · 10 min · ●●○○○". Raises ValueError as `hint`."""
    exercise, _ = _find(id)
    present.line(
        f"Exercise {id} · {exercise.title} · {exercise.minutes} min · {present.dots(exercise.difficulty)}"
    )


class Scores(list):
    """A list of dicts, one per exercise; a notebook has shown it already, so it does not print it again."""

    def _ipython_display_(self) -> None:
        pass


def report(path: str | Path | None = None, *, lesson: int | None = None) -> list[dict[str, Any]]:
    """Show a table of exercises and what became of them in this kernel, and return it as a list of dicts.

    `path`: also write it there as JSON, for a class to collect. `lesson`: only that one; without it, the
    lessons worked on (all, if none yet). Raises ValueError for a lesson without exercises.
    """
    begun = sorted({int(id.split(".")[0]) for id in _progress})
    chosen = [lesson] if lesson is not None else begun or lessons()
    rows = Scores()
    for exercise in (e for number in chosen for e in exercises(number)):
        done = _progress.get(exercise.id, Progress())
        rows.append({
            "id": exercise.id, "title": exercise.title, "minutes": exercise.minutes,
            "difficulty": exercise.difficulty, "status": done.status, "attempts": done.attempts,
            "hints": done.hints, "solution_shown": done.solution_shown,
        })  # fmt: skip
    present.table(rows, done=sum(row["status"] == RIGHT for row in rows))
    if path is not None:
        Path(path).write_text(
            json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return rows
