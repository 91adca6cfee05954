"""What a state of a run contains, and which states are refused."""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from course_lib.training import train
from course_lib.training.state import StateError, read_state
from tests.training.resumable import (
    OPTIONS,
    batch,
    loss,
    net,
    run,
    same,
)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


# Damage, and states of other runs


def refused(path, message, model=None, make_batch=batch, **changes):
    before = path.read_bytes()
    with pytest.raises(StateError, match=message) as caught:
        train(model or net(), make_batch, loss, state_path=path, **{**OPTIONS, **changes})
    assert path.read_bytes() == before
    assert str(path) in str(caught.value)


def test_another_model_is_refused_and_named(tmp_path):
    path = tmp_path / "state"
    run(path, 3)
    refused(
        path,
        r"of another model: layers.0.weight is \(8, 3\) in the state and \(5, 3\) in the model",
        net(5),
    )
    more = net()
    more.extra = nn.Linear(2, 2)
    refused(
        path,
        r"of another model: extra.weight is missing in the state and \(2, 2\) in the model",
        more,
    )
    refused(path, r"of another model: weight is missing in the state", nn.Linear(3, 1))
    thawed = net()
    thawed.layers[0].bias.requires_grad_(True)
    refused(
        path,
        "of another run: trainable was '3 of 4 parameters .* and is now '4 of 4 parameters",
        thawed,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_steps": 31},
            "of another run: num_steps was 30 and is now 31. Use another path, or delete it to",
        ),
        ({"lr": 0.1, "seed": 4}, "lr was 0.05 and is now 0.1; seed was 3 and is now 4"),
        ({"ema_decay": None}, "ema_decay was 0.9 and is now None"),
        ({"optimizer": "sgd"}, "optimizer was 'adamw' and is now 'sgd'"),
        ({"run_fingerprint": {"data": "film"}}, "data was None and is now 'film'"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, changes, message):
    run(tmp_path / "state", 3)
    refused(tmp_path / "state", message, **changes)


def test_what_does_not_change_the_result_may_change(tmp_path):
    run(tmp_path / "state", 3)
    options = {
        "minutes": 5,
        "save_every": 1,
        "eval_every": 30,
        "evaluate": lambda step: {},
        "run_fingerprint": {},
    }
    assert run(tmp_path / "state", 5, **options)[1].step == 5


def test_the_model_is_untouched_when_a_state_is_refused(tmp_path):
    run(tmp_path / "state", 3)
    model = net()
    refused(tmp_path / "state", "seed", model, seed=4)
    assert same(model.state_dict(), net().state_dict())


def test_it_is_a_plain_safetensors_file(tmp_path):
    run(tmp_path / "state", 3)
    with safe_open(tmp_path / "state", "pt") as file:
        names, header = set(file.keys()), file.metadata()
    assert json.loads(header["metadata"])["step"] == 3
    assert {
        "model.count",
        "model.layers.0.weight",
        "optimizer.layers.0.weight.exp_avg",
        "ema.0",
        "history",
    } <= names
    assert not any(name.startswith("optimizer.layers.0.bias") for name in names)  # frozen


def test_tied_and_strided_weights_are_kept(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.one.weight = nn.Parameter(torch.randn(3, 3).T)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x)).sum(1, keepdim=True)

    def trained(path, stop=None):
        torch.manual_seed(0)
        model = Tied()
        for step in train(model, batch, loss, state_path=path, **{**OPTIONS, "num_steps": 8}):
            if step.step == stop:
                break
        return model

    uninterrupted = trained(None)
    trained(tmp_path / "state", 4)
    assert torch.equal(trained(tmp_path / "state").two.weight, uninterrupted.one.weight)


def test_the_folder_is_made(tmp_path):
    run(tmp_path / "one" / "two" / "state", 2)
    assert read_state(tmp_path / "one" / "two" / "state")[1]["step"] == 2


# A loss that is not finite


def test_a_loss_that_is_not_finite_leaves_the_state_of_before(tmp_path):
    def breaks(model, batch, generator):
        return loss(model, batch, generator) * (math.nan if model.count >= 8 * 10 else 1)

    run(tmp_path / "state", 5)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(FloatingPointError, match="step 10: the loss is nan"):
        list(train(net(), batch, breaks, state_path=tmp_path / "state", **OPTIONS))
    assert (tmp_path / "state").read_bytes() == before


# Log


def test_the_log_goes_on_where_the_state_does(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {
        "log_dir": tmp_path / "log",
        "evaluate": lambda step: {"square": step.step**2},
        "eval_every": 4,
        "num_steps": 12,
    }
    run(tmp_path / "state", 5, **options)
    shutil.copy(tmp_path / "state", tmp_path / "kept")
    run(tmp_path / "state", 9, **options)
    shutil.copy(
        tmp_path / "kept", tmp_path / "state"
    )  # as if it had been killed: steps 6 to 9 come again
    time.sleep(1)  # log files are named by the second
    _, last = run(tmp_path / "state", **options)
    events = accumulator.EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(last.losses, rel=1e-6)
    assert [(event.step, event.value) for event in events.Scalars("square")] == [
        (4, 16),
        (8, 64),
        (12, 144),
    ]


def test_an_iterable_cannot_be_entered_in_the_middle():
    with pytest.raises(
        ValueError, match="make_batch: with a state_path expected a callable .*, got list"
    ):
        train(net(), [batch(0)], loss, state_path=Path("anywhere"), **OPTIONS)
