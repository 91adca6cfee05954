"""The training loop: a generator that yields after every update, so a notebook can plot meanwhile.

    for step in train(model, make_batch, loss_fn, num_steps=300, lr=1e-3, seed=0):
        if step.step % 50 == 0:
            show(step.model, step.loss)

The loop knows no architecture and no data: `make_batch` provides batches, `loss_fn` the objective.
accelerate places model and batch and runs the same loop on many devices; diffusers provides
learning-rate schedules and the exponential moving average (EMA) of the weights.

With `state_path` the run is kept in a file (see `state`): the same call resumes after `minutes`, an
interrupt or a kill, with the same losses as an uninterrupted run.

On several processes (`torchrun`, `accelerate launch`) every process asks for the same global batch
and takes its own rows, so a loss that is a mean over rows gives the same weights as on one process.
Random numbers in `loss_fn` differ between processes; generate noise in `make_batch` if runs must be
equal. There `loss_fn` gets the model in a DistributedDataParallel wrapper: call it, but use no
other attribute.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

from course_lib.training.checks import check_args
from course_lib.training.run import LossFn, StepRecord, TrainingRun
from course_lib.training.sharding import BatchSource, batch_source
from course_lib.training.state import StateCheckpointer

Metrics = Mapping[str, float | int]


@dataclass(frozen=True)
class TrainStep:
    """State of training after an update.

    Attributes:
        step: number of updates so far, from 1.
        loss: of this step's batch, before the update.
        lr: learning rate of this update.
        seconds: training time since the start, earlier runs of the same state included. The time
            that the caller spends between two steps is not counted.
        examples_per_second: mean since the start, over all processes together.
        model: the model in training, not a copy.
        ema: moving average of the parameters, if there is one.
        evaluation: result of `evaluate` after this step, or None.
        history: all steps of the run.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    examples_per_second: float
    model: nn.Module
    ema: EMAModel | None = None
    evaluation: Metrics | None = None
    history: list[StepRecord] = field(default_factory=list, repr=False)

    @contextmanager
    def ema_weights(self) -> Iterator[nn.Module]:
        """The model with its EMA weights inside the block; unchanged if there is no EMA."""
        if self.ema is None:
            yield self.model
            return
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            yield self.model
        finally:
            self.ema.restore(self.model.parameters())

    @property
    def losses(self) -> list[float]:
        """Losses of all steps up to this one, including those before a resumption."""
        return [record.loss for record in self.history[: self.step]]

    def previous(self) -> "list[TrainStep]":
        """All earlier steps, including those before a resumption, without their evaluations."""
        return [_train_step(i, self.history, self.model, self.ema) for i in range(1, self.step)]


def _train_step(
    step: int, history: list[StepRecord], model: nn.Module, ema: EMAModel | None
) -> TrainStep:
    """The `TrainStep` of an update, counted from 1."""
    loss, lr, seconds, examples = history[step - 1]
    return TrainStep(step, loss, lr, seconds, examples / seconds, model, ema, history=history)


def train(
    model: nn.Module,
    make_batch: BatchSource,
    loss_fn: LossFn,
    *,
    num_steps: int,
    lr: float | int,
    optimizer: str = "adamw",
    weight_decay: float | int = 0.01,
    warmup: int = 0,
    lr_schedule: str = "cosine",
    max_grad_norm: float | int | None = 1.0,
    ema_decay: float | None = None,
    minutes: float | int | None = None,
    mixed_precision: Literal["auto", "no", "bf16"] = "auto",
    seed: int = 0,
    state_path: Path | str | None = None,
    save_every: float | int = 60,
    run_fingerprint: Mapping[str, Any] | None = None,
    evaluate: Callable[[TrainStep], Metrics] | None = None,
    eval_every: int | None = None,
    log_dir: Path | str | None = None,
) -> Iterator[TrainStep]:
    """Train `model` in place and yield after every update.

    Args:
        model: only parameters that require a gradient are trained.
        make_batch: function from the batch's index (0, 1, …) to a batch, or an iterable, which
            restarts at its end.
        loss_fn: (model, batch, generator) → scalar. The CPU generator is seeded by (seed, batch
            index), so the random numbers of a step do not depend on how it was reached.
        num_steps: number of updates.
        lr: peak learning rate.
        optimizer: "adamw", "adam" or "sgd".
        weight_decay: of the optimizer.
        warmup: steps in which the learning rate rises to `lr`.
        lr_schedule: decay after the warm-up, a name of diffusers' `get_scheduler`.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        ema_decay: decay of a moving average of the parameters (see `TrainStep.ema_weights`), or
            None.
        minutes: training time after which this call stops, without the caller's time between steps.
        mixed_precision: "auto" is bf16 where that is fast.
        seed: of every random number, dropout included.
        state_path: file to resume from and to save the run in, at the end and every `save_every`
            seconds. A resumed run first yields the last step in the file. It is locked until the
            run ends, or its generator is closed.
        save_every: seconds.
        run_fingerprint: what else, in JSON, must be equal for a run to resume from a state.
        evaluate: called with the step in the main process, after every `eval_every` steps and the
            last.
        eval_every: steps.
        log_dir: folder for TensorBoard.

    Yields:
        A `TrainStep`.

    Raises:
        ValueError: a bad argument, batch or loss, or batches that run out.
        StateError: a state of another run, a damaged one, or one that another process is writing.
        OSError: a state that cannot be written, which the call itself notices.
        FloatingPointError: a loss or gradient that is not finite; the message names the step.
            An existing state is left as it is in all four cases.
    """
    check_args(
        num_steps=num_steps, lr=lr, optimizer=optimizer, weight_decay=weight_decay,
        lr_schedule=lr_schedule, warmup=warmup, ema_decay=ema_decay, minutes=minutes,
        max_grad_norm=max_grad_norm, mixed_precision=mixed_precision, seed=seed,
        save_every=save_every, evaluate=evaluate, eval_every=eval_every,
    )  # fmt: skip
    settings = {
        "num_steps": num_steps, "lr": lr, "optimizer": optimizer, "weight_decay": weight_decay,
        "warmup": warmup, "lr_schedule": lr_schedule, "max_grad_norm": max_grad_norm,
        "ema_decay": ema_decay, "mixed_precision": mixed_precision, "seed": seed,
    }  # fmt: skip
    run = TrainingRun.setup(model, loss_fn, settings)
    get_batch = batch_source(make_batch, run.accelerator, is_resumable=state_path is not None)
    fingerprint = settings | dict(run_fingerprint or {})
    path = None if state_path is None else Path(state_path)
    checkpointer = StateCheckpointer(run, path, save_every, fingerprint)
    try:
        observer = _Observer(run, evaluate, eval_every, num_steps, log_dir)
    except BaseException:
        checkpointer.close()
        raise
    # A generator of its own: the call itself checks its arguments, not the first step
    return _iterate(run, get_batch, checkpointer, observer, num_steps, minutes)


