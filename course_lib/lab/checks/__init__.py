"""The engine of exercises that check themselves, and what a check is written with.

| file       | contents                                                                  |
|------------|---------------------------------------------------------------------------|
| `engine`   | finds exercises, runs checks, shows hints and solutions                   |
| `progress` | remembers solved exercises in a file                                      |
| `present`  | boxes and tables in a notebook                                            |
| `compare`  | compares a result with the expected one, in words                         |
| `mistakes` | recognises a mistake by the values it leads to; recording callables       |
| `layouts`  | mistakes about the order of rows and axes                                 |

The exercises themselves are in `course_lib.exercises`, which this package does not import.
"""

from course_lib.lab.checks.compare import (
    IncorrectAnswer,
    as_number,
    as_tensor,
    assert_matches,
    describe_value,
    require,
)
from course_lib.lab.checks.engine import (
    Exercise,
    call,
    check,
    describe,
    hint,
    lessons,
    report,
    set_package,
    solution,
)
from course_lib.lab.checks.layouts import (
    TILED,
    cfg_order_mistakes,
    diagnose_order,
    fold_mistakes,
    per_frame_mistakes,
    row_owners,
    unfold_mistakes,
)
from course_lib.lab.checks.mistakes import (
    CLOSE,
    Mistake,
    Recorder,
    call_on_copies,
    diagnose,
    diagnose_number,
    guidance_mistakes,
    is_close,
    randn,
    split_result,
)

__all__ = [
    "CLOSE",
    "Exercise",
    "IncorrectAnswer",
    "Mistake",
    "Recorder",
    "TILED",
    "as_number",
    "as_tensor",
    "assert_matches",
    "call",
    "call_on_copies",
    "cfg_order_mistakes",
    "check",
    "describe",
    "describe_value",
    "diagnose",
    "diagnose_number",
    "diagnose_order",
    "fold_mistakes",
    "guidance_mistakes",
    "hint",
    "is_close",
    "lessons",
    "per_frame_mistakes",
    "randn",
    "report",
    "require",
    "row_owners",
    "set_package",
    "solution",
    "split_result",
    "unfold_mistakes",
]
