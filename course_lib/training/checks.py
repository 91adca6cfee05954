"""Checks of the arguments of `train`, so that a bad one is refused before anything is built."""

from collections.abc import Callable

import torch
from diffusers.optimization import SchedulerType

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
PRECISIONS = ("auto", "no", "bf16")
# piecewise_constant needs rules of its own, which `train` does not pass on
LR_SCHEDULES = [s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT]


def check_args(
    *,
    num_steps: int,
    lr: float | int,
    optimizer: str,
    lr_schedule: str,
    warmup: int,
    ema_decay: float | None,
    minutes: float | int | None,
    max_grad_norm: float | int | None,
    mixed_precision: str,
    save_every: float | int,
    evaluate: Callable | None,
    eval_every: int | None,
) -> None:
    """Raise ValueError for the first argument of `train` that is out of range; see there."""
    last = num_steps - 1
    rules = [
        (num_steps >= 1, f"num_steps: expected at least 1, got {num_steps}"),
        (lr > 0, f"lr: expected a positive number, got {lr}"),
        (optimizer in OPTIMIZERS, _one_of("optimizer", OPTIMIZERS, optimizer)),
        (lr_schedule in LR_SCHEDULES, _one_of("lr_schedule", LR_SCHEDULES, lr_schedule)),
        (0 <= warmup <= last, f"warmup: expected 0 to num_steps - 1 = {last}, got {warmup}"),
        (
            ema_decay is None or 0 < ema_decay < 1,
            f"ema_decay: expected a number between 0 and 1 or None, got {ema_decay}",
        ),
        (minutes is None or minutes > 0, f"minutes: expected a positive number, got {minutes}"),
        (
            max_grad_norm is None or max_grad_norm > 0,
            f"max_grad_norm: expected a positive number or None, got {max_grad_norm}",
        ),
        (mixed_precision in PRECISIONS, _one_of("mixed_precision", PRECISIONS, mixed_precision)),
        (save_every >= 0, f"save_every: expected 0 seconds or more, got {save_every}"),
        (
            eval_every is None or eval_every >= 1,
            f"eval_every: expected 1 step or more, got {eval_every}",
        ),
        (
            (evaluate is None) == (eval_every is None),
            "evaluate, eval_every: expected both or neither, got one",
        ),
    ]
    for is_met, message in rules:
        if not is_met:
            raise ValueError(message)


def _one_of(name: str, valid: object, value: str) -> str:
    return f"{name}: expected one of {', '.join(valid)}; got {value!r}"