def _iterate(
    run: TrainingRun,
    get_batch: Callable[[int], Any],
    checkpointer: StateCheckpointer,
    observer: "_Observer",
    num_steps: int,
    minutes: float | int | None,
) -> Iterator[TrainStep]:
    """Update, save, yield."""
    start = run.seconds
    try:
        if run.history:
            yield _train_step(len(run.history), run.history, run.model, run.ema)
        while len(run.history) < num_steps:
            is_over = minutes is not None and run.seconds - start >= 60 * minutes
            if _broadcast_stop(is_over, run):
                break
            run.train_step(get_batch)
            if checkpointer.is_due() or len(run.history) == num_steps:
                checkpointer.save()
            yield observer.observe(len(run.history))
    except (KeyboardInterrupt, GeneratorExit):  # GeneratorExit: the caller stops iterating
        checkpointer.save()
        raise
    else:
        checkpointer.save()
        run.accelerator.wait_for_everyone()
    finally:
        observer.close()
        checkpointer.close()


def _broadcast_stop(stop: bool, run: TrainingRun) -> bool:
    """The main process's decision: no process may wait for one that has stopped."""
    if run.accelerator.num_processes == 1:
        return stop
    return bool(broadcast(torch.tensor(float(stop), device=run.accelerator.device)).item())


class _Observer:
    """Evaluates and logs, in the main process."""

    def __init__(
        self,
        run: TrainingRun,
        evaluate: Callable[[TrainStep], Metrics] | None,
        eval_every: int | None,
        num_steps: int,
        log_dir: Path | str | None,
    ):
        self.run = run
        self.evaluate = evaluate
        self.eval_every = eval_every
        self.num_steps = num_steps
        self.writer = None
        if log_dir is not None and run.accelerator.is_main_process:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "log_dir: TensorBoard is missing; install the package tensorboard"
                ) from error
            # removes what a killed run logged after its last save
            self.writer = SummaryWriter(str(log_dir), purge_step=len(run.history) + 1)

    def observe(self, step_number: int) -> TrainStep:
        """The step, with its evaluation if one is due."""
        step = _train_step(step_number, self.run.history, self.run.model, self.run.ema)
        is_due = self.eval_every is not None and (
            step_number % self.eval_every == 0 or step_number == self.num_steps
        )
        if is_due and self.run.accelerator.is_main_process:
            step = replace(step, evaluation=dict(self.evaluate(step)))
        if self.writer is not None:
            names = ("loss", "lr", "examples_per_second")
            scalars = {name: getattr(step, name) for name in names} | (step.evaluation or {})
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step_number)
        return step

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def fit(
    model: nn.Module,
    make_batch: BatchSource,
    loss_fn: LossFn,
    *,
    progress: bool = True,
    **train_kwargs: Any,
) -> list[TrainStep]:
    """Run `train` to its end under a progress bar.

    Args:
        model: see `train`. With `ema_decay` it is left with its EMA weights.
        make_batch: see `train`.
        loss_fn: see `train`.
        progress: whether to show the bar.
        **train_kwargs: all other arguments of `train`.

    Returns:
        Every step, those of earlier runs of the same state included.
    """
    steps: list[TrainStep] = []
    # before PartialState is used: it is made with the first Accelerator's arguments
    run = train(model, make_batch, loss_fn, **train_kwargs)
    # plain tqdm: the notebook widget would leave its state in the saved notebook
    with tqdm(
        total=train_kwargs.get("num_steps"),
        disable=not (progress and PartialState().is_main_process),
        unit="step",
    ) as bar:
        for step in run:
            if not steps and step.step > 1:
                steps = step.previous()
                bar.initial = bar.n = step.step - 1  # the displayed speed is this run's
            steps.append(step)
            speed = f"{step.examples_per_second:.0f} examples/s"
            bar.set_postfix_str(f"loss {step.loss:.4f}, {speed}", refresh=False)
            bar.update()
    if steps and steps[-1].ema is not None:
        steps[-1].ema.copy_to(model.parameters())
    return steps
