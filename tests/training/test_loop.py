"""The training loop: it learns, is reproducible, counts correctly, refuses clearly."""

import math
import sys
import time

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from course_lib.training import fit, run, train

TARGET = torch.tensor([[1.0], [-2.0], [0.5]])


def batch(index):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(index))
    return {"x": x, "y": x @ TARGET}


def squared(model, batch, generator):
    return (model(batch["x"]) - batch["y"]).square().mean()


def noisy(model, batch, generator):
    noise = torch.randn(batch["y"].shape, generator=generator)
    return (model(batch["x"]) - batch["y"] - noise).square().mean()


def line(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


OPTIONS = {"num_steps": 60, "lr": 0.1, "mixed_precision": "no", "seed": 3}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_learns_a_line(optimizer):
    model = line()
    history = fit(
        model,
        batch,
        squared,
        progress=False,
        **{**OPTIONS, "optimizer": optimizer, "weight_decay": 0.0, "num_steps": 150},
    )
    assert history[-1].loss < 1e-2 * history[0].loss
    torch.testing.assert_close(model.weight.T, TARGET, atol=0.1, rtol=0)


def test_equals_a_loop_written_by_hand():
    ours, theirs = line(), line()
    losses = [
        step.loss for step in train(ours, batch, squared, max_grad_norm=0.5, warmup=3, **OPTIONS)
    ]
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01)
    for n in range(60):
        rate = n / 3 if n < 3 else 0.5 * (1 + math.cos(math.pi * (n - 3) / 57))
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        loss = squared(theirs, batch(n), None)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert losses[n] == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_same_seed_same_draws_another_seed_others():
    def losses(seed):
        return [
            step.loss
            for step in train(line(), batch, noisy, **{**OPTIONS, "num_steps": 5, "seed": seed})
        ]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_a_step_draws_the_same_however_it_was_reached():
    def draws(extra):
        numbers = []

        def spy(model, batch, generator):
            numbers.append(torch.rand(1, generator=generator).item())
            torch.rand(
                extra, generator=generator
            )  # drawing more in one step must not shift the next
            return squared(model, batch, generator)

        list(train(line(), batch, spy, **{**OPTIONS, "num_steps": 4}))
        return numbers

    assert draws(extra=0) == draws(extra=7)
    assert len(set(draws(extra=0))) == 4


def test_dropout_is_seeded():
    def losses(drawn_before):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        torch.rand(drawn_before)
        return [step.loss for step in train(model, batch, squared, **{**OPTIONS, "num_steps": 4})]

    assert losses(0) == losses(5)


def test_dropout_does_not_depend_on_what_the_reader_draws():
    def losses(disturb):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        out = []
        for step in train(model, batch, squared, num_steps=4, lr=0.01, seed=3):
            out.append(step.loss)
            if disturb:
                torch.rand(3)
        return out

    assert losses(disturb=False) == losses(disturb=True)


def test_the_readers_own_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    steps = train(line(), batch, squared, num_steps=2, lr=0.01, seed=3)
    torch.manual_seed(0)
    next(steps)
    assert torch.equal(torch.rand(2), expected)


def test_fields_of_a_step():
    model = line()
    steps = list(train(model, batch, squared, **{**OPTIONS, "num_steps": 4, "warmup": 2}))
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.lr for step in steps] == pytest.approx([0, 0.05, 0.1, 0.05])
    assert all(step.model is model for step in steps)
    assert steps[-1].examples_per_second == pytest.approx(32 / steps[-1].seconds)


def test_the_readers_time_is_not_counted_and_its_eval_mode_is_undone():
    modes = []

    def spy(model, batch, generator):
        modes.append(model.training)
        return squared(model, batch, generator)

    for step in train(line(), batch, spy, **{**OPTIONS, "num_steps": 3}):
        step.model.eval()
        time.sleep(0.2)
    assert modes == [True] * 3
    assert step.seconds < 0.4


def test_minutes_stop_it():
    def slow(model, batch, generator):
        time.sleep(0.05)
        return squared(model, batch, generator)

    steps = list(train(line(), batch, slow, minutes=0.12 / 60, **OPTIONS))
    assert 1 < len(steps) <= 3


def test_frozen_parameters_stay():
    model = line()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, batch, squared, progress=False, **OPTIONS)
    assert torch.equal(model.bias, before)


def test_ema_weights_are_lent_by_a_step_and_left_by_fit():
    model, kept = line(), []
    for step in train(model, batch, squared, ema_decay=0.9, **OPTIONS):
        kept.append(model.weight.detach().clone())
        own = model.weight.detach().clone()
        with step.ema_weights() as ema_model:
            lent = ema_model.weight.detach().clone()
        assert torch.equal(model.weight, own)
    average = EMAModel([line().weight], decay=0.9)
    for weight in kept:
        average.step([nn.Parameter(weight)])
    torch.testing.assert_close(lent, average.shadow_params[0])
    assert not torch.equal(lent, own)
    again = line()
    fit(again, batch, squared, progress=False, ema_decay=0.9, **OPTIONS)
    torch.testing.assert_close(again.weight, average.shadow_params[0], rtol=0, atol=0)


