"""The one training loop: a generator that yields after every step, so that a notebook can draw meanwhile.

    for step in train(model, batches, loss_fn, steps=300, lr=1e-3, seed=0):
        if step.step % 50 == 0:
            show(step.model, step.loss)

It knows no architecture and no data: `batches` says what comes in, `loss_fn` what is wanted. accelerate
places model and batch and makes the same loop run on many devices; diffusers supplies schedules and the
moving average. The loss function takes (model, batch, generator): whatever it draws comes from the generator.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, send_to_device
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from course_lib import runtime

Batches = Iterable[Any] | Callable[[int], Any]
LossFunction = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, ""]]

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Step:
    """What `train` yields after each update.

    step: updates done, from 1. loss: of this step's batch, before the update. lr: used in this update.
    seconds: spent training since the start; what the reader of the generator does meanwhile is not counted.
    examples_per_second: mean since the start, all processes together. model: being trained, not a copy.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    examples_per_second: float
    model: nn.Module
    ema: EMAModel | None = None

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
) -> Iterator[Step]:
    """Train `model` in place, one `Step` at a time, for `steps` updates or `minutes`, whichever ends first.

    batches: from the number of the batch (0, 1, …) to a batch, or an iterable, begun again when it ends.
    loss_fn: (model, batch, generator) to a scalar. The generator is on the CPU and seeded anew from (seed,
    number of the batch), so that a step draws the same however it was reached.
    lr: peak; `warmup` steps rise to it, then `schedule` (a name diffusers' get_scheduler knows) leads down
    until the last of `steps`. optimizer: adamw, adam or sgd. clip: largest gradient norm. ema: decay of a
    moving average of the weights (see `Step.averaged`). minutes: of training, without what the reader does
    meanwhile. mixed_precision: "auto" is bf16 where that is fast. seed: also seeds dropout.
    Raises ValueError for a bad argument or batches that run out, FloatingPointError, naming the step, for a
    loss or gradient that is not finite.
    """
    _refuse(steps, lr, optimizer, schedule, warmup, ema, minutes, clip)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learned:
        raise ValueError("model: expected parameters that require a gradient, found none")
    runtime.seed_everything(seed)
    accelerator = Accelerator(cpu=runtime.device().type == "cpu", mixed_precision="no")
    autocast = _autocast(mixed_precision, accelerator.device)
    updater = OPTIMIZERS[optimizer](learned, lr=lr, weight_decay=weight_decay)
    scheduler = get_scheduler(schedule, updater, num_warmup_steps=warmup, num_training_steps=steps)
    wrapped, updater = accelerator.prepare(model, updater)  # the scheduler stays ours: it counts updates
    average = None if ema is None else EMAModel(model.parameters(), decay=ema)

    def update(number: int, batch: Any, generator: torch.Generator) -> tuple[float, float]:
        rate = updater.param_groups[0]["lr"]
        wrapped.train()  # the reader may have switched to eval() to draw something
        with autocast():
            loss = loss_fn(wrapped, batch, generator)
        _descend(accelerator, wrapped, updater, loss, clip, number)
        scheduler.step()
        if average is not None:
            average.step(model.parameters())
        return loss.item(), rate

    if accelerator.num_processes > 1 and not callable(batches):
        raise ValueError("batches: with several processes, pass a callable from the batch's number to the batch")
    # A generator of its own, so that a bad argument is refused by the call and not by the first step
    return _steps(accelerator, update, _drawer(batches), model, average, steps, minutes, seed)


def _steps(accelerator, update, draw, model, average, steps, minutes, seed) -> Iterator[Step]:
    """Draw, update, count, yield."""
    done, examples, seconds = 0, 0, 0.0
    while done < steps and (minutes is None or seconds < 60 * minutes):
        start = time.perf_counter()
        # Each process takes every num_processes-th batch, so that no two see the same (`batches` must be callable)
        index = done * accelerator.num_processes + accelerator.process_index
        batch = send_to_device(draw(index), accelerator.device)
        mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
        drawn = int(mixed >> 1)  # torch's seed is signed
        done += 1
        # dropout draws from the global generator; the reader's numbers stay as they are
        with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
            torch.manual_seed(drawn)
            loss, lr = update(done, batch, torch.Generator().manual_seed(drawn))
        examples += find_batch_size(batch) * accelerator.num_processes
        seconds += time.perf_counter() - start
        yield Step(done, loss, lr, seconds, examples / seconds, model, average)


