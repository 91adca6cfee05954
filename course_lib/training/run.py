"""One run of `train`: model, optimizer, schedule and EMA, and a single update of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from course_lib import runtime
from course_lib.training.checks import OPTIMIZERS
from course_lib.training.sharding import count_rows, shard_batch
from course_lib.validation import check_float, require

LossFn = Callable[[nn.Module, Any, torch.Generator], Float[Tensor, ""]]


class StepRecord(NamedTuple):
    """One update in the history of a run; seconds and examples are totals since its start."""

    loss: float
    lr: float
    seconds: float
    examples: float


@dataclass
class TrainingRun:
    """What one call of `train` works on.

    Attributes:
        accelerator: accelerate's, for placement and reduction.
        model: the caller's model.
        ddp_model: the same in accelerate's wrapper, if there are several processes.
        optimizer: accelerate's wrapper of torch's optimizer.
        lr_scheduler: diffusers' learning-rate schedule; it counts updates.
        ema: moving average of the parameters, or None.
        loss_fn: see `train`.
        forward_context: makes the context of a forward pass.
        max_grad_norm: gradients are clipped to this norm, unless it is None.
        seed: of every random number.
        history: one record per update.
        is_consistent: model, EMA, learning-rate schedule and history all belong to the same step,
            so the state may be saved.
    """

    accelerator: Accelerator
    model: nn.Module
    ddp_model: nn.Module
    optimizer: Any
    lr_scheduler: Any
    ema: EMAModel | None
    loss_fn: LossFn
    forward_context: Callable[[], AbstractContextManager]
    max_grad_norm: float | int | None
    seed: int
    history: list[StepRecord] = field(default_factory=list)
    is_consistent: bool = True

    @classmethod
    def setup(cls, model: nn.Module, loss_fn: LossFn, settings: Mapping[str, Any]) -> "TrainingRun":
        """Seed everything, build optimizer, schedule and EMA, and place them on the device.

        Args:
            model: see `train`.
            loss_fn: see `train`.
            settings: arguments of `train` by name.

        Raises:
            ValueError: no parameter of the model requires a gradient.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("model: expected parameters that require a gradient, got none")
        runtime.seed_everything(settings["seed"])
        runtime.tune_glibc_malloc()
        # Buffers are equal anyway; sending them between two forward passes would spoil the gradient
        ddp_kwargs = DistributedDataParallelKwargs(broadcast_buffers=False)
        accelerator = Accelerator(
            cpu=runtime.device().type == "cpu", mixed_precision="no", kwargs_handlers=[ddp_kwargs]
        )
        # The fused update is wrong where a moment's memory layout differs from its parameter's
        fused = accelerator.device.type != "mps" and all(p.is_contiguous() for p in parameters)
        optimizer = OPTIMIZERS[settings["optimizer"]](
            parameters, lr=settings["lr"], weight_decay=settings["weight_decay"], fused=fused
        )
        optimizer.zero_grad()  # an interrupted run may have left gradients
        lr_scheduler = get_scheduler(
            settings["lr_schedule"],
            optimizer,
            num_warmup_steps=settings["warmup"],
            num_training_steps=settings["num_steps"],
        )
        ddp_model, optimizer = accelerator.prepare(model, optimizer)  # not the schedule
        ema = None
        if settings["ema_decay"] is not None:
            ema = EMAModel(model.parameters(), decay=settings["ema_decay"])
        context = _forward_context(settings["mixed_precision"], accelerator.device)
        return cls(
            accelerator, model, ddp_model, optimizer, lr_scheduler, ema, loss_fn, context,
            settings["max_grad_norm"], settings["seed"],
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Training time since the start of the run."""
        return self.history[-1].seconds if self.history else 0.0

    def train_step(self, get_batch: Callable[[int], Any]) -> None:
        """Get a batch, update the weights, append to the history.

        Args:
            get_batch: batch index → global batch.
        """
        start = time.perf_counter()
        index = len(self.history)
        device = self.accelerator.device
        batch = get_batch(index)
        examples = float(count_rows(batch)) + (self.history[-1].examples if index else 0)
        batch = send_to_device(shard_batch(batch, self.accelerator), device)
        loss_seed, dropout_seed = self._seeds(index)
        # dropout uses the global generator; the caller's random numbers are left as they are
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(dropout_seed)
            loss, lr = self._update(batch, torch.Generator().manual_seed(loss_seed))
        seconds = self.seconds + time.perf_counter() - start
        self.history.append(StepRecord(loss, lr, seconds, examples))
        self.is_consistent = True

    def _seeds(self, index: int) -> list[int]:
        """Two seeds for a step, or dropout would repeat the random numbers of the loss."""
        entropy = [self.seed, index]
        if self.accelerator.num_processes > 1:
            entropy.append(self.accelerator.process_index)
        words = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
        return [int(word >> 1) for word in words]  # torch's seeds are signed

    def _update(self, batch: Any, generator: torch.Generator) -> tuple[float, float]:
        """Loss and learning rate of one update; a non-finite number never reaches the weights."""
        step = len(self.history) + 1
        lr = self.optimizer.param_groups[0]["lr"]
        self.ddp_model.train()  # the caller may have switched to eval()
        has_buffers = any(True for _ in self.model.buffers())
        self.is_consistent = not has_buffers  # a forward pass may change a buffer
        with self.forward_context():
            loss = self.loss_fn(self.ddp_model, batch, generator)
        check_float("loss_fn", loss)
        require(loss.numel() == 1, "loss_fn", "a scalar", f"shape {tuple(loss.shape)}")
        require(loss.requires_grad, "loss_fn", "a loss with a gradient", "one without")
        # over all processes, so that they stop together
        mean_loss = self.accelerator.reduce(loss.detach().float(), "mean").item()
        _check_finite(step, "loss", mean_loss)
        self.accelerator.backward(loss)
        max_norm = math.inf if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = self.accelerator.clip_grad_norm_(self.ddp_model.parameters(), max_norm)
        _check_finite(step, "gradient norm", grad_norm)
        self.is_consistent = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.model.parameters())
        return mean_loss, lr


def _check_finite(step: int, name: str, value: float | Tensor) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"step {step}: the {name} is {value}; lower lr, or look at this batch"
        )


def _forward_context(
    mixed_precision: str, device: torch.device
) -> Callable[[], AbstractContextManager]:
    """Makes the context of a forward pass: its precision, and the attention kernel on a CPU.

    The precision is not accelerate's, which is fixed for a process at its first use. The backward
    pass of torch's fused attention is slow on CPUs for short sequences (measured:
    docs/decisions.md); a network with long ones should choose its kernel itself.
    """
    is_bf16 = mixed_precision == "bf16" or (
        mixed_precision == "auto" and runtime.dtype(device) == torch.bfloat16
    )

    @contextmanager
    def context() -> Iterator[None]:
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16), attention:
            yield

    return context
