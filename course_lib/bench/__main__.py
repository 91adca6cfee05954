"""Run benchmarks, print a table, write JSON; see the package's docstring."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from course_lib import files, runtime
from course_lib.bench.registry import BENCHMARKS
from course_lib.bench.timing import BenchmarkRow
from course_lib.validation import require

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "scipy",
    "scikit-image",
    "torchmetrics",
)


def table(rows: Sequence[BenchmarkRow]) -> str:
    """The rows in Markdown."""
    lines = [
        "| case | contender | median | peer | times as good (quartiles) | note |",
        "|---|---|---:|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        cells = [
            row.case,
            row.contender,
            f"{row.value:{',.0f' if row.value >= 1000 else '.3g'}} {row.unit}",
            row.peer,
            ratio if row.contender != row.peer else "",
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(name: str) -> dict:
    """Run one benchmark, print its table, and return its entry of the file."""
    print(f"\n## {name}\n", flush=True)
    start = time.perf_counter()
    rows = BENCHMARKS[name]()
    seconds = time.perf_counter() - start
    print(f"{table(rows)}\n\n{seconds:.0f} s", flush=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": runtime.machine_summary(),
        "threads": torch.get_num_threads(),
        "versions": {package: version(package) for package in PACKAGES},
        "seconds": round(seconds, 1),
        "rows": [row.as_dict() for row in rows],
    }


def read_results(path: Path) -> dict[str, Any]:
    """Entries of a file of results by benchmark; none if it does not exist.

    Args:
        path: a JSON file.

    Raises:
        ValueError: the file holds something else; the message names it.
    """
    results = files.read_json(path) if path.exists() else {}
    require(isinstance(results, dict), str(path), "results by benchmark", type(results).__name__)
    return results


def add_result(name: str, entry: dict, path: Path) -> None:
    """Add the entry of a benchmark to a file, or replace it; one process at a time.

    Args:
        name: of the benchmark.
        entry: from `report`.
        path: a JSON file, which need not exist.
    """
    with files.locked(path):
        results = read_results(path) | {name: entry}
        files.write_text(path, json.dumps(results, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status. Entries of other benchmarks stay in the file."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.bench", description="Time the course against other libraries."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON to write (default: bench.json in the data folder)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"NAME: expected some of {', '.join(BENCHMARKS)}; got {', '.join(unknown)}")
    out = options.out or runtime.data_dir() / "bench.json"
    try:
        machine = runtime.machine_summary()
    except (ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error))  # of the profile or the device
    try:
        read_results(out)  # a damaged file is noticed before hours of work
    except (ValueError, OSError) as error:
        parser.error(f"--out: {error}")
    print(machine)
    for name in options.names or BENCHMARKS:
        add_result(name, report(name), out)
    print(f"\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
