"""Train a shipped checkpoint: `python -m course_lib.recipes NAME [--minutes M] [--profile gpu]`.

On several devices: `accelerate launch [options] -m course_lib.recipes NAME`; on several CPU
processes `torchrun --nproc_per_node N -m course_lib.recipes NAME`, since accelerate's launcher
starts only one there without MPI.
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
from course_lib.recipes.recipe import check_targets, reevaluate
from course_lib.training import StateError
from course_lib.validation import check_number, require
from course_lib.zoo import card, names

OWN_RECIPE = "package.module:ATTRIBUTE"


def find_recipe(name: str) -> Recipe:
    """A recipe of the course by name, or any other as `package.module:ATTRIBUTE`.

    Raises:
        ValueError: neither; the message lists the course's recipes.
    """
    if ":" in name:
        module, attribute = name.split(":", 1)
        try:
            recipe = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected {OWN_RECIPE}; {error}") from error
        require(isinstance(recipe, Recipe), name, "a Recipe", type(recipe).__name__)
        return recipe
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}; expected one of {', '.join(RECIPES)}, or {OWN_RECIPE}"
        )
    return RECIPES[name]


def build_parser() -> argparse.ArgumentParser:
    """The command-line options with their help."""
    parser = argparse.ArgumentParser(
        prog="python -m course_lib.recipes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", nargs="?", help=f"{', '.join(RECIPES)}, or {OWN_RECIPE}")
    flags = {
        "--list": "list the recipes",
        "--evaluate": "do not train: evaluate the stored checkpoint and rewrite its card",
        "--restart": "discard the training state",
    }
    for flag, text in flags.items():
        parser.add_argument(flag, action="store_true", help=text)
    text = "sizes and steps (default: chosen by the machine)"
    parser.add_argument("--profile", choices=runtime.PROFILES, help=text)
    text = "stop training after these; the same command resumes it"
    parser.add_argument("--minutes", type=float, help=text)
    folders = {
        "--checkpoint-dir": "checkpoints (default: data/checkpoints; for ci, in --state-dir)",
        "--state-dir": "training states (default: $COURSE_WORK or build/training)",
        "--log-dir": "a TensorBoard log",
    }
    for option, text in folders.items():
        parser.add_argument(option, type=Path, help=f"folder for {text}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        0 if the run ended well, finished or not, 1 if it failed, 130 if it was interrupted. A wrong
        option ends the process with 2.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:20} {recipe.summary}" for name, recipe in RECIPES.items()))
        return 0
    if options.name is None:
        parser.error("which recipe? --list names them")
    try:
        recipe = find_recipe(options.name)
    except ValueError as error:
        parser.error(str(error))
    if options.profile:  # device() and by_profile() read it, too
        os.environ["COURSE_PROFILE"] = options.profile
    try:
        if options.minutes is not None:
            check_number("--minutes", options.minutes, above=0.0)
        runtime.machine_summary()  # a profile and a device that do not exist
        is_stored = not options.evaluate or recipe.name in names(options.checkpoint_dir)
    except (ValueError, RuntimeError, AssertionError, OSError) as error:
        parser.error(str(error))
    if not is_stored:
        parser.error(f"--evaluate: no checkpoint {recipe.name!r} is stored; train it first")
    words = shlex.join(word for word in arguments if word != "--restart")
    resume = f"the same command resumes it: python -m course_lib.recipes {words}"
    profile = runtime.profile()
    try:
        if options.evaluate:
            folder = reevaluate(recipe, profile, options.checkpoint_dir)
        else:
            last, folder = run_recipe(
                recipe,
                profile,
                checkpoint_dir=options.checkpoint_dir,
                state_dir=options.state_dir,
                minutes=options.minutes,
                restart=options.restart,
                log_dir=options.log_dir,
            )
        if folder is not None:
            print(f"stored in {folder}{_target_summary(recipe.name, folder)}")
        elif last.step < recipe.configs[profile].num_steps and _is_main_process():
            print(f"stopped at step {last.step} of {recipe.configs[profile].num_steps}; {resume}")
        return 0
    except KeyboardInterrupt:
        print(f"\ninterrupted; {resume}", file=sys.stderr)
        return 130
    except (StateError, FloatingPointError, OSError, ValueError) as error:
        # All processes raise the same FloatingPointError at once
        if _is_main_process() or not isinstance(error, FloatingPointError):
            print(f"{recipe.name}: {error}", file=sys.stderr)
        return 1
    finally:
        _shutdown_distributed()


def _target_summary(name: str, folder: Path) -> str:
    reached = check_targets(card(name, folder.parents[name.count("/")]).metadata)
    words = [f"{metric} {('missed', 'reached')[met]}" for metric, met in reached.items()]
    return f"; targets: {', '.join(words)}" if words else ""


def _is_main_process() -> bool:
    """Also true before there are several processes."""
    return not PartialState._shared_state or PartialState().is_main_process


def _shutdown_distributed() -> None:
    """Destroy the process group; torch warns if nobody does."""
    if PartialState._shared_state:
        PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
