"""Fair timing on a machine that other work shares: subjects take turns, and only turns of one round are compared."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from course_lib import runtime

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One line of a report.

    benchmark, case, subject: what was measured, on what, of what. value, unit: the median.
    peer: what it is compared with; ratio, low, high: how many times as good as the peer (above 1: better), as the
    median over rounds and the quartiles on both sides. note: anything else worth a word.
    """

    benchmark: str
    case: str
    subject: str
    value: float
    unit: str
    peer: str
    ratio: float
    low: float
    high: float
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, four significant digits: more would be noise."""
        return {
            key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in asdict(self).items()
        }


def alternate(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 9,
    warmup: int = 1,
    *,
    budget_s: float | int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, by name: `repeats` rounds in which every function runs once, each second round reversed.

    warmup: rounds that are not counted. budget_s: no new round begins after so many seconds, but 3 are always run.
    clock: seconds; another one is for tests. On a GPU each call is waited for.
    Raises ValueError for no functions or fewer than 1 repeat.
    """
    if not functions or repeats < 1:
        raise ValueError(
            f"functions, repeats: expected at least one each, got {list(functions)} and {repeats}"
        )
    wait = torch.cuda.synchronize if runtime.device().type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in functions}
    start = clock()
    for round_number in range(warmup + repeats):
        late = budget_s is not None and clock() - start > budget_s
        if late and round_number >= warmup + min(repeats, LEAST_ROUNDS):
            break
        # A, B then B, A: whatever drifts during a round (heat, other jobs) favours each of them in turn
        names = list(functions) if round_number % 2 == 0 else list(functions)[::-1]
        for name in names:
            wait()
            before = clock()
            functions[name]()
            wait()
            if round_number >= warmup:
                times[name].append(clock() - before)
    return times


def compile_seconds(draw: Callable[[], object], name: str) -> float | None:
    """What the first call of a compiled model takes; where there is no compiler, None and a printed line.

    name: of the subject, for that line.
    """
    start = time.perf_counter()
    try:
        draw()
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{name}: left out, {reason}", flush=True)
        return None
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value, that value three times."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def compare(
    times: Mapping[str, Sequence[float]],
    subject: str,
    peer: str,
    *,
    benchmark: str,
    case: str,
    note: str = "",
) -> Row:
    """How many times as fast as `peer` is `subject`: the median over rounds of one round's ratio, not of all times.

    times: from `alternate`, so that the n-th of each stood next to each other.
    """
    low, ratio, high = quartiles(
        [theirs / ours for ours, theirs in zip(times[subject], times[peer], strict=True)]
    )
    milliseconds = 1000 * statistics.median(times[subject])
    return Row(benchmark, case, subject, milliseconds, "ms", peer, ratio, low, high, note)
