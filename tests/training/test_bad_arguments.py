"""Arguments, batches and losses that `train` cannot use are refused by name."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.training import train
from course_lib.training.checks import check_args

OPTIONS = {"num_steps": 60, "lr": 0.1, "mixed_precision": "no", "seed": 3}


def batch(index):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(index))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def squared(model, batch, generator):
    return (model(batch["x"]) - batch["y"]).square().mean()


def line():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_steps": 0}, "num_steps: expected an integer of at least 1, got 0"),
        ({"lr": -1.0}, "lr: expected a finite number above 0, got -1.0"),
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, adam, sgd, got 'lion'"),
        ({"lr_schedule": "sine"}, "lr_schedule: expected one of .*cosine.*, got 'sine'"),
        ({"warmup": 60}, "warmup: expected an integer from 0 to 59, got 60"),
        ({"ema_decay": 1.0}, "ema_decay: expected a finite number above 0 and below 1, got 1.0"),
        ({"minutes": 0}, "minutes: expected a finite number above 0, got 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: expected a finite number above 0, got -1.0"),
        (
            {"lr_schedule": "piecewise_constant"},
            "lr_schedule: expected one of .*cosine.*, got 'piecewise_constant'",
        ),
        ({"save_every": -1}, "save_every: expected a finite number at least 0, got -1"),
        (
            {"eval_every": 0, "evaluate": print},
            "eval_every: expected an integer of at least 1, got 0",
        ),
        ({"eval_every": 5}, "evaluate, eval_every: expected both or neither"),
        ({"evaluate": print}, "evaluate, eval_every: expected both or neither"),
        *[({"lr": bad}, "lr: expected a finite number") for bad in (0, math.nan, math.inf)],
        *[({"weight_decay": bad}, "weight_decay: expected a finite") for bad in (-0.1, math.nan)],
        *[({"ema_decay": bad}, "ema_decay: expected a fin") for bad in (0.0, 1.5, math.nan)],
        *[({"minutes": bad}, "minutes: expected a finite number") for bad in (-1, math.nan)],
        *[({"max_grad_norm": bad}, "max_grad_norm: expected a finite") for bad in (0, math.nan)],
        *[({"save_every": bad}, "save_every: expected a finite") for bad in (-1e-9, math.nan)],
        *[({"seed": bad}, "seed: expected an integer from 0") for bad in (-1, 2**32)],
    ],
)
def test_bad_arguments_are_refused_by_the_call(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(line(), batch, squared, **{**OPTIONS, **wrong})


@pytest.mark.parametrize("name", ["num_steps", "warmup", "seed", "eval_every"])
@pytest.mark.parametrize("bad", [2.5, 2.0, math.nan, math.inf, True, "3", -1])
def test_counts_are_integers(name, bad):
    """Checked without `train`, whose annotations are enforced here, but not for a reader."""
    valid = {
        "num_steps": 5, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0, "lr_schedule": "linear",
        "warmup": 0, "ema_decay": None, "minutes": None, "max_grad_norm": 1, "seed": 0,
        "mixed_precision": "no", "save_every": 1, "evaluate": print, "eval_every": 1,
    }  # fmt: skip
    check_args(**valid)
    with pytest.raises(ValueError, match=f"{name}: expected an integer .*, got {bad!r}"):
        check_args(**valid | {name: bad})


def test_a_model_with_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="model: expected parameters that require a gradient"):
        train(line().requires_grad_(False), batch, squared, **OPTIONS)


def test_a_loss_that_is_not_a_scalar_is_refused():
    with pytest.raises(ValueError, match=r"loss_fn: expected a scalar, got shape \(8, 1\)"):
        next(train(line(), batch, lambda m, b, g: m(b["x"]), **OPTIONS))


@pytest.mark.parametrize(
    ("bad_loss", "message"),
    [
        (lambda m, b, g: m(b["x"]).mean().int(), "loss_fn: expected floating point, got torch.int"),
        (lambda m, b, g: m(b["x"]).mean().item(), "Tensor"),  # the type checker's message here
        (lambda m, b, g: None, "Tensor"),
        (lambda m, b, g: torch.ones(()), "loss_fn: expected a loss with a gradient, got one witho"),
    ],
)
def test_a_loss_without_a_gradient_is_refused(bad_loss, message):
    with pytest.raises((ValueError, TypeError), match=message):
        next(train(line(), batch, bad_loss, **OPTIONS))


@pytest.mark.parametrize("nothing", [None, {}, [], 3, "text", ["a", "b"], torch.tensor(1.0)])
def test_a_batch_without_rows_is_refused(nothing):
    with pytest.raises(ValueError, match="make_batch: expected a tensor with rows, or a coll"):
        next(train(line(), lambda index: nothing, squared, **OPTIONS))


def test_numpy_numbers_and_saving_only_at_the_end_are_accepted(tmp_path):
    options = {"num_steps": 3, "lr": np.float64(0.1), "mixed_precision": "no"}
    options |= {"save_every": math.inf, "run_fingerprint": {"a": np.float32(0.5), "n": np.int8(3)}}
    for _ in range(2):  # the second call resumes
        last = list(train(line(), batch, squared, state_path=tmp_path / "state", **options))[-1]
        assert last.step == 3
