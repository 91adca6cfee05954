"""The one training loop: a generator that yields after every step, so that a notebook can draw meanwhile.

    for step in train(model, batches, loss_fn, steps=300, lr=1e-3, seed=0):
        if step.step % 50 == 0:
            show(step.model, step.loss)

It knows no architecture and no data: `batches` says what comes in, `loss_fn` what is wanted. accelerate
places model and batch and makes the same loop run on many devices; diffusers supplies schedules and the
moving average. The loss function takes (model, batch, generator): whatever it draws comes from the generator.

With `state`, the run is kept in a file (see `training_state`): the same call goes on where an earlier one stopped,
whether it ended by `minutes`, an interrupt or a kill, and draws the same curve as a run that was never stopped.

On several processes (`torchrun`, `accelerate launch`) all ask `batches` for the same global batch and each takes its
slice of the rows, so that a loss that is a mean over rows gives the same weights as one process does. What the loss
itself draws or compares between rows is then a slice's own: make noise in `batches` if runs are to be equal. The
model that `loss_fn` gets is then wrapped: call it, `model(…)`, and nothing else of it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast,
    find_batch_size,
    send_to_device,
)
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from course_lib import runtime
from course_lib.training.state import Keeper

Batches = Iterable[Any] | Callable[[int], Any]
LossFunction = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, ""]]
Evaluate = Callable[[Any], Mapping[str, float | int]]  # from a Step
Row = tuple[
    float, float, float, float
]  # of one step: loss, lr, seconds and examples since the start

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Step:
    """What `train` yields after each update.

    step: updates done, from 1. loss: of this step's batch, before the update. lr: used in this update.
    seconds: spent training since the start, earlier runs of the same state included; what the reader of the
    generator does meanwhile is not counted. examples_per_second: mean since the start, all processes together.
    model: being trained, not a copy. evaluation: what `evaluate` returned after this step, if it was asked.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    examples_per_second: float
    model: nn.Module
    ema: EMAModel | None = None
    evaluation: Mapping[str, float | int] | None = None
    rows: list[Row] = field(default_factory=list, repr=False)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model, with its moving-average weights (if there is an average) while the block lasts."""
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
        """The loss of every step up to this one, those before a resumption too."""
        return [row[0] for row in self.rows[: self.step]]

    def earlier(self) -> "list[Step]":
        """The steps before this one, those before a resumption too (their evaluations are not kept)."""
        return [_step(number, self.rows, self.model, self.ema) for number in range(1, self.step)]


def _step(number: int, rows: list[Row], model: nn.Module, average: EMAModel | None) -> Step:
    """What is to be said of a step done, from 1."""
    loss, lr, seconds, examples = rows[number - 1]
    return Step(number, loss, lr, seconds, examples / seconds, model, average, rows=rows)


def train(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    *,
    steps: int,
    lr: float | int,
    optimizer: str = "adamw",
    weight_decay: float | int = 0.01,
    warmup: int = 0,
    schedule: str = "cosine",
    clip: float | int | None = 1.0,
    ema: float | None = None,
    minutes: float | int | None = None,
    mixed_precision: Literal["auto", "no", "bf16"] = "auto",
    seed: int = 0,
    state: Path | None = None,
    save_every: float | int = 60,
    identity: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    every: int | None = None,
    log: Path | None = None,
) -> Iterator[Step]:
    """Train `model` in place, one `Step` at a time, for `steps` updates or `minutes`, whichever ends first.

    batches: from the number of the batch (0, 1, …) to a batch, or an iterable, begun again when it ends.
    loss_fn: (model, batch, generator) to a scalar. The generator is on the CPU and seeded anew from (seed,
    number of the batch), so that a step draws the same however it was reached.
    lr: peak; `warmup` steps rise to it, then `schedule` (a name diffusers' get_scheduler knows) leads down
    until the last of `steps`. optimizer: adamw, adam or sgd. clip: largest gradient norm. ema: decay of a
    moving average of the parameters (see `Step.averaged`). minutes: of training in this call, without what the
    reader does. mixed_precision: "auto" is bf16 where that is fast. seed: also seeds dropout.
    state: file to go on from and to keep the run in, written at the end and every `save_every` seconds; it first
    yields the last step it holds. identity: what else (in JSON) must be equal for a run to go on from a state.
    evaluate: called in the main process after `every` steps, and the last. log: a folder for TensorBoard.
    Raises ValueError for a bad argument or batches that run out, StateError for a state of another run or a
    damaged one, OSError for one that cannot be written, FloatingPointError, naming the step, for a loss or
    gradient that is not finite. None of these changes a state already there.
    """
    _refuse(steps, lr, optimizer, schedule, warmup, ema, minutes, clip, save_every, evaluate, every)
    settings = {
        "steps": steps,
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "warmup": warmup,
    }
    settings |= {
        "schedule": schedule,
        "clip": clip,
        "ema": ema,
        "mixed_precision": mixed_precision,
        "seed": seed,
    }
    run = _begin(model, loss_fn, settings)
    draw = _drawer(batches, state, run.accelerator)
    keeper = Keeper(run, state, save_every, settings | dict(identity or {}))
    # A generator of its own, so that a bad argument is refused by the call and not by the first step
    return _steps(run, draw, keeper, _Observer(run, evaluate, every, steps, log), steps, minutes)


@dataclass
class _Run:
    """What one call of `train` works on. `whole`: weights, average, schedule and rows tell of the same step."""

    accelerator: Accelerator
    model: nn.Module
    wrapped: nn.Module
    optimizer: Any
    scheduler: Any
    average: EMAModel | None
    loss_fn: LossFunction
    context: Callable[[], Any]
    clip: float | int | None
    seed: int
    rows: list[Row] = field(default_factory=list)
    whole: bool = True

    @property
    def seconds(self) -> float:
        return self.rows[-1][2] if self.rows else 0.0

    def advance(self, draw: Callable[[int], Any]) -> None:
        """Draw, update, count."""
        start, done, device = time.perf_counter(), len(self.rows), self.accelerator.device
        batch = draw(done)
        examples = float(find_batch_size(batch)) + (self.rows[-1][3] if self.rows else 0)
        batch = send_to_device(_own_rows(batch, self.accelerator), device)
        entropy = [self.seed, done] + (
            [self.accelerator.process_index] if self.accelerator.num_processes > 1 else []
        )
        # two seeds, or dropout would draw the loss's own numbers again; torch's are signed
        drawn, dropped = (
            int(word >> 1) for word in np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        )
        # dropout draws from the global generator; the reader's numbers stay as they are
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(dropped)
            loss, lr = self._update(batch, torch.Generator().manual_seed(drawn))
        self.rows.append((loss, lr, self.seconds + time.perf_counter() - start, examples))
        self.whole = True

    def _update(self, batch: Any, generator: torch.Generator) -> tuple[float, float]:
        """Loss and learning rate of one update; stops before a number that is not finite reaches the weights."""
        number, rate = len(self.rows) + 1, self.optimizer.param_groups[0]["lr"]
        self.wrapped.train()  # the reader may have switched to eval() to draw something
        self.whole = not any(
            True for _ in self.model.buffers()
        )  # a forward pass may change a buffer
        with self.context():
            loss = self.loss_fn(self.wrapped, batch, generator)
        if loss.numel() != 1:
            raise ValueError(f"loss_fn: expected a scalar, got shape {tuple(loss.shape)}")
        shown = self.accelerator.reduce(
            loss.detach().float(), "mean"
        ).item()  # of all processes: they stop together
        if not math.isfinite(shown):
            raise FloatingPointError(
                f"step {number}: the loss is {shown}; lower lr, or look at this batch"
            )
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(
            self.wrapped.parameters(), math.inf if self.clip is None else self.clip
        )
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"step {number}: the gradient norm is {norm}; lower lr, or look at this batch"
            )
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        if self.average is not None:
            self.average.step(self.model.parameters())
        return shown, rate


def _begin(model: nn.Module, loss_fn: LossFunction, settings: Mapping[str, Any]) -> _Run:
    """Seed everything, make optimizer, schedule and average, and place them on the device."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:
        raise ValueError("model: expected parameters that require a gradient, found none")
    runtime.seed_everything(settings["seed"])
    runtime.keep_freed_memory()
    # Buffers are equal anyway, and sending them between two calls of the model in one loss would spoil its gradient
    sharing = DistributedDataParallelKwargs(broadcast_buffers=False)
    on_cpu = runtime.device().type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[sharing])
    context = _context(settings["mixed_precision"], accelerator.device)
    # The fused update runs over memory as it lies: wrong where a moment's layout differs from its strided parameter's
    fused = accelerator.device.type != "mps" and all(
        parameter.is_contiguous() for parameter in learned
    )
    options = {"lr": settings["lr"], "weight_decay": settings["weight_decay"], "fused": fused}
    optimizer = OPTIMIZERS[settings["optimizer"]](learned, **options)
    optimizer.zero_grad()  # an interrupted run may have left gradients behind
    counts = {"num_warmup_steps": settings["warmup"], "num_training_steps": settings["steps"]}
    scheduler = get_scheduler(settings["schedule"], optimizer, **counts)
    wrapped, optimizer = accelerator.prepare(
        model, optimizer
    )  # the scheduler stays ours: it counts updates
    average = (
        None if settings["ema"] is None else EMAModel(model.parameters(), decay=settings["ema"])
    )
    clip, seed = settings["clip"], settings["seed"]
    return _Run(
        accelerator, model, wrapped, optimizer, scheduler, average, loss_fn, context, clip, seed
    )


