"""Training resumes after minutes, interrupts and kills, and not from another run's state."""

import multiprocessing
import os
import pkgutil
import random
import time

import pytest
import torch
from torch import nn

from course_lib.training import fit, state, train
from course_lib.training.state import read_state
from tests.training.resumable import (
    OPTIONS,
    batch,
    fitted,
    loss,
    net,
    run,
    same,
    slow_loss,
)


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
    "lr_schedule", ["cosine", "constant", "linear", "cosine_with_restarts", "polynomial"]
)
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, optimizer, lr_schedule):
    changes = {"optimizer": optimizer, "lr_schedule": lr_schedule, "num_steps": 8}
    uninterrupted, last = run(None, **changes)
    run(tmp_path / "state", 4, **changes)
    parts, resumed = run(tmp_path / "state", **changes)
    assert same(parts.state_dict(), uninterrupted.state_dict())
    assert resumed.losses == last.losses and resumed.lr == last.lr
    with resumed.ema_weights() as one, last.ema_weights() as other:
        assert same(one.state_dict(), other.state_dict())


def test_fit_returns_the_whole_history(tmp_path, undisturbed):
    run(tmp_path / "state", 11)
    model = net()
    history = fit(model, batch, loss, progress=False, state_path=tmp_path / "state", **OPTIONS)
    assert [step.step for step in history] == list(range(1, 31))
    assert [step.loss for step in history] == undisturbed[1] == history[-1].losses
    assert [step.seconds for step in history] == sorted(step.seconds for step in history)
    assert history[-1].examples_per_second == pytest.approx(240 / history[-1].seconds)
    assert same(model.state_dict(), undisturbed[0])


def test_a_resumed_run_yields_its_last_step_first_and_a_finished_one_only_that(
    tmp_path, undisturbed
):
    run(tmp_path / "state", 5)
    steps = train(net(), batch, loss, state_path=tmp_path / "state", **OPTIONS)
    assert [next(steps).step, next(steps).step] == [5, 6]
    steps.close()
    run(tmp_path / "state")
    before = (tmp_path / "state").stat().st_mtime_ns
    model = net()
    assert [
        step.step for step in train(model, batch, loss, state_path=tmp_path / "state", **OPTIONS)
    ] == [30]
    assert [
        step.loss
        for step in fit(
            model, batch, loss, progress=False, state_path=tmp_path / "state", **OPTIONS
        )
    ] == (undisturbed[1])
    assert same(model.state_dict(), undisturbed[0])
    assert (tmp_path / "state").stat().st_mtime_ns == before  # nothing new to write


def test_minutes_count_anew_in_every_run(tmp_path):
    done = []
    for _ in range(3):
        steps = train(
            net(), batch, slow_loss, minutes=0.02 / 60, state_path=tmp_path / "state", **OPTIONS
        )
        done.append(list(steps)[-1].step)
    assert 0 < done[0] < done[1] < done[2]


def test_it_is_written_every_save_every_seconds(tmp_path, monkeypatch):
    def saved_at(save_every):
        now = [0.0]
        saved = []
        monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(
            state, "write_state", lambda path, tensors, metadata: saved.append(metadata["step"])
        )
        options = {
            **OPTIONS,
            "num_steps": 10,
            "state_path": tmp_path / "state",
            "save_every": save_every,
        }
        for _ in train(net(), batch, loss, **options):
            now[0] += 1
        return saved

    assert saved_at(0) == list(range(1, 11))
    assert saved_at(4) == [5, 9, 10]
    assert saved_at(60) == [10]


def test_an_interrupt_between_two_steps_keeps_what_was_done(tmp_path, undisturbed):
    steps = train(net(), batch, loss, state_path=tmp_path / "state", **OPTIONS)
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
        list(train(net(), draw, loss, state_path=tmp_path / "state", **OPTIONS))
    assert read_state(tmp_path / "state")[1]["step"] == 6


@pytest.mark.parametrize(
    "target",
    ["course_lib.training.run.Accelerator.backward", "course_lib.training.run.EMAModel.step"],
)
def test_an_interrupt_in_the_middle_of_a_step_keeps_the_state_of_before(
    tmp_path, undisturbed, monkeypatch, target
):
    run(tmp_path / "state", 5)
    owner, method = target.rsplit(".", 1)
    real, calls = getattr(pkgutil.resolve_name(owner), method), []

    def interrupt(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt  # the buffer is a step ahead, in case 2 also the weights

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(target, interrupt)
        run(tmp_path / "state")
    assert len(calls) == 3
    assert read_state(tmp_path / "state")[1]["step"] == 5
    assert same(fitted(tmp_path / "state"), undisturbed[0])


def test_an_interrupt_between_weights_and_average_is_not_kept_without_buffers_either(
    tmp_path, monkeypatch
):
    steps = train(nn.Linear(3, 1), batch, loss, state_path=tmp_path / "state", **OPTIONS)
    next(steps), next(steps)  # two steps to keep, if they could be told from the third
    monkeypatch.setattr(
        "course_lib.training.run.EMAModel.step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
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

    def spy(model, batch, generator):
        seeds.append(generator.initial_seed())
        return loss(model, batch, generator)

    seeds = []
    list(train(nn.Linear(3, 1), batch, spy, **OPTIONS))
    with pytest.raises(KeyboardInterrupt):
        list(train(nn.Linear(3, 1), batch, interrupted, state_path=tmp_path / "state", **OPTIONS))
    assert read_state(tmp_path / "state")[1]["step"] == 5


def test_gradients_left_by_an_interrupt_do_no_harm(undisturbed):
    model = net()
    loss(model, batch(0), torch.Generator()).backward()
    model.count.zero_()
    fit(model, batch, loss, progress=False, **OPTIONS)
    assert same(model.state_dict(), undisturbed[0])


# Kills


def work(path):
    """Runs in the killed process. It saves after every step, so many kills hit a write."""
    os.environ["COURSE_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    model = net()
    fit(model, batch, slow_loss, progress=False, state_path=path, save_every=0, **OPTIONS)


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is not a thing on Windows")
def test_killed_at_random_moments_it_ends_as_if_nothing_had_happened(tmp_path, undisturbed):
    context = multiprocessing.get_context(
        "forkserver"
    )  # a process of its own, but torch is imported once
    context.set_forkserver_preload(["course_lib.training"])
    path = tmp_path / "state"
    moments = random.Random(0)
    reached = []
    while len(reached) < 6:
        before = path.stat().st_mtime_ns if path.exists() else 0
        process = context.Process(target=work, args=(path,))
        process.start()
        while process.is_alive() and (path.stat().st_mtime_ns if path.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.04))
        process.kill()
        process.join()
        if process.exitcode == 0:  # on a busy machine it may come to its end before it is killed
            break
        assert process.exitcode == -9
        reached.append(read_state(path)[1]["step"])
    assert reached == sorted(reached) and len(reached) >= 2 and 0 < reached[0] < reached[-1]
    assert same(fitted(path), undisturbed[0])
    _, last = run(path)
    assert last.losses == undisturbed[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".state.lock", "state"]
