"""Train a shipped checkpoint: `python -m course_lib.recipes NAME [--minutes M] [--profile cpu|gpu]`.

On several devices: `accelerate launch [its options] -m course_lib.recipes NAME`; on several CPU processes
`torchrun --nproc_per_node N -m course_lib.recipes NAME`, since accelerate's launcher starts only one there without MPI.
"""

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from course_lib import runtime
from course_lib.recipes import RECIPES, Recipe, run_recipe
from course_lib.recipes.recipe import measure_again, reached
from course_lib.training.state import StateError
from course_lib.zoo import card, names


def find(name: str) -> Recipe:
    """A recipe of the course by its name, or anybody's as `package.module:ATTRIBUTE`.

    name: as typed. Raises ValueError, listing the course's recipes, for anything else.
    """
    if ":" in name:
        module, attribute = name.split(":", 1)
        return getattr(importlib.import_module(module), attribute)
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}, or package.module:ATTRIBUTE"
        )
    return RECIPES[name]


def parser() -> argparse.ArgumentParser:
    """The options, with their help."""
    made = argparse.ArgumentParser(
        prog="python -m course_lib.recipes", description=__doc__.splitlines()[0]
    )
    made.add_argument(
        "name", nargs="?", help=f"{', '.join(RECIPES)}, or package.module:ATTRIBUTE for your own"
    )
    made.add_argument("--list", action="store_true", help="say which recipes there are")
    made.add_argument(
        "--profile",
        choices=runtime.PROFILES,
        help="sizes and steps (default: what the machine has)",
    )
    made.add_argument(
        "--minutes", type=float, help="stop training after these; the same command goes on"
    )
    made.add_argument(
        "--measure",
        action="store_true",
        help="train nothing: measure what is stored, and write its card",
    )
    made.add_argument("--fresh", action="store_true", help="forget what was trained before")
    made.add_argument(
        "--out",
        type=Path,
        help="folder of checkpoints (default: data/checkpoints; for ci, in --work)",
    )
    made.add_argument(
        "--work",
        type=Path,
        help="folder of training states (default: $COURSE_WORK or build/training)",
    )
    made.add_argument("--log", type=Path, help="folder for a TensorBoard log")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 if the run ended well, finished or not, 1 if it failed, 130 if it was interrupted.

    arguments: without the program's name; None is the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:20} {recipe.about}" for name, recipe in RECIPES.items()))
        return 0
    if options.name is None:
        parser().error("which recipe? --list says what there is")
    try:
        recipe = find(options.name)
    except ValueError as error:
        parser().error(str(error))
    if options.profile:  # for device() and pick(), too
        os.environ["COURSE_PROFILE"] = options.profile
    profile = runtime.profile()
    again = "python -m course_lib.recipes " + shlex.join(
        word for word in arguments if word != "--fresh"
    )
    folders = {"root": options.out, "work": options.work, "log": options.log}
    try:
        if options.measure:
            if recipe.name not in names(options.out):
                parser().error(
                    f"--measure: no checkpoint {recipe.name!r} is stored; train it first"
                )
            folder = measure_again(recipe, options.out)
        else:
            last, folder = run_recipe(
                recipe, profile, minutes=options.minutes, fresh=options.fresh, **folders
            )
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on: {again}", file=sys.stderr)
        return 130
    except (StateError, FloatingPointError, OSError) as error:
        if _speaks() or not isinstance(
            error, FloatingPointError
        ):  # which all processes meet at once
            print(f"{recipe.name}: {error}", file=sys.stderr)
        return 1
    finally:
        _leave()
    if folder is not None:
        facts = card(recipe.name, folder.parents[recipe.name.count("/")]).facts
        ok = [f"{name} {('missed', 'reached')[met]}" for name, met in reached(facts).items()]
        print(f"stored in {folder}" + (f"; bars: {', '.join(ok)}" if ok else ""))
    elif last.step < recipe.settings[profile].steps and _speaks():
        print(
            f"stopped at step {last.step} of {recipe.settings[profile].steps}; the same command goes on: {again}"
        )
    return 0


def _speaks() -> bool:
    """Whether this is the process that speaks for all; before there are several, any is."""
    return not PartialState._shared_state or PartialState().is_main_process


def _leave() -> None:
    """Close what several processes share; torch complains if nobody does."""
    if PartialState._shared_state:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
