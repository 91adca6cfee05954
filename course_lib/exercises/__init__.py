"""The exercises of the lessons, which check themselves. A notebook writes:

    from course_lib.exercises import check, hint, solution, report, describe
    check("1.2", my_function)

The exercises of lesson 1 are in `lesson_01.py`, as EXERCISES: tuple[Exercise, ...]; parts of a
long lesson are in files such as `lesson_02_guidance.py`. A lesson is imported when one of its
exercises is asked for.
"""

from course_lib.lab.checks import check, describe, hint, lessons, report, set_package, solution

__all__ = ["check", "describe", "hint", "lessons", "report", "solution"]

set_package(__name__)
