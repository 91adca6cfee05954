"""Run experiments and write the ledger: `python -m course_lib.claims [ID …] [--seeds 0 1 2] [--fresh]`."""

import argparse
import hashlib
from pathlib import Path

from course_lib.claims import CLAIMS, load_ledger, run_claim, save_ledger
from course_lib.runtime import data_dir


def main(arguments: list[str] | None = None) -> None:
    """Run the named claims, or all, and update `data/claims.json` after each.

    Args:
        arguments: command line, without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.claims", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help=f"which claims: {', '.join(CLAIMS)} (default: all)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="three or more (default: each claim's own)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not reuse the finished runs of an interrupted call"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.ids) - set(CLAIMS)
    if unknown:
        parser.error(f"unknown claims {sorted(unknown)}; known are {', '.join(CLAIMS)}")
    keep = None if options.fresh else data_dir().parent / "build" / "claims" / _digest()
    for id in options.ids or CLAIMS:
        record = run_claim(CLAIMS[id], options.seeds, keep=keep)
        # Read only now: another process may have written what it found meanwhile
        records = load_ledger() if (data_dir() / "claims.json").exists() else {}
        save_ledger(records | {id: record})
        low, high = record.interval
        print(
            f"{id}: {record.verdict} (effect {record.effect:+.3f}, 95 % [{low:+.3f}, {high:+.3f}])"
        )


def _digest() -> str:
    """Finished runs count only while the code that made them is unchanged."""
    package = Path(__file__).parents[1]
    files = [
        *(package / name for name in ("runtime.py", "training.py", "training_state.py", "zoo.py")),
        *sorted((data_dir() / "sprites").glob("*")),
        *sorted(package.glob("nn/*.py")),
        *sorted(package.glob("world/*.py")),
    ]
    files += sorted(package.glob("metrics/*.py")) + sorted(package.glob("claims/*.py"))
    files += sorted((data_dir() / "checkpoints").glob("SHA256SUMS"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


if __name__ == "__main__":
    main()
