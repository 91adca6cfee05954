"""What a recipe is, and how one is run: seed, build, train, finish, evaluate, save with its card.

    RECIPE = Recipe(name="judge", about="says what a clip shows", build=…, batches=…, loss=…, evaluate=…,
                    settings={"cpu": Settings(steps=8000, batch=32, lr=1e-3), …})

A recipe says what is particular to one checkpoint; `run_recipe` does what all have in common. Its training is kept in
a file (see `training_state`): whatever ends it, the same call goes on.
"""

import copy
import importlib.metadata
import json
import math
import operator
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_lib import runtime, zoo
from course_lib.training import Step, fit

COMPARE = {">=": operator.ge, "<=": operator.le}
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train. The arguments are those of `training.train`, but

    batch: rows of the global batch, all processes together. options: whatever else the recipe wants to vary with
    the profile, in JSON. All of them must be equal for a run to go on from its state.
    Raises ValueError for a batch below 1; `train` refuses the rest.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 0
    schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float | None = 1.0
    ema: float | None = None
    mixed_precision: str = "auto"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch: expected at least 1, got {self.batch}")


def save_half(model: nn.Module, folder: Path) -> None:
    """Save a copy of the model in half precision with its own `save_pretrained`, as safetensors.

    model: of diffusers (ModelMixin) or transformers (PreTrainedModel); stays as it is. folder: where to.
    Raises ValueError for any other model.
    """
    if not isinstance(model, ModelMixin | PreTrainedModel):
        raise ValueError(
            f"model: expected a ModelMixin or a PreTrainedModel, got {type(model).__name__}"
        )
    copy.deepcopy(model).half().save_pretrained(
        folder
    )  # both write safetensors unless told otherwise


@dataclass(frozen=True)
class Recipe:
    """How one shipped checkpoint is made.

    name: of the checkpoint, its folder under data/checkpoints; may hold a slash. about: one line.
    build: () to a new model, whose weights depend on torch's seed only.
    batches: (number, settings) to the global batch of that number, a pure function of both; several processes each
    take their slice of its rows. Make the noise here, not in the loss, if one process and two are to agree.
    loss: (model, batch, generator) to a scalar, a mean over rows; calls the model and nothing else of it.
    evaluate: (model, settings) to what it measures on the test split, by name. The model is in evaluation mode.
    settings: by profile: "cpu", "gpu", and "ci" (a few steps, tiny: what tests run).
    bars: from a name of `evaluate` to (">=" or "<=", number).
    save: (model, folder) writes it as its library does. trained: from what `zoo.load` makes of that to the model that
    was trained, for whoever measures it again. finish: (model, settings), after training, before the evaluation: fits
    what is not learned by descent. notes: intended use and limits, Markdown, for the card.
    Raises ValueError for a bar that cannot be compared, or a profile missing.
    """

    name: str
    about: str
    build: Callable[[], nn.Module]
    batches: Callable[[int, Settings], Any]
    loss: Callable[[nn.Module, Any, torch.Generator], Tensor]
    evaluate: Callable[[nn.Module, Settings], Mapping[str, Any]]
    settings: Mapping[str, Settings]
    bars: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    save: Callable[[nn.Module, Path], None] = save_half
    trained: Callable[[Any], nn.Module] = lambda loaded: loaded
    finish: Callable[[nn.Module, Settings], None] | None = None
    notes: str = ""

    def __post_init__(self):
        bad = {how for how, _ in self.bars.values()} - set(COMPARE)
        if bad:
            raise ValueError(
                f"bars: expected {' or '.join(map(repr, COMPARE))}, got {', '.join(map(repr, bad))}"
            )
        if set(self.settings) != set(runtime.PROFILES):
            raise ValueError(
                f"settings: expected {', '.join(runtime.PROFILES)}; got {', '.join(self.settings)}"
            )


def default_work() -> Path:
    """Where training states are kept: `COURSE_WORK` if set, else `build/training` beside the data folder."""
    return Path(os.environ.get("COURSE_WORK") or runtime.data_dir().parent / "build" / "training")


def run_recipe(
    recipe: Recipe,
    profile: str,
    *,
    root: Path | None = None,
    work: Path | None = None,
    minutes: float | int | None = None,
    fresh: bool = False,
    log: Path | None = None,
    progress: bool = True,
) -> tuple[Step, Path | None]:
    """Train a recipe, or go on training it; when all steps are done, evaluate it and store the checkpoint.

    profile: a key of `recipe.settings`. root: folder of checkpoints; None is data/checkpoints, but for "ci", whose
    models are no good, a folder in `work`. work: folder of training states; None is `default_work()`. minutes: stop
    training after these. fresh: forget the state. log: folder for TensorBoard. progress: a bar on stderr.
    Returns the last step, and the checkpoint's folder if it was stored (by this process, in time).
    Raises what `training.train` raises; ValueError for an unknown profile, weights that half precision cannot hold,
    or a bar for a number that was not measured.
    """
    if profile not in recipe.settings:
        raise ValueError(f"profile: expected one of {', '.join(recipe.settings)}; got {profile!r}")
    settings, work = recipe.settings[profile], work or default_work()
    root = root or (work / "checkpoints" if profile == "ci" else zoo.default_root())
    state = work / recipe.name / f"{profile}.safetensors"
    if fresh:
        state.unlink(missing_ok=True)
    runtime.seed_everything(settings.seed)
    model = recipe.build()
    options = asdict(settings)
    identity = {
        "recipe": recipe.name,
        "batch": options.pop("batch"),
        "options": options.pop("options"),
    }
    last = fit(
        model,
        lambda number: recipe.batches(number, settings),
        recipe.loss,
        minutes=minutes,
        state=state,
        identity=identity,
        log=log,
        progress=progress,
        **options,
    )[-1]
    if last.step < settings.steps or not PartialState().is_main_process:
        return last, None
    return last, _store(recipe, settings, profile, model, last, root)


