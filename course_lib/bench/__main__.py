"""Run benchmarks, print a table, write JSON; see the package's docstring."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from course_lib import runtime
from course_lib.bench.registry import BENCHMARKS
from course_lib.bench.timing import BenchmarkRow

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
    print(runtime.machine_summary())
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in options.names or BENCHMARKS:
        results[name] = report(name)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
