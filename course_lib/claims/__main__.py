"""Run experiments and write the ledger: `python -m course_lib.claims [ID …] [--seeds 0 1 2]`."""

import argparse
import hashlib
from pathlib import Path

from course_lib.claims import CLAIMS, load_ledger, run_claim, save_ledger
from course_lib.runtime import data_dir

# Packages that no experiment depends on
UNRELATED = {"bench", "exercises", "lab"}


def main(arguments: list[str] | None = None) -> None:
    """Run the named claims, or all, and update `data/claims.json` after each.

    Args:
        arguments: command line without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.claims", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "ids", nargs="*", metavar="ID", help=f"claims: {', '.join(CLAIMS)} (default: all)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="three or more (default: each claim's own)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="do not reuse finished runs of an interrupted call"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.ids) - set(CLAIMS)
    if unknown:
        parser.error(f"ID: expected some of {', '.join(CLAIMS)}; got {sorted(unknown)}")
    cache_dir = None if options.fresh else data_dir().parent / "build" / "claims" / _code_digest()
    for id in options.ids or CLAIMS:
        record = run_claim(CLAIMS[id], options.seeds, cache_dir=cache_dir)
        # Read only now: another process may have written its records meanwhile
        records = load_ledger() if (data_dir() / "claims.json").exists() else {}
        save_ledger(records | {id: record})
        print(f"{id}: {record.summary()}")


def _code_digest() -> str:
    """Hash of code and data; finished runs are reused only while both are unchanged."""
    package = Path(__file__).parents[1]
    code = [
        file
        for file in sorted(package.rglob("*.py"))
        if file.relative_to(package).parts[0] not in UNRELATED
    ]
    data = [*sorted((data_dir() / "sprites").glob("*")), data_dir() / "checkpoints" / "SHA256SUMS"]
    contents = b"".join(file.read_bytes() for file in [*code, *data] if file.exists())
    return hashlib.sha256(contents).hexdigest()[:12]


if __name__ == "__main__":
    main()