def _steps(
    run: _Run, draw, keeper: Keeper, observer: "_Observer", steps, minutes
) -> Iterator[Step]:
    """Draw, update, count, keep, yield."""
    began = run.seconds
    try:
        if run.rows:
            yield _step(len(run.rows), run.rows, run.model, run.average)
        while len(run.rows) < steps and not _agreed(
            minutes is not None and run.seconds - began >= 60 * minutes, run
        ):
            run.advance(draw)
            if keeper.due() or len(run.rows) == steps:
                keeper.save()
            yield observer.see(len(run.rows))
    except (KeyboardInterrupt, GeneratorExit):  # GeneratorExit: the reader wants no more
        keeper.save()
        raise
    finally:
        observer.close()
    keeper.save()
    run.accelerator.wait_for_everyone()


def _agreed(stop: bool, run: _Run) -> bool:
    """What the main process says, so that no process waits for one that has stopped."""
    if run.accelerator.num_processes == 1:
        return stop
    return bool(broadcast(torch.tensor(float(stop), device=run.accelerator.device)).item())


class _Observer:
    """Evaluates and logs, in the main process."""

    def __init__(
        self, run: _Run, evaluate: Evaluate | None, every: int | None, steps: int, log: Path | None
    ):
        self.run, self.evaluate, self.every, self.steps, self.board = (
            run,
            evaluate,
            every,
            steps,
            None,
        )
        if log is not None and run.accelerator.is_main_process:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "log: TensorBoard is missing; install the package tensorboard"
                ) from error
            # what a killed run logged after its last save is taken back
            self.board = SummaryWriter(str(log), purge_step=len(run.rows) + 1)

    def see(self, number: int) -> Step:
        """The step, evaluated if it is its turn."""
        step = _step(number, self.run.rows, self.run.model, self.run.average)
        if self.every is not None and self.run.accelerator.is_main_process:
            if number % self.every == 0 or number == self.steps:
                step = replace(step, evaluation=dict(self.evaluate(step)))
        if self.board is not None:
            numbers = {
                "loss": step.loss,
                "lr": step.lr,
                "examples per second": step.examples_per_second,
            }
            for name, value in (numbers | (step.evaluation or {})).items():
                self.board.add_scalar(name, value, number)
        return step

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    *,
    progress: bool = True,
    **options: Any,
) -> list[Step]:
    """Run `train` to its end under a progress bar and return every step; the last one is `[-1]`.

    options: as for `train`. With `ema`, the model is left with its moving-average weights. With `state`, the steps
    of earlier runs are returned too.
    """
    history: list[Step] = []
    run = train(model, batches, loss_fn, **options)
    # plain tqdm: the notebook widget would leave its state in the saved notebook
    with tqdm(
        total=options.get("steps"),
        disable=not (progress and PartialState().is_main_process),
        unit="step",
    ) as bar:
        for step in run:
            if not history and step.step > 1:
                history = step.earlier()
                bar.initial = bar.n = step.step - 1  # the speed is this run's
            history.append(step)
            bar.set_postfix_str(
                f"loss {step.loss:.4f}, {step.examples_per_second:.0f} examples/s", refresh=False
            )
            bar.update()
    if history and history[-1].ema is not None:
        history[-1].ema.copy_to(model.parameters())
    return history


