"""What several experiments share: clips, small trainings, distances of videos."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, wraps
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from course_lib.claims.ledger import Arm, Metrics
from course_lib.diffusion import Model, NoisyBatch, denoising_loss
from course_lib.evaluation import extract_features
from course_lib.metrics import frechet_distance
from course_lib.nn.utils import fold_frames
from course_lib.papers.vdm import build_scheduler
from course_lib.pipelines.unet_adapter import unet_denoiser
from course_lib.training import LossFn, TrainStep, fit
from course_lib.world import SUBJECTS_24, Clips, World

BACKGROUNDS = ("white", "mint", "sunset", "night sky")
WORLD_SUBSET = {"subjects": SUBJECTS_24[:8], "backgrounds": BACKGROUNDS}
Run = Callable[[Any, int, float], Metrics]


@cache
def pixel_video_scheduler() -> SchedulerMixin:
    """The noise schedule of the shipped vdm, for small video models on pixels."""
    return build_scheduler()


@lru_cache(maxsize=8)
def load_clips(split: str, num_clips: int, seed: int, **world_kwargs: Any) -> Clips:
    """The first clips of a world, rendered once.

    Args:
        split: "train" or "test".
        num_clips: number of clips.
        seed: other seeds give other clips.
        world_kwargs: hashable arguments of `World`.
    """
    return World(split, seed=seed, **world_kwargs).batch(range(num_clips))


def scaled(count: int, scale: float, minimum: int) -> int:
    """A number of steps or samples, scaled down for a quick run.

    Args:
        count: the number in the ledger's own runs.
        scale: 1 for those runs, less for quicker ones.
        minimum: lower limit of the result.
    """
    return max(minimum, round(count * scale))


def shared_run(run: Run) -> Run:
    """Cache a run that several claims use, and have it report its own duration in `minutes`."""

    @cache
    @wraps(run)
    def timed_run(arm: Arm, seed: int, scale: float) -> Metrics:
        start = time.perf_counter()
        metrics = run(arm, seed, scale)
        return metrics | {"minutes": (time.perf_counter() - start) / 60}

    return timed_run


@dataclass(frozen=True)
class Training:
    """Hyperparameters of a small training with AdamW.

    Attributes:
        num_examples: size of the training set; 0 if every batch is new.
        batch_size: examples per step.
        num_steps: number of updates.
        lr: peak learning rate.
        warmup: steps of learning rate warm-up.
        ema_decay: see `training.train`.
        mixed_precision: see `training.train`.
    """

    num_examples: int
    batch_size: int
    num_steps: int
    lr: float
    warmup: int
    ema_decay: float | None = None
    mixed_precision: str = "auto"


def train_model(
    model: nn.Module,
    make_batch: Callable[[torch.Generator], Any],
    loss_fn: LossFn,
    training: Training,
    *,
    seed: int,
    scale: float,
) -> list[TrainStep]:
    """Train a small model in place, then freeze it.

    Equal seeds give equal batches, so that the arms of an experiment see the same data.

    Args:
        model: the model; it is left in evaluation mode, without gradients.
        make_batch: generator to batch; every step has a generator of its own.
        loss_fn: (model, batch, generator) to a scalar.
        training: hyperparameters.
        seed: of the batches and of whatever is random in training.
        scale: fraction of the steps.

    Returns:
        The history, one entry per step.
    """
    num_steps = scaled(training.num_steps, scale, 2)
    history = fit(
        model,
        lambda index: make_batch(torch.Generator().manual_seed(100_000 * seed + index)),
        loss_fn,
        num_steps=num_steps,
        lr=training.lr,
        warmup=min(training.warmup, num_steps - 1),
        ema_decay=training.ema_decay,
        mixed_precision=training.mixed_precision,
        seed=seed,
        progress=False,
    )
    model.eval().requires_grad_(False)
    return history


def seconds_per_step(history: list[TrainStep]) -> float:
    """Mean duration of a training step."""
    return history[-1].seconds / len(history)


def denoiser_loss(denoiser: Callable[[nn.Module], Model] = unet_denoiser) -> LossFn:
    """A denoising loss for batches with the fields of a NoisyBatch; other entries are conditioning.

    Args:
        denoiser: network to model (x_t, t, cond) -> prediction.
    """

    def loss_fn(net: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        noisy = NoisyBatch(*(batch[name] for name in NoisyBatch._fields))
        cond = {name: value for name, value in batch.items() if name not in NoisyBatch._fields}
        return denoising_loss(denoiser(net)(noisy.x_t, noisy.t, cond), noisy)

    return loss_fn


def fold_images(video: Tensor) -> Tensor:
    """Frames of videos (n, c, f, h, w) as videos of one frame (n · f, c, 1, h, w)."""
    return fold_frames(video)[:, :, None]


def fvd(video: Tensor, real: Tensor) -> float:
    """Fréchet distance of videos (n, 3, f, h, w) from real ones on features/video."""
    return frechet_distance(*(extract_features("features/video", part) for part in (real, video)))


def frame_fid(video: Tensor, real: Tensor) -> float:
    """Fréchet distance of the single frames of videos (n, 3, f, h, w) on features/image."""
    images = [fold_images(part) for part in (real, video)]
    return frechet_distance(*(extract_features("features/image", part) for part in images))
