"""What a recipe is, and how one is run: seed, build, train, evaluate, save with its model card.

    RECIPE = Recipe(name="judge", summary="…", build_model=…, make_batch=…, loss_fn=…, evaluate=…,
                    configs={"cpu": TrainConfig(num_steps=8000, batch_size=32, lr=1e-3), …})

A recipe holds what is particular to one checkpoint; `run_recipe` does what all have in common. The
state of the training is kept in a file (see `training.state`): however a run ended, the same call
resumes it.
"""

import copy
import importlib.metadata
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
from course_lib.recipes.card import card_text
from course_lib.training import TrainStep, discard_state, fit
from course_lib.validation import check_int

COMPARISONS = {">=": operator.ge, "<=": operator.le}
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train.

    Args:
        num_steps, lr, warmup, lr_schedule, optimizer, weight_decay, max_grad_norm, ema_decay,
            mixed_precision, seed: as for `training.train`.
        batch_size: rows of the global batch, all processes together, at least 1.
        eval_samples: number of test samples of the evaluation, at least 1.
        extra: whatever else a recipe varies with the profile, in JSON.

    Raises:
        ValueError: `batch_size` or `eval_samples` is no such number; `train` checks the rest.
    """

    num_steps: int
    batch_size: int
    lr: float
    warmup: int = 0
    lr_schedule: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    ema_decay: float | None = None
    mixed_precision: str = "auto"
    seed: int = 0
    eval_samples: int = 1024
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_int("batch_size", self.batch_size, 1)
        check_int("eval_samples", self.eval_samples, 1)

    def training(self) -> dict[str, Any]:
        """All that decides the weights: everything but the size of the evaluation."""
        return {name: value for name, value in asdict(self).items() if name != "eval_samples"}


def save_fp16(model: nn.Module, folder: Path) -> None:
    """Save a copy of a model in half precision, as safetensors.

    Args:
        model: a ModelMixin of diffusers or a PreTrainedModel of transformers; it is not changed.
        folder: where to.

    Raises:
        ValueError: the model is neither.
    """
    if not isinstance(model, ModelMixin | PreTrainedModel):
        got = type(model).__name__
        raise ValueError(f"model: expected a ModelMixin or a PreTrainedModel, got {got}")
    copy.deepcopy(model).half().save_pretrained(folder)  # both write safetensors by default


@dataclass(frozen=True)
class Recipe:
    """How one shipped checkpoint is made.

    Args:
        name: of the checkpoint, its folder under data/checkpoints; may contain a slash.
        summary: one sentence about the model.
        build_model: () → a new model, whose weights depend on torch's seed only.
        make_batch: (number, config) → the global batch of that number, a pure function of both;
            every process takes its slice of the rows. Make noise here, not in `loss_fn`, so that
            one process and two compute the same.
        loss_fn: (model, batch, generator) → a scalar, a mean over rows. It may only call the
            model, since several processes wrap it.
        evaluate: (model, config) → metrics on the test split. The model is in evaluation mode.
        configs: by profile: "cpu", "gpu", and "ci" (a few tiny steps for tests).
        targets: metric → (">=" or "<=", number).
        save: (model, folder) → writes the model in its library's format.
        unwrap_checkpoint: what `zoo.load` returns → the model as `build_model` gives it.
        post_train: (model, config) → fits what is not trained by gradient descent, before the
            evaluation.
        notes: intended use and limits, Markdown, for the card.
        hub_metadata: library_name, pipeline_tag and base_model for the header of the card.

    Raises:
        ValueError: a target with another comparison, or a missing profile.
    """

    name: str
    summary: str
    build_model: Callable[[], nn.Module]
    make_batch: Callable[[int, TrainConfig], Any]
    loss_fn: Callable[[nn.Module, Any, torch.Generator], Tensor]
    evaluate: Callable[[nn.Module, TrainConfig], Mapping[str, Any]]
    configs: Mapping[str, TrainConfig]
    targets: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    save: Callable[[nn.Module, Path], None] = save_fp16
    unwrap_checkpoint: Callable[[Any], nn.Module] = lambda loaded: loaded
    post_train: Callable[[nn.Module, TrainConfig], None] | None = None
    notes: str = ""
    hub_metadata: Mapping[str, str] = field(default_factory=lambda: {"library_name": "diffusers"})

    def __post_init__(self):
        unknown = {comparison for comparison, _ in self.targets.values()} - set(COMPARISONS)
        if unknown:
            expected, got = (" or ".join(map(repr, names)) for names in (COMPARISONS, unknown))
            raise ValueError(f"targets: expected {expected}, got {got}")
        if set(self.configs) != set(runtime.PROFILES):
            expected, got = ", ".join(runtime.PROFILES), ", ".join(self.configs)
            raise ValueError(f"configs: expected {expected}; got {got}")


def default_state_dir() -> Path:
    """Folder of training states: `COURSE_WORK` if set, else `build/training` next to `data`."""
    return Path(os.environ.get("COURSE_WORK") or runtime.data_dir().parent / "build" / "training")


def run_recipe(
    recipe: Recipe,
    profile: str,
    *,
    checkpoint_dir: Path | None = None,
    state_dir: Path | None = None,
    minutes: float | int | None = None,
    restart: bool = False,
    log_dir: Path | None = None,
    progress: bool = True,
) -> tuple[TrainStep, Path | None]:
    """Train a recipe, or resume it; after the last step evaluate it and store the checkpoint.

    Args:
        recipe: what to train.
        profile: a key of `recipe.configs`.
        checkpoint_dir: folder of checkpoints. None is data/checkpoints, but for "ci", whose models
            are useless, a folder in `state_dir`.
        state_dir: folder of training states; None is `default_state_dir()`.
        minutes: stop training after these.
        restart: discard the state.
        log_dir: folder for TensorBoard.
        progress: show a progress bar on stderr.

    Returns:
        The last step, and the checkpoint's folder if this process stored it.

    Raises:
        ValueError: an unknown profile, weights that half precision cannot represent, or a target
            for a metric that `evaluate` does not return; and all that `training.train` raises.
    """
    if profile not in recipe.configs:
        raise ValueError(f"profile: expected one of {', '.join(recipe.configs)}; got {profile!r}")
    config = recipe.configs[profile]
    state_dir = state_dir or default_state_dir()
    if checkpoint_dir is None:
        checkpoint_dir = state_dir / "checkpoints" if profile == "ci" else zoo.default_root()
    state_path = state_dir / recipe.name / f"{profile}.safetensors"
    if restart and os.environ.get("RANK", "0") == "0":  # of several processes, the main one
        discard_state(state_path)
    runtime.seed_everything(config.seed)
    model = recipe.build_model()
    train_kwargs = config.training()
    fingerprint = {name: train_kwargs.pop(name) for name in ("batch_size", "extra")}
    last = fit(
        model,
        lambda number: recipe.make_batch(number, config),
        recipe.loss_fn,
        minutes=minutes,
        state_path=state_path,
        run_fingerprint={"recipe": recipe.name} | fingerprint,
        log_dir=log_dir,
        progress=progress,
        **train_kwargs,
    )[-1]
    if last.step < config.num_steps or not PartialState().is_main_process:
        return last, None
    return last, _finalize(recipe, profile, model, last, checkpoint_dir)


def _finalize(
    recipe: Recipe, profile: str, model: nn.Module, last: TrainStep, checkpoint_dir: Path
) -> Path:
    """Post-train, evaluate the rounded weights that are shipped, and store them."""
    config = recipe.configs[profile]
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.eval().requires_grad_(False)
    _round_to_fp16(model)
    if recipe.post_train is not None:
        recipe.post_train(model, config)
        _round_to_fp16(model)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    metadata = {
        "name": recipe.name,
        "summary": recipe.summary,
        "command": f"python -m course_lib.recipes {shlex.quote(recipe.name)} --profile {profile}",
        "config": config.training(),
        "minutes": round(last.seconds / 60, 1),
        "processes": PartialState().num_processes,
        "machine": runtime.machine_summary(),
        "versions": versions | {"python": platform.python_version()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": num_trained,
    }
    metadata |= _evaluate(recipe, config, model.eval())
    return _store(recipe, metadata, partial(recipe.save, model), checkpoint_dir)


def reevaluate(recipe: Recipe, profile: str, checkpoint_dir: Path | None = None) -> Path:
    """Evaluate a stored checkpoint again and rewrite its card; its weights are not changed.

    Args:
        recipe: how the checkpoint was made.
        profile: a key of `recipe.configs`, for the number of test samples.
        checkpoint_dir: folder of checkpoints; None is data/checkpoints.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: there is no such checkpoint, or a target has no metric.
    """
    metadata = dict(zoo.card(recipe.name, checkpoint_dir).metadata)
    loaded = zoo.load(recipe.name, device=runtime.device(), root=checkpoint_dir)
    eval_samples = recipe.configs[profile].eval_samples
    config = TrainConfig(**metadata["config"], eval_samples=eval_samples)
    metadata |= _evaluate(recipe, config, recipe.unwrap_checkpoint(loaded))
    metadata["measured_on"] = runtime.machine_summary()
    copy_files = partial(shutil.copytree, zoo.path(recipe.name, checkpoint_dir), dirs_exist_ok=True)
    return _store(recipe, metadata, copy_files, checkpoint_dir)


def _store(
    recipe: Recipe,
    metadata: Mapping[str, Any],
    save: Callable[[Path], Any],
    checkpoint_dir: Path | None,
) -> Path:
    text = card_text(metadata, check_targets(metadata), recipe.notes, recipe.hub_metadata)
    return zoo.store(recipe.name, save, metadata, text, checkpoint_dir)


def _evaluate(recipe: Recipe, config: TrainConfig, model: nn.Module) -> dict[str, Any]:
    """Metrics and targets, as entries of `evaluation.json`."""
    metrics = dict(recipe.evaluate(model, config))
    missing = sorted(set(recipe.targets) - set(metrics))
    if missing:
        got = ", ".join(metrics)
        raise ValueError(f"targets: expected names of metrics ({got}), got {', '.join(missing)}")
    return {
        "evaluated_on": f"{config.eval_samples:,} samples of the test split",
        "evaluation": metrics,
        "targets": {name: list(target) for name, target in recipe.targets.items()},
    }


@torch.no_grad()
def _round_to_fp16(model: nn.Module) -> None:
    """Round the weights as the file will, so that the shipped weights are evaluated."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
            if not tensor.isfinite().all():
                raise ValueError(f"model: half precision cannot represent the values of {name}")


def check_targets(metadata: Mapping[str, Any]) -> dict[str, bool]:
    """Which targets were reached, by metric.

    Args:
        metadata: with "evaluation" and "targets", as in evaluation.json.
    """
    metrics = metadata["evaluation"]
    return {
        name: COMPARISONS[comparison](metrics[name], target)
        for name, (comparison, target) in metadata["targets"].items()
    }