def _refuse(
    steps, lr, optimizer, schedule, warmup, ema, minutes, clip, save_every, evaluate, every
) -> None:
    """Raise ValueError for an argument that could not train anything."""
    # piecewise_constant needs rules of its own, which nothing here passes on
    names = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]
    expectations = [
        (steps >= 1, f"steps: expected at least 1, got {steps}"),
        (lr > 0, f"lr: expected a positive number, got {lr}"),
        (
            optimizer in OPTIMIZERS,
            f"optimizer: expected one of {', '.join(OPTIMIZERS)}; got {optimizer!r}",
        ),
        (schedule in names, f"schedule: expected one of {', '.join(names)}; got {schedule!r}"),
        (0 <= warmup < steps, f"warmup: expected from 0 to steps - 1 = {steps - 1}, got {warmup}"),
        (ema is None or 0 < ema < 1, f"ema: expected a decay between 0 and 1, got {ema}"),
        (minutes is None or minutes > 0, f"minutes: expected a positive number, got {minutes}"),
        (clip is None or clip > 0, f"clip: expected a positive gradient norm or None, got {clip}"),
        (save_every >= 0, f"save_every: expected seconds, 0 or more, got {save_every}"),
        (every is None or every >= 1, f"every: expected 1 step or more, got {every}"),
        ((evaluate is None) == (every is None), "evaluate, every: expected both or neither"),
    ]
    for met, message in expectations:
        if not met:
            raise ValueError(message)


