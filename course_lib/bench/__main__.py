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
from course_lib.bench.timing import Row

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "scipy",
    "scikit-image",
    "torchmetrics",
)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| case | subject | median | against | times as good (quartiles) | note |",
        "|---|---|---:|---|---|---|",
    ]
    for row in rows:
        ratio = (
            f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})" if row.subject != row.peer else ""
        )
        value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.3g}"
        lines.append(
            f"| {row.case} | {row.subject} | {value} {row.unit} | {row.peer} | {ratio} | {row.note} |"
        )
    return "\n".join(lines)


def report(name: str) -> dict:
    """Run one benchmark, print its table, and return what goes into the file."""
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
    """Command line; 0 if all went well. Benchmarks not named keep what the file says of them."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.bench", description="Time the course against peers."
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
        parser.error(f"unknown: {', '.join(unknown)}; expected some of: {', '.join(BENCHMARKS)}")
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