def test_without_an_ema_ema_weights_are_the_models():
    step = next(train(line(), batch, squared, **OPTIONS))
    with step.ema_weights() as model:
        assert model is step.model


def test_attention_is_plain_products_on_a_cpu_and_only_inside_the_loss():
    flash = torch.backends.cuda.flash_sdp_enabled
    enabled = []

    def spy(model, batch, generator):
        enabled.append((flash(), torch.backends.cuda.math_sdp_enabled()))
        return squared(model, batch, generator)

    next(train(line(), batch, spy, **OPTIONS))
    assert enabled == [(False, True)] and flash()


def test_bf16_autocast_reaches_the_model_only():
    types = []

    def spy(model, batch, generator):
        out = model(batch["x"])
        types.append((out.dtype, model.weight.dtype))
        return (out.float() - batch["y"]).square().mean()

    next(train(line(), batch, spy, **{**OPTIONS, "mixed_precision": "bf16"}))
    next(train(line(), batch, spy, **{**OPTIONS, "mixed_precision": "no"}))
    assert types == [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]


def test_auto_precision_asks_the_runtime(monkeypatch):
    for answer in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(run.runtime, "dtype", lambda device, answer=answer: answer)
        types = []

        def spy(model, batch, generator, types=types):
            types.append(model(batch["x"]).dtype)
            return squared(model, batch, generator)

        next(train(line(), batch, spy, num_steps=1, lr=0.1))
        assert types == [answer]


def test_an_iterable_begins_again():
    assert (
        len(list(train(line(), [batch(0), batch(1)], squared, **{**OPTIONS, "num_steps": 5}))) == 5
    )


def test_an_iterator_that_ran_out_is_refused():
    with pytest.raises(
        ValueError, match="make_batch: the iterator ended at batch 2 and cannot restart"
    ):
        list(train(line(), iter([batch(0), batch(1)]), squared, **OPTIONS))
    with pytest.raises(ValueError, match="make_batch: the iterator ended at batch 0"):
        list(train(line(), [], squared, **OPTIONS))


def test_a_loss_that_is_not_finite_stops_it_before_the_weights_change():
    model, before = line(), []

    def breaks(model, batch, generator):
        before.append(model.weight.detach().clone())
        return squared(model, batch, generator) * (math.nan if len(before) == 3 else 1)

    with pytest.raises(FloatingPointError, match="step 3: the loss is nan"):
        list(train(model, batch, breaks, **OPTIONS))
    assert torch.equal(model.weight, before[-1])


def test_a_gradient_that_is_not_finite_stops_it():
    def breaks(model, batch, generator):
        return (squared(model, batch, generator) * 0).sqrt()  # the slope of a root at 0 is infinite

    with pytest.raises(FloatingPointError, match="step 1: the gradient norm is"):
        list(train(line(), batch, breaks, **OPTIONS))


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_clipping_may_be_off(max_grad_norm):
    first = line()
    next(
        train(
            first,
            lambda n: {"x": 100 * batch(n)["x"], "y": batch(n)["y"]},
            squared,
            num_steps=1,
            lr=1e-6,
            optimizer="sgd",
            weight_decay=0.0,
            max_grad_norm=max_grad_norm,
            mixed_precision="no",
        )
    )
    start = line()
    moved = torch.cat([(first.weight - start.weight)[0], first.bias - start.bias]).norm().item()
    assert moved > 1e-4 if max_grad_norm is None else moved == pytest.approx(1e-6, rel=0.3)


def test_evaluation_comes_when_it_is_due_and_after_the_last_step():
    evaluated = []

    def evaluate(step):
        evaluated.append(step.step)
        step.model.eval()
        return {"square": step.step**2}

    options = {**OPTIONS, "num_steps": 7, "evaluate": evaluate, "eval_every": 3}
    results = {step.step: step.evaluation for step in train(line(), batch, squared, **options)}
    assert evaluated == [3, 6, 7]
    assert results == {
        1: None,
        2: None,
        3: {"square": 9},
        4: None,
        5: None,
        6: {"square": 36},
        7: {"square": 49},
    }


def test_evaluation_is_not_counted_as_training():
    options = {
        **OPTIONS,
        "num_steps": 4,
        "evaluate": lambda step: time.sleep(0.1) or {},
        "eval_every": 1,
    }
    assert list(train(line(), batch, squared, **options))[-1].seconds < 0.3


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ImportError, match="log_dir: TensorBoard is missing; install the package tensorboard"
    ):
        train(line(), batch, squared, log_dir=tmp_path, **OPTIONS)


def test_fit_shows_progress_on_request(capsys):
    fit(line(), batch, squared, **{**OPTIONS, "num_steps": 3})
    assert "loss" in capsys.readouterr().err
    fit(line(), batch, squared, progress=False, **{**OPTIONS, "num_steps": 3})
    assert capsys.readouterr().err == ""
