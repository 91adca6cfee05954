"""Training that goes on where it stopped: by minutes, interrupts, kills; and not from another run's state."""

import json
import math
import multiprocessing
import os
import pkgutil
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from course_lib import training_state
from course_lib.training import fit, train
from course_lib.training.state import StateError, read_state

OPTIONS = {"steps": 30, "lr": 0.05, "ema": 0.9, "warmup": 3, "mixed_precision": "no", "seed": 3}


class Net(nn.Module):
    """Dropout, a frozen parameter, a buffer that counts: everything that a state could forget."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.layers[0].bias.requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.seen += len(x)
        return self.layers(x)


def net(width=8):
    torch.manual_seed(0)
    return Net(width)


def batch(number):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def loss(model, batch, generator):
    noise = 0.1 * torch.randn(batch["y"].shape, generator=generator)
    return (model(batch["x"]) - batch["y"] - noise).square().mean()


def slow_loss(model, batch, generator):
    time.sleep(0.01)
    return loss(model, batch, generator)


def run(state, until=None, **changes):
    """Train until a step (the last by default), then walk away; returns the model and the last step."""
    model, last = net(), None
    for last in train(model, batch, loss, state=state, **{**OPTIONS, **changes}):
        if last.step == until:
            break
    return model, last


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


@pytest.fixture(scope="module")
def undisturbed():
    model = net()
    history = fit(model, batch, loss, progress=False, **OPTIONS)
    return model.state_dict(), [step.loss for step in history]


# Going on


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize(
    "schedule", ["cosine", "constant", "linear", "cosine_with_restarts", "polynomial"]
)
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, optimizer, schedule):
    changes = {"optimizer": optimizer, "schedule": schedule, "steps": 8}
    whole, last = run(None, **changes)
    run(tmp_path / "state", 4, **changes)
    parts, resumed = run(tmp_path / "state", **changes)
    assert same(parts.state_dict(), whole.state_dict())
    assert resumed.losses == last.losses and resumed.lr == last.lr
    with resumed.averaged() as ours, last.averaged() as theirs:
        assert same(ours.state_dict(), theirs.state_dict())


def test_fit_returns_the_whole_history(tmp_path, undisturbed):
    run(tmp_path / "state", 11)
    model = net()
    history = fit(model, batch, loss, progress=False, state=tmp_path / "state", **OPTIONS)
    assert [step.step for step in history] == list(range(1, 31))
    assert [step.loss for step in history] == undisturbed[1] == history[-1].losses
    assert [step.seconds for step in history] == sorted(step.seconds for step in history)
    assert history[-1].examples_per_second == pytest.approx(240 / history[-1].seconds)
    assert same(model.state_dict(), undisturbed[0])


def test_a_resumed_run_yields_its_last_step_first_and_a_finished_one_only_that(
    tmp_path, undisturbed
):
    run(tmp_path / "state", 5)
    steps = train(net(), batch, loss, state=tmp_path / "state", **OPTIONS)
    assert [next(steps).step, next(steps).step] == [5, 6]
    steps.close()
    run(tmp_path / "state")
    before = (tmp_path / "state").stat().st_mtime_ns
    model = net()
    assert [
        step.step for step in train(model, batch, loss, state=tmp_path / "state", **OPTIONS)
    ] == [30]
    assert [
        step.loss
        for step in fit(model, batch, loss, progress=False, state=tmp_path / "state", **OPTIONS)
    ] == (undisturbed[1])
    assert same(model.state_dict(), undisturbed[0])
    assert (tmp_path / "state").stat().st_mtime_ns == before  # nothing new to write


def test_minutes_count_anew_in_every_run(tmp_path):
    done = []
    for _ in range(3):
        steps = train(
            net(), batch, slow_loss, minutes=0.02 / 60, state=tmp_path / "state", **OPTIONS
        )
        done.append(list(steps)[-1].step)
    assert 0 < done[0] < done[1] < done[2]


def test_it_is_written_as_often_as_told(tmp_path, monkeypatch):
    def saved_at(save_every):
        now, saved, seen = [0.0], [], []
        monkeypatch.setattr(training_state.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(
            training_state, "write_state", lambda path, tensors, facts: saved.append(facts["step"])
        )
        options = {**OPTIONS, "steps": 10, "state": tmp_path / "state", "save_every": save_every}
        for step in train(net(), batch, loss, **options):
            seen.append(step.step)
            now[0] += 1
        return saved

    assert saved_at(0) == list(range(1, 11))
    assert saved_at(4) == [5, 9, 10]
    assert saved_at(60) == [10]


def test_an_interrupt_between_two_steps_keeps_what_was_done(tmp_path, undisturbed):
    steps = train(net(), batch, loss, state=tmp_path / "state", **OPTIONS)
    [next(steps) for _ in range(6)]
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)
    assert read_state(tmp_path / "state")[1]["step"] == 6
    assert same(fitted(tmp_path / "state"), undisturbed[0])


def test_an_interrupt_while_a_batch_is_drawn_keeps_what_was_done(tmp_path):
    def draw(number):
        if number == 6:
            raise KeyboardInterrupt
        return batch(number)

    with pytest.raises(KeyboardInterrupt):
        list(train(net(), draw, loss, state=tmp_path / "state", **OPTIONS))
    assert read_state(tmp_path / "state")[1]["step"] == 6


@pytest.mark.parametrize(
    "place", ["course_lib.training.Accelerator.backward", "course_lib.training.EMAModel.step"]
)
def test_an_interrupt_in_the_middle_of_a_step_keeps_the_state_of_before(
    tmp_path, undisturbed, monkeypatch, place
):
    run(tmp_path / "state", 5)
    owner, method = place.rsplit(".", 1)
    real, calls = getattr(pkgutil.resolve_name(owner), method), []

    def interrupt(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt  # the buffer is a step ahead; in the second case the weights are, too

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(place, interrupt)
        run(tmp_path / "state")
    assert len(calls) == 3
    assert read_state(tmp_path / "state")[1]["step"] == 5
    assert same(fitted(tmp_path / "state"), undisturbed[0])


def test_an_interrupt_between_weights_and_average_is_not_kept_without_buffers_either(
    tmp_path, monkeypatch
):
    steps = train(nn.Linear(3, 1), batch, loss, state=tmp_path / "state", **OPTIONS)
    next(steps), next(steps)  # two steps to keep, if they could be told from the third
    monkeypatch.setattr(
        "course_lib.training.EMAModel.step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert not (tmp_path / "state").exists()


def test_without_buffers_an_interrupt_in_the_forward_pass_keeps_what_was_done(tmp_path):
    def interrupted(model, batch, generator):
        value = loss(model, batch, generator)
        if generator.initial_seed() == seeds[5]:
            raise KeyboardInterrupt
        return value

    seeds = []
    spy = lambda model, batch, generator: (
        seeds.append(generator.initial_seed()) or loss(model, batch, generator)
    )  # noqa: E731
    list(train(nn.Linear(3, 1), batch, spy, **OPTIONS))
    with pytest.raises(KeyboardInterrupt):
        list(train(nn.Linear(3, 1), batch, interrupted, state=tmp_path / "state", **OPTIONS))
    assert read_state(tmp_path / "state")[1]["step"] == 5


def fitted(state):
    model = net()
    fit(model, batch, loss, progress=False, state=state, **OPTIONS)
    return model.state_dict()


def test_gradients_left_by_an_interrupt_do_no_harm(undisturbed):
    model = net()
    loss(model, batch(0), torch.Generator()).backward()
    model.seen.zero_()
    fit(model, batch, loss, progress=False, **OPTIONS)
    assert same(model.state_dict(), undisturbed[0])


# Kills


def work(state):
    """What the killed process does. It saves after every step, so that many a kill meets a writer."""
    os.environ["COURSE_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    model = net()
    fit(model, batch, slow_loss, progress=False, state=state, save_every=0, **OPTIONS)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is not a thing on Windows")
def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(tmp_path, undisturbed):
    context = multiprocessing.get_context(
        "forkserver"
    )  # a process of its own, but torch is imported once
    context.set_forkserver_preload(["course_lib.training"])
    state, moments, reached = tmp_path / "state", random.Random(0), []
    while len(reached) < 6:
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = context.Process(target=work, args=(state,))
        process.start()
        while process.is_alive() and (state.stat().st_mtime_ns if state.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        process.join()
        if process.exitcode == 0:  # on a busy machine it may come to its end before it is killed
            break
        assert process.exitcode == -9
        reached.append(read_state(state)[1]["step"])
    assert reached == sorted(reached) and len(reached) >= 2 and 0 < reached[0] < reached[-1]
    assert same(fitted(state), undisturbed[0])
    _, last = run(state)
    assert last.losses == undisturbed[1]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


# Damage and strangers


def refused(state, words, model=None, batches=batch, **changes):
    before = state.read_bytes()
    with pytest.raises(StateError, match=words) as caught:
        train(model or net(), batches, loss, state=state, **{**OPTIONS, **changes})
    assert state.read_bytes() == before
    assert str(state) in str(caught.value)


def test_another_model_is_refused_and_named(tmp_path):
    state = tmp_path / "state"
    run(state, 3)
    refused(
        state,
        r"of another model: layers.0.weight is \(8, 3\) in the state and \(5, 3\) in the model",
        net(5),
    )
    more = net()
    more.extra = nn.Linear(2, 2)
    refused(
        state,
        r"of another model: extra.weight is missing in the state and \(2, 2\) in the model",
        more,
    )
    refused(state, r"of another model: weight is missing in the state", nn.Linear(3, 1))
    thawed = net()
    thawed.layers[0].bias.requires_grad_(True)
    refused(
        state,
        "of another run: trained was '3 of 4 parameters .* and is now '4 of 4 parameters",
        thawed,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"steps": 31},
            "of another run: steps was 30 and is now 31. Use another path, or delete it to begin anew",
        ),
        ({"lr": 0.1, "seed": 4}, "lr was 0.05 and is now 0.1; seed was 3 and is now 4"),
        ({"ema": None}, "ema was 0.9 and is now None"),
        ({"optimizer": "sgd"}, "optimizer was 'adamw' and is now 'sgd'"),
        ({"identity": {"data": "film"}}, "data was None and is now 'film'"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, changes, words):
    run(tmp_path / "state", 3)
    refused(tmp_path / "state", words, **changes)


def test_what_does_not_change_the_result_may_change(tmp_path):
    run(tmp_path / "state", 3)
    options = {
        "minutes": 5,
        "save_every": 1,
        "every": 30,
        "evaluate": lambda step: {},
        "identity": {},
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
    assert json.loads(header["facts"])["step"] == 3
    assert {
        "model.seen",
        "model.layers.0.weight",
        "optimizer.layers.0.weight.exp_avg",
        "average.0",
        "rows",
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

    def trained(state, stop=None):
        torch.manual_seed(0)
        model = Tied()
        for step in train(model, batch, loss, state=state, **{**OPTIONS, "steps": 8}):
            if step.step == stop:
                break
        return model

    whole = trained(None)
    trained(tmp_path / "state", 4)
    assert torch.equal(trained(tmp_path / "state").two.weight, whole.one.weight)


def test_the_folder_is_made(tmp_path):
    run(tmp_path / "one" / "two" / "state", 2)
    assert read_state(tmp_path / "one" / "two" / "state")[1]["step"] == 2


# A loss that is not finite


def test_a_loss_that_is_not_finite_leaves_the_state_of_before(tmp_path):
    def breaks(model, batch, generator):
        return loss(model, batch, generator) * (math.nan if model.seen >= 8 * 10 else 1)

    run(tmp_path / "state", 5)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(FloatingPointError, match="step 10: the loss is nan"):
        list(train(net(), batch, breaks, state=tmp_path / "state", **OPTIONS))
    assert (tmp_path / "state").read_bytes() == before


# Log


def test_the_log_goes_on_where_the_state_does(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = {
        "log": tmp_path / "log",
        "evaluate": lambda step: {"square": step.step**2},
        "every": 4,
        "steps": 12,
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
    with pytest.raises(ValueError, match="batches: with a state, pass a callable"):
        train(net(), [batch(0)], loss, state=Path("anywhere"), **OPTIONS)