def _store(
    recipe: Recipe, settings: Settings, profile: str, model: nn.Module, last: Step, root: Path
) -> Path:
    """Finish, evaluate what will be shipped (half precision), write it down."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model.eval().requires_grad_(False)
    _round(model)
    if recipe.finish is not None:
        recipe.finish(model, settings)
        _round(model)
    measured = _measured(recipe, settings, model.eval())
    facts = {
        "name": recipe.name,
        "about": recipe.about,
        "command": f"python -m course_lib.recipes {shlex.quote(recipe.name)} --profile {profile}",
        "settings": asdict(settings),
        "minutes": round(last.seconds / 60, 1),
        "processes": PartialState().num_processes,
        "machine": runtime.machine_summary(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained parameters": trained,
    } | measured
    return zoo.store(
        recipe.name,
        lambda folder: recipe.save(model, folder),
        facts,
        card_text(facts, recipe.notes),
        root,
    )


def measure_again(recipe: Recipe, root: Path | None = None) -> Path:
    """Evaluate a stored checkpoint anew and write its card; its weights, and how they were made, stay as they are.

    root: folder of checkpoints; None is data/checkpoints. Returns the checkpoint's folder. Raises ValueError if there
    is none, or for a bar that is not measured.
    """
    facts = dict(zoo.card(recipe.name, root).facts)
    model = recipe.trained(zoo.load(recipe.name, device=runtime.device(), root=root))
    facts |= _measured(recipe, Settings(**facts["settings"]), model) | {
        "measured on": runtime.machine_summary()
    }
    save = partial(shutil.copytree, zoo.path(recipe.name, root), dirs_exist_ok=True)
    return zoo.store(recipe.name, save, facts, card_text(facts, recipe.notes), root)


def _measured(recipe: Recipe, settings: Settings, model: nn.Module) -> dict[str, Any]:
    """Evaluation and bars, for `evaluation.json`."""
    measured = dict(recipe.evaluate(model, settings))
    unknown = set(recipe.bars) - set(measured)
    if unknown:
        raise ValueError(
            f"bars: {', '.join(sorted(unknown))} not among what was measured: {', '.join(measured)}"
        )
    return {"evaluation": measured, "bars": {name: list(bar) for name, bar in recipe.bars.items()}}


@torch.no_grad()
def _round(model: nn.Module) -> None:
    """Round the weights as the file will, so that what is measured is what is shipped."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
            if not tensor.isfinite().all():
                raise ValueError(f"model: {name} has values that half precision cannot hold")


def reached(facts: Mapping[str, Any]) -> dict[str, bool]:
    """Which bars were reached, by name.

    facts: with "evaluation" and "bars", as in evaluation.json.
    """
    measured = facts["evaluation"]
    return {name: COMPARE[how](measured[name], bar) for name, (how, bar) in facts["bars"].items()}


def card_text(facts: Mapping[str, Any], notes: str) -> str:
    """The model card, Markdown.

    facts: what `run_recipe` stores as evaluation.json. notes: intended use and limits.
    """
    ok, bars = reached(facts), facts["bars"]
    rows, brackets = [], ""
    for name, value in facts["evaluation"].items():
        if isinstance(value, int | float):
            bar = f"{bars[name][0]} {_number(bars[name][1])}" if name in bars else ""
            found = _number(value)
            if (interval := facts["evaluation"].get(f"{name}, 95 % interval")) is not None:
                found += f" ({_number(interval[0])} to {_number(interval[1])})"
                brackets = "; in brackets 95 % intervals"
            rows.append(
                f"| {name} | {found} | {bar} | {('missed', 'reached')[ok[name]] if name in ok else ''} |"
            )
    settings = {name: value for name, value in facts["settings"].items() if value not in (None, {})}
    lines = [
        *(f"# {facts['name']}", "", facts["about"], ""),
        *(
            "## Measured",
            "",
            f"On the test split, with the weights as they are stored{brackets}.",
            "",
        ),
        *("| what | measured | bar | |", "|---|---:|---:|---|", *rows, ""),
        *("## Use and limits", "", notes.strip(), "") * bool(notes.strip()),
        *("## Made by", "", "```", facts["command"], "```", ""),
        f"- {facts['parameters']:,} parameters, {_stored(facts)} in half precision (safetensors)",
        f"- {facts['minutes']:.1f} minutes of training, {facts['processes']} process(es); {facts['machine']}",
        *([f"- measured on {facts['measured on']}"] if "measured on" in facts else []),
        "- " + ", ".join(f"{name} {value}" for name, value in facts["versions"].items()),
        "- " + ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items()),
    ]
    return "\n".join(lines) + "\n"


def _stored(facts: Mapping[str, Any]) -> str:
    trained = facts.get("trained parameters", facts["parameters"])
    return (
        "stored"
        if trained == facts["parameters"]
        else f"of which {trained:,} were trained and are stored here,"
    )


def _number(value: float | int) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4g}"
        if math.isfinite(value)
        else str(value)
    )
