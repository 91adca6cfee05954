"""A clip on an idle and on a busy machine, with libgomp's own spin count and with the course's.

Between two parallel regions torch's OpenMP threads wait in a loop. If another program needs the
core, the thread that is waited for does not run, and the others spin through their time slices.
The variable is read when torch is loaded, so each setting has a process of its own, which generates
a clip for every line on its standard input: `python -m course_lib.bench.threads`.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from course_lib import runtime, zoo
from course_lib.bench.timing import BenchmarkRow, compare, interleaved_timings

VARIABLE = "GOMP_SPINCOUNT"
DEFAULT_SPIN_COUNT = "300000"  # libgomp's, if the variable is not set
BUSY_PROGRAM = "while True: pass"
ROUNDS = 5
SECONDS_PER_CASE = 240
PROMPT = "a tiger moving left on grass"


def answer_requests() -> None:
    """Generate a clip for every line on the standard input, and print a line after each."""
    pipe = zoo.load("mini-video")
    for _ in sys.stdin:
        pipe.generate(PROMPT, generator=torch.Generator().manual_seed(0))
        print("done", flush=True)


@contextmanager
def process(command: list[str], **variables: str) -> Iterator[subprocess.Popen]:
    """A Python process with other environment variables, killed at the end of the block."""
    child = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def request_fn(child: subprocess.Popen) -> Callable[[], None]:
    """Sends a request to a process and waits until it is done.

    Raises:
        RuntimeError: when called, if the process has ended.
    """

    def request() -> None:
        child.stdin.write("clip\n")
        child.stdin.flush()
        if child.stdout.readline() != "done\n":
            raise RuntimeError(f"{child.args}: expected a clip, but the process ended")

    return request


def bench_threads() -> list[BenchmarkRow]:
    """Seconds per clip for both settings, idle and with a busy program per core."""
    settings = {
        f"spin count {count}": count for count in (os.environ[VARIABLE], DEFAULT_SPIN_COUNT)
    }
    course, default = settings
    cores = runtime.cpu_cores()
    with ExitStack() as stack:
        functions = {}
        for name, count in settings.items():
            child = process(["-m", "course_lib.bench.threads"], **{VARIABLE: count})
            functions[name] = request_fn(stack.enter_context(child))
        idle = interleaved_timings(functions, ROUNDS, budget_s=SECONDS_PER_CASE)
        for _ in range(cores):
            stack.enter_context(process(["-c", BUSY_PROGRAM]))
        busy = interleaved_timings(functions, ROUNDS, warmup=0, budget_s=SECONDS_PER_CASE)
    rows = []
    for case, times in ((f"{cores} idle cores", idle), (f"{cores} busy programs", busy)):
        for name in settings:
            slowdown = statistics.median(times[name]) / statistics.median(idle[default])
            note = f"{slowdown:.2f} times the idle time of {default}" if name == course else ""
            label = f"mini-video, a clip, {case}"
            row = compare(times, name, default, benchmark="threads", case=label, note=note)
            rows.append(replace(row, value=row.value / 1000, unit="s"))
    return rows


if __name__ == "__main__":
    answer_requests()
