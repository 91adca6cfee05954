"""Remembers which exercises are solved, in a small file that outlives the notebook's kernel.

The file is `.course_progress.json` in the current folder, which for a notebook is its own. The
environment variable COURSE_PROGRESS names another file; if it is empty there is none. In test
runs there is none unless the variable is set.
"""

import os
from datetime import date
from pathlib import Path

from course_lib import files
from course_lib.lab.checks import present

FILE_NAME = ".course_progress.json"
FORMAT = "course_lib exercises 1"

_solved: dict[str, str] = {}  # in this kernel, for when there is no file
_shown_notices: set[str] = set()


def progress_path() -> Path | None:
    """Where progress is stored; None if nowhere."""
    is_test_run = "PYTEST_CURRENT_TEST" in os.environ  # notebook kernels inherit it
    name = os.environ.get("COURSE_PROGRESS", "" if is_test_run else FILE_NAME)
    return Path(name) if name else None


def solved_dates() -> dict[str, str]:
    """The exercises solved so far: from id to the date of the first time, as YYYY-MM-DD."""
    return _solved | (_read() or {})


def record_solved(id: str) -> None:
    """Stores that an exercise is solved, unless it is stored already.

    A file that cannot be written, or is not one of this course, is left as it is, with a notice.
    """
    path, stored = progress_path(), _read()
    today = _solved.setdefault(id, date.today().isoformat())
    if path is None or stored is None or id in stored:
        return
    try:
        with files.locked(path):  # another notebook of the folder may store one, too
            stored = _read()
            if stored is not None:
                files.write_json(path, {"format": FORMAT, "solved": {id: today} | stored})
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror or error})"
        _show_once(f"Progress is kept only until the kernel ends: {reason}.")


def _read() -> dict[str, str] | None:
    """What the file says is solved; None if it is no progress file."""
    path = progress_path()
    if path is None or not path.exists():
        return {}
    try:
        content = files.read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        return {id: str(date.fromisoformat(day)) for id, day in content["solved"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _show_once(
            f"{path} is damaged or not a progress file of this course ({type(error).__name__}: "
            f"{error}). It is left as it is, and progress is kept only until the kernel ends."
        )
        return None


def _show_once(notice: str) -> None:
    if notice not in _shown_notices:
        _shown_notices.add(notice)
        present.line(notice)
