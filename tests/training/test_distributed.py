"""Two processes (gloo) train as one does, with the same weights, and stop together."""

import importlib
import json
import math
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from course_lib import zoo
from course_lib.recipes import run_recipe
from course_lib.training import fit, train
from course_lib.training.state import read_state

TESTS = Path(__file__).resolve().parents[1]
OPTIONS = {
    "num_steps": 12,
    "lr": 0.05,
    "ema_decay": 0.9,
    "warmup": 2,
    "mixed_precision": "no",
    "seed": 3,
}
Pair = namedtuple("Pair", "y noise")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no forkserver, no gloo over torchrun")


class Tempered(nn.Sequential):
    """Divides by a buffer, as a calibrated classifier does."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x):
        return super().forward(x) / self.temperature


def net():
    torch.manual_seed(0)
    return Tempered(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.Linear(8, 1))


def batch(number):
    """Every kind of container; the noise is drawn here, once for all processes."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 3, generator=generator)
    y = Pair(x.sum(1, keepdim=True), 0.1 * torch.randn(8, 1, generator=generator))
    return {"x": x, "rest": [y, ["row"] * 8]}


def loss(model, batch, generator):
    target, words = batch["rest"]
    assert type(target) is Pair and len(words) == len(batch["x"])
    odd = model(batch["x"]) - model(-batch["x"])  # two calls before one backward pass
    return (odd / 2 - target.y - target.noise).square().mean()


# What the processes do: (rank, folder) to something JSON can say


def full_run(rank, folder):
    model = net()
    history = fit(model, batch, loss, progress=rank == 0, state_path=folder / "state", **OPTIONS)
    return (
        [step.loss for step in history],
        model[0].weight.tolist(),
        round(history[-1].examples_per_second),
    )


def stop_by_the_main_process(rank, folder):
    def slow(model, batch, generator):
        time.sleep(0.01 if rank == 0 else 0.0)
        return loss(model, batch, generator)

    steps = list(
        train(net(), batch, slow, minutes=0.04 / 60, state_path=folder / "state", **OPTIONS)
    )
    return steps[-1].step


def not_finite_on_one(rank, folder):
    def breaks(model, batch, generator):
        return loss(model, batch, generator) * (math.nan if rank == 1 else 1)

    try:
        list(train(net(), batch, breaks, **OPTIONS))
    except FloatingPointError as error:
        return str(error)


def refused(rank, folder):
    messages = []
    for batches in (
        lambda number: batch(number)["x"][:7],
        lambda number: (batch(number)["x"], 3),
        [batch(0)],
    ):
        try:
            next(train(net(), batches, loss, **OPTIONS))
        except ValueError as error:
            messages.append(str(error))
    return messages


def own_numbers(rank, folder):
    numbers = []

    def spy(model, batch, generator):
        numbers.append([torch.rand(1).item(), torch.rand(1, generator=generator).item()])
        return loss(model, batch, generator)

    list(train(net(), batch, spy, **{**OPTIONS, "num_steps": 3}))
    return numbers


def evaluated_where(rank, folder):
    options = {
        **OPTIONS,
        "evaluate": lambda step: {"step": step.step},
        "eval_every": 6,
        "log_dir": folder / "log",
    }
    return [step.evaluation for step in train(net(), batch, loss, **options) if step.evaluation]


def unshared_state(rank, folder):
    (folder / str(rank)).mkdir()
    if rank == 0:
        (folder / "state").rename(folder / "0" / "state")
    try:
        train(net(), batch, loss, state_path=folder / str(rank) / "state", **OPTIONS)
    except ValueError as error:
        return str(error).split(" in ")[0]


def _process(rank, port, job, folder):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), COURSE_DEVICE="cpu", OMP_NUM_THREADS="1"
    )
    torch.set_num_threads(1)
    result = job(rank, folder)
    (folder / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def on_two(job, folder):
    """The result of each of two processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["course_lib.recipes"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_process, args=(rank, port, job, folder)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()  # one that waits for the other for ever
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


@pytest.fixture(scope="module")
def one_process():
    model = net()
    history = fit(model, batch, loss, progress=False, **OPTIONS)
    return [step.loss for step in history], model[0].weight.tolist()


def test_two_processes_train_as_one_does(tmp_path, one_process):
    (losses, weights, speed), other = on_two(full_run, tmp_path)
    assert losses == pytest.approx(one_process[0], rel=1e-4)
    torch.testing.assert_close(
        torch.tensor(weights), torch.tensor(one_process[1]), atol=1e-6, rtol=1e-4
    )
    assert other[:2] == [losses, weights]
    history = read_state(tmp_path / "state")[0]["history"]
    assert history[-1, 3] == 8 * 12  # rows of the global batches, not of a slice
    assert speed == round(96 / history[-1, 2].item())


def test_they_stop_by_one_clock_and_one_process_can_go_on(tmp_path, one_process):
    first, second = on_two(stop_by_the_main_process, tmp_path)
    assert 1 <= first == second < 12
    history = fit(net(), batch, loss, progress=False, state_path=tmp_path / "state", **OPTIONS)
    assert [step.loss for step in history] == pytest.approx(one_process[0], rel=1e-4)


def test_a_loss_that_is_not_finite_on_one_stops_both(tmp_path):
    assert (
        on_two(not_finite_on_one, tmp_path)
        == ["step 1: the loss is nan; lower lr, or look at this batch"] * 2
    )


def test_batches_that_cannot_be_shared_are_refused(tmp_path):
    assert on_two(refused, tmp_path) == 2 * [
        [
            "make_batch: expected a number of rows divisible by 2 processes, got 7",
            "make_batch: expected tensors and lists of strings with 8 rows each, got int",
            "make_batch: with several processes expected a callable from the batch's index to "
            "the batch, got list",
        ]
    ]


def test_each_draws_its_own_numbers(tmp_path):
    first, second = on_two(own_numbers, tmp_path)
    assert len({number for row in first + second for number in row}) == 12


def test_only_the_main_process_evaluates_and_logs(tmp_path):
    assert on_two(evaluated_where, tmp_path) == [[{"step": 6}, {"step": 12}], []]
    assert len(list((tmp_path / "log").iterdir())) == 1


def test_a_state_that_only_one_can_see_is_refused(tmp_path, one_process):
    next(train(net(), batch, loss, state_path=tmp_path / "state", **OPTIONS)).model.eval()
    assert on_two(unshared_state, tmp_path) == ["state: the processes found steps [1, 0]"] * 2


def test_a_recipe_under_torchrun_stores_what_one_process_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "recipes"))
    run_recipe(
        importlib.import_module("tiny").RECIPE, "ci", state_dir=tmp_path / "one", progress=False
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    command += [
        "-m",
        "course_lib.recipes",
        "tiny:RECIPE",
        "--profile",
        "ci",
        "--state-dir",
        str(tmp_path / "two"),
    ]
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join([str(TESTS.parent), str(TESTS / "recipes")]),
    )
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("stored in") == 1 and process.stderr.count("40/40") >= 1
    roots = [tmp_path / count / "checkpoints" for count in ("one", "two")]
    weights = [
        load_file(zoo.path("tests/tiny", root) / "diffusion_pytorch_model.safetensors")
        for root in roots
    ]
    torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-3)  # half precision
    cards = [zoo.card("tests/tiny", root) for root in roots]
    assert [card.metadata["processes"] for card in cards] == [1, 2]
    assert cards[1].evaluation["error"] == pytest.approx(cards[0].evaluation["error"], rel=1e-2)