def fit(
    model: nn.Module, batches: Batches, loss_fn: LossFunction, *, progress: bool = True, **options: Any
) -> list[Step]:
    """Run `train` to its end under a progress bar and return every step; the last one is `[-1]`.

    options: as for `train`. With `ema`, the model is left with its moving-average weights.
    """
    history = []
    # plain tqdm: the notebook widget would leave its state in the saved notebook
    with tqdm(total=options.get("steps"), disable=not progress, unit="step") as bar:
        for step in train(model, batches, loss_fn, **options):
            history.append(step)
            bar.update()
            bar.set_postfix_str(f"loss {step.loss:.4f}, {step.examples_per_second:.0f} examples/s")
    if history and history[-1].ema is not None:
        history[-1].ema.copy_to(model.parameters())
    return history


def _refuse(steps, lr, optimizer, schedule, warmup, ema, minutes, clip) -> None:
    """Raise ValueError for an argument that could not train anything."""
    # piecewise_constant needs rules of its own, which nothing here passes on
    names = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]
    expectations = [
        (steps >= 1, f"steps: expected at least 1, got {steps}"),
        (lr > 0, f"lr: expected a positive number, got {lr}"),
        (optimizer in OPTIMIZERS, f"optimizer: expected one of {', '.join(OPTIMIZERS)}; got {optimizer!r}"),
        (schedule in names, f"schedule: expected one of {', '.join(names)}; got {schedule!r}"),
        (0 <= warmup < steps, f"warmup: expected from 0 to steps - 1 = {steps - 1}, got {warmup}"),
        (ema is None or 0 < ema < 1, f"ema: expected a decay between 0 and 1, got {ema}"),
        (minutes is None or minutes > 0, f"minutes: expected a positive number, got {minutes}"),
        (clip is None or clip > 0, f"clip: expected a positive gradient norm or None, got {clip}"),
    ]
    for met, message in expectations:
        if not met:
            raise ValueError(message)


def _autocast(mixed_precision: str, device: torch.device) -> Callable[[], Any]:
    """Makes the context of a forward pass. Not accelerate's, which is fixed for a process at first use."""
    if mixed_precision not in ("auto", "no", "bf16"):
        raise ValueError(f"mixed_precision: expected 'auto', 'no' or 'bf16', got {mixed_precision!r}")
    wanted = mixed_precision == "bf16" or (mixed_precision == "auto" and runtime.dtype(device) == torch.bfloat16)
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if wanted else nullcontext


def _drawer(batches: Batches) -> Callable[[int], Any]:
    """`batches` as a function of the batch's number."""
    if callable(batches):
        return batches
    iterator = iter(batches)

    def draw(index: int) -> Any:
        nonlocal iterator
        for _ in range(2):
            for batch in iterator:
                return batch
            iterator = iter(batches)  # the end of an epoch
        raise ValueError(f"batches: ran out at batch {index} and cannot begin again; pass a list or a callable")

    return draw


def _descend(accelerator, model, optimizer, loss, clip, step) -> None:
    """Backward, clip, step; stops before a number that is not finite reaches the weights."""
    if loss.numel() != 1:
        raise ValueError(f"loss_fn: expected a scalar, got shape {tuple(loss.shape)}")
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"step {step}: the loss is {loss.item()}; lower lr, or look at this batch")
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
    if not math.isfinite(norm):
        raise FloatingPointError(f"step {step}: the gradient norm is {norm}; lower lr, or look at this batch")
    optimizer.step()
    optimizer.zero_grad()
