"""Runs the fuzz as a plain program, without the tests' type checker, as users do.

    python -m tests.fuzz.run REPORT.json [ROOM …]

The report maps each file of examples to the outcomes of its calls. Slow examples are listed.
"""

import faulthandler
import importlib
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOMS = (
    "base", "diffusion", "lab", "metrics", "nn", "papers", "pipelines", "recipes", "training",
    "world", "zoo",
)  # fmt: skip
FAULTS = ("broken", "silent", "damage", "hang")
SLOW_SECONDS = 1.0


def run_room(room: str) -> list[dict[str, str]]:
    """Outcomes of all calls of one file of examples."""
    from tests.fuzz import harness

    before = set(harness.EXAMPLES)
    importlib.import_module(f"tests.fuzz.calls_{room}")
    results = []
    for name, example in harness.EXAMPLES.items():
        if name in before:
            continue
        start = time.process_time()
        new = harness.fuzz(example)
        seconds = time.process_time() - start
        results += map(asdict, new)
        if seconds > SLOW_SECONDS:
            print(f"{name}: {len(new)} calls in {seconds:.1f} s")
    return results


def main() -> None:
    """Write the outcomes of all calls of some rooms as JSON."""
    faulthandler.enable()
    import torch

    from tests.fuzz import allowed, coverage, harness, selftest

    torch.set_num_threads(1)
    path, *rooms = sys.argv[1:]
    report: dict[str, object] = {room: run_room(room) for room in rooms or ROOMS}
    for room, results in report.items():
        print(f"{room}: {dict(Counter(result['verdict'] for result in results))}")
        for result in results if rooms else ():
            if result["verdict"] in FAULTS:
                print("  ", *result.values())
    if not rooms:
        examples = list(harness.EXAMPLES)
        report["coverage"] = {
            "missing": coverage.missing(examples),
            "superfluous": coverage.superfluous(examples),
        }
        report["unused exceptions"] = allowed.unused()
        report["selftest"] = [asdict(outcome) for outcome in selftest.outcomes()]
    Path(path).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
