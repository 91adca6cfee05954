"""Exercises that check themselves. A notebook writes:

    from course_lib.lab.checks import check, hint, solution, report
    check("1.2", my_function)

The exercises of lesson 1 are in `lesson_01.py`, as `EXERCISES: tuple[Exercise, ...]`; "1.2" is found there.
"""

from course_lib.lab.checks.compare import Wrong, brief, same
from course_lib.lab.checks.engine import (
    Exercise,
    call,
    check,
    describe,
    hint,
    lessons,
    report,
    solution,
)

__all__ = [
    "Exercise",
    "Wrong",
    "brief",
    "call",
    "check",
    "describe",
    "hint",
    "lessons",
    "report",
    "same",
    "solution",
]
