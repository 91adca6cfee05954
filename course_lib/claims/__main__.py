"""Run experiments and write the ledger: `python -m course_lib.claims [ID …] [--seeds 0 1 2]`."""

import argparse

from course_lib.claims import CLAIMS, MODULES, add_record, load_ledger, run_claim
from course_lib.claims.dependencies import CLAIMS_MODULE, code_digest
from course_lib.claims.ledger import check_seeds
from course_lib.runtime import data_dir, machine_summary


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
    try:
        machine_summary()
    except (ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error))  # of the profile or the device
    try:
        if options.seeds is not None:
            check_seeds(options.seeds)
        load_ledger()  # a damaged one is noticed before hours of work
    except ValueError as error:
        parser.error(str(error))
    except FileNotFoundError:  # the first record creates it
        pass
    build = data_dir().parent / "build" / "claims"
    # Finished runs count only while what made them is unchanged. All digests are made now: this
    # process does not notice when a file changes later
    cache_dirs = {id: build / _code_digest(id) for id in options.ids or CLAIMS}
    for id, cache_dir in cache_dirs.items():
        record = run_claim(
            CLAIMS[id], options.seeds, cache_dir=None if options.fresh else cache_dir
        )
        add_record(record)
        print(f"{id}: {record.summary()}")


def _code_digest(id: str | None = None) -> str:
    """Hash of all that the runs of a claim depend on; None means all claims."""
    owners = (module for module in MODULES if any(claim.id == id for claim in module.CLAIMS))
    return code_digest(next((module.__name__ for module in owners), CLAIMS_MODULE))


if __name__ == "__main__":
    main()
