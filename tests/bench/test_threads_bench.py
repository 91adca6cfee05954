"""The benchmark of thread settings: its processes, its rows."""

import sys

import pytest

from course_lib import runtime
from course_lib.bench import threads as bench

SERVER = "import sys\nfor _ in sys.stdin: print('done', flush=True)"


def test_the_rows_compare_both_settings_idle_and_busy(monkeypatch):
    started = []

    def process(command, **variables):
        started.append((command[0], variables))
        return original(
            [*command[:1], bench.BUSY_PROGRAM] if command[0] == "-c" else ["-c", SERVER]
        )

    original = bench.process
    monkeypatch.setattr(bench, "process", process)
    monkeypatch.setenv(bench.VARIABLE, "77")
    rows = bench.bench_threads()
    counts = [variables[bench.VARIABLE] for _, variables in started if variables]
    assert counts == ["77", bench.DEFAULT_SPIN_COUNT]
    assert [command for command, _ in started].count("-c") == runtime.cpu_cores()
    assert [row.contender for row in rows] == ["spin count 77", "spin count 300000"] * 2
    assert [row.ratio for row in rows if row.contender == row.peer] == [1, 1]
    assert all(row.unit == "s" and row.value > 0 for row in rows)


def test_a_process_that_ends_is_an_error():
    with bench.process(["-c", "input()"]) as child, pytest.raises(RuntimeError, match="ended"):
        bench.request_fn(child)()


def test_a_process_does_not_outlive_its_block():
    with bench.process(["-c", bench.BUSY_PROGRAM], COURSE_TEST="1") as child:
        assert child.poll() is None
        assert child.args[0] == sys.executable
    assert child.poll() is not None