def _context(mixed_precision: str, device: torch.device) -> Callable[[], Any]:
    """Makes the context of a forward pass: its precision (not accelerate's, which is fixed for a process at first use),
    and on a CPU attention by plain products. Backwards, torch's flash attention is slow there for short sequences: ten
    times as slow in bfloat16 at 16 tokens, alike at 256. At 1,024 it is the faster one, twice backwards and three times
    in all: a network with so long sequences had better choose for itself, inside.
    """
    if mixed_precision not in ("auto", "no", "bf16"):
        raise ValueError(
            f"mixed_precision: expected 'auto', 'no' or 'bf16', got {mixed_precision!r}"
        )
    wanted = mixed_precision == "bf16" or (
        mixed_precision == "auto" and runtime.dtype(device) == torch.bfloat16
    )

    @contextmanager
    def context() -> Iterator[None]:
        plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=wanted), plain:
            yield

    return context


def _drawer(batches: Batches, state: Path | None, accelerator: Accelerator) -> Callable[[int], Any]:
    """`batches` as a function of the batch's number."""
    if callable(batches):
        return batches
    if (
        accelerator.num_processes > 1 or state is not None
    ):  # an iterable cannot be entered in the middle
        where = "a state" if state is not None else "several processes"
        raise ValueError(
            f"batches: with {where}, pass a callable from the batch's number to the batch"
        )
    iterator = iter(batches)

    def draw(index: int) -> Any:
        nonlocal iterator
        for _ in range(2):
            for batch in iterator:
                return batch
            iterator = iter(batches)  # the end of an epoch
        raise ValueError(
            f"batches: ran out at batch {index} and cannot begin again; pass a list or a callable"
        )

    return draw


def _own_rows(batch: Any, accelerator: Accelerator) -> Any:
    """This process' slice of a global batch: tensors and lists of text by rows, containers item by item."""
    count, index = accelerator.num_processes, accelerator.process_index
    if count == 1:
        return batch
    total = find_batch_size(batch)
    if total % count:
        raise ValueError(
            f"batches: expected a number of rows that {count} processes can share evenly, got {total}"
        )
    own = slice(index * total // count, (index + 1) * total // count)

    def cut(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: cut(item) for name, item in part.items()}
        if isinstance(part, list | tuple) and not all(isinstance(item, str) for item in part):
            items = [cut(item) for item in part]
            return type(part)(*items) if hasattr(part, "_fields") else type(part)(items)
        if not isinstance(part, list | tuple | torch.Tensor) or len(part) != total:
            raise ValueError(
                f"batches: expected tensors and texts with {total} rows each, found {type(part).__name__}"
            )
        return part[own]

    return cut(batch)
