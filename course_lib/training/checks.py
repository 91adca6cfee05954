"""Checks of the arguments of `train`, so that a bad one is refused before anything is built."""

import math
from typing import Any

import torch
from diffusers.optimization import SchedulerType

from course_lib.validation import check_choice, check_int, check_number

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
PRECISIONS = ("auto", "no", "bf16")
# piecewise_constant needs rules of its own, which `train` does not pass on
LR_SCHEDULES = [s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT]


def check_args(
    *,
    num_steps: Any,
    lr: Any,
    optimizer: Any,
    weight_decay: Any,
    lr_schedule: Any,
    warmup: Any,
    ema_decay: Any,
    minutes: Any,
    max_grad_norm: Any,
    mixed_precision: Any,
    seed: Any,
    save_every: Any,
    evaluate: Any,
    eval_every: Any,
) -> None:
    """Raise ValueError for the first argument of `train` that is out of range; see there."""
    check_int("num_steps", num_steps, 1)
    check_number("lr", lr, above=0.0)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_number("weight_decay", weight_decay, at_least=0.0)
    check_choice("lr_schedule", lr_schedule, LR_SCHEDULES)
    check_int("warmup", warmup, 0, num_steps - 1)
    if ema_decay is not None:
        check_number("ema_decay", ema_decay, above=0.0, below=1.0)
    if minutes is not None:
        check_number("minutes", minutes, above=0.0)
    if max_grad_norm is not None:
        check_number("max_grad_norm", max_grad_norm, above=0.0)
    check_choice("mixed_precision", mixed_precision, PRECISIONS)
    check_int("seed", seed, 0, 2**32 - 1)
    if save_every != math.inf:  # only at the end
        check_number("save_every", save_every, at_least=0.0)
    if (evaluate is None) != (eval_every is None):
        raise ValueError("evaluate, eval_every: expected both or neither, got one")
    if eval_every is not None:
        check_int("eval_every", eval_every, 1)
