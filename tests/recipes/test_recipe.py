"""A recipe from seed to card, stopped and gone on with, and what its command line says."""

import importlib
import json
import math
import multiprocessing
import os
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from course_lib import zoo
from course_lib.recipes import RECIPES, Recipe, Settings, __main__, run_recipe
from course_lib.recipes import recipe as engine
from course_lib.recipes.recipe import card_text, default_work, reached, save_half
from course_lib.training.state import read_state

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setenv("COURSE_PROFILE", "ci")  # put back after `main` has set it
    return importlib.import_module("tiny")


def run(recipe, work, **options):
    return run_recipe(recipe, options.pop("profile", "ci"), work=work, progress=False, **options)


def weights(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


# From seed to card


def test_the_checkpoint_holds_the_averaged_finished_rounded_weights(tiny, tmp_path):
    last, folder = run(tiny.RECIPE, tmp_path)
    assert last.step == 40 and folder == tmp_path / "checkpoints" / "tests" / "tiny"
    state, _ = read_state(tmp_path / "tests" / "tiny" / "ci.safetensors")
    stored, names = weights(folder), [name for name, _ in tiny.Tiny().named_parameters()]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for number, name in enumerate(names):
        assert torch.equal(stored[name], state[f"average.{number}"].half())
    assert stored["temperature"] == 2 and state["model.temperature"] == 1
    zoo.verify("tests/tiny", tmp_path / "checkpoints")


def test_what_is_measured_is_what_is_shipped(tiny, tmp_path):
    _, folder = run(tiny.RECIPE, tmp_path)
    shipped = tiny.Tiny.from_pretrained(folder).float().eval()
    card = zoo.card("tests/tiny", tmp_path / "checkpoints")
    assert card.evaluation == tiny.evaluate(shipped, tiny.SETTINGS)


def test_the_card_says_how_it_was_made_and_how_good_it_is(tiny, tmp_path):
    run(replace(tiny.RECIPE, notes="For tests. Knows nothing else."), tmp_path)
    card = zoo.card("tests/tiny", tmp_path / "checkpoints")
    assert "# tests/tiny\n\na tiny one\n" in card.text
    assert re.search(r"\| error \| [\d.]+ \| <= 9 \| reached \|", card.text)
    assert "| examples | 8 | >= 100 | missed |" in card.text
    assert "## Use and limits\n\nFor tests. Knows nothing else.\n" in card.text
    assert "python -m course_lib.recipes tests/tiny --profile ci" in card.text
    assert (
        "17 parameters, 17 of them" not in card.text
        and "- 17 parameters, stored in half precision" in card.text
    )
    assert 'steps 40, batch 8, lr 0.05, warmup 4, schedule "cosine"' in card.text
    facts = card.facts
    assert facts["settings"]["ema"] == 0.9 and facts["bars"]["error"] == ["<=", 9.0]
    assert facts["versions"].keys() == {
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "python",
    }
    assert reached(facts) == {"error": True, "examples": False}


def test_measured_again_a_checkpoint_keeps_its_weights_and_its_history(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.COURSE_CLASSES, "Tiny", "tiny")
    _, folder = run(tiny.RECIPE, tmp_path)
    root = tmp_path / "checkpoints"
    before, facts = (
        (folder / "diffusion_pytorch_model.safetensors").read_bytes(),
        zoo.card("tests/tiny", root).facts,
    )
    other = replace(
        tiny.RECIPE,
        evaluate=lambda model, settings: {"error": model.temperature.item(), "examples": 200},
    )
    assert engine.measure_again(other, root) == folder
    card = zoo.card("tests/tiny", root)
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (
        card.evaluation == {"error": 2, "examples": 200} and reached(card.facts)["examples"]
    )  # of the stored weights
    assert "| examples | 200 | >= 100 | reached |" in card.text and "- measured on " in card.text
    changed = {key for key in card.facts if card.facts[key] != facts.get(key)}
    assert changed == {"evaluation", "measured on"}
    zoo.verify("tests/tiny", root)


def test_the_command_measures_again(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(zoo.COURSE_CLASSES, "Tiny", "tiny")
    run(tiny.RECIPE, tmp_path)
    monkeypatch.setattr(
        tiny, "RECIPE", replace(tiny.RECIPE, evaluate=lambda *_: {"error": 1, "examples": 200})
    )
    assert main(tmp_path, "tiny:RECIPE", "--measure", "--out", str(tmp_path / "checkpoints")) == 0
    said = capsys.readouterr()
    assert (
        said.out.endswith("bars: error reached, examples reached\n")
        and "examples/s" not in said.err
    )
    with pytest.raises(SystemExit):
        main(tmp_path, "tiny:RECIPE", "--measure", "--out", str(tmp_path / "nothing"))
    assert (
        "--measure: no checkpoint 'tests/tiny' is stored; train it first" in capsys.readouterr().err
    )


def test_the_seed_decides_the_weights(tiny, tmp_path):
    def stored(seed, work):
        settings = {name: replace(tiny.SETTINGS, seed=seed) for name in ("cpu", "gpu", "ci")}
        torch.rand(seed + 1)
        return weights(run(replace(tiny.RECIPE, settings=settings), tmp_path / work)[1])[
            "body.0.weight"
        ]

    assert torch.equal(stored(0, "a"), stored(0, "b"))
    assert not torch.equal(stored(0, "c"), stored(1, "d"))


def test_ci_never_touches_the_shipped_checkpoints(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("COURSE_WORK", raising=False)
    assert default_work() == tmp_path / "build" / "training"
    _, ci = run(tiny.RECIPE, None)
    assert ci == tmp_path / "build" / "training" / "checkpoints" / "tests" / "tiny"
    assert not (tmp_path / "data").exists()
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "elsewhere"))
    _, real = run(tiny.RECIPE, None, profile="cpu")
    assert real == tmp_path / "data" / "checkpoints" / "tests" / "tiny"
    assert (tmp_path / "elsewhere" / "tests" / "tiny" / "cpu.safetensors").exists()


# Stopped and gone on with


def test_stopped_by_minutes_it_stores_nothing_and_goes_on(tiny, tmp_path):
    last, folder = run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    assert 0 < last.step < 40 and folder is None and not (tmp_path / "checkpoints").exists()
    again, folder = run(tiny.SLOW, tmp_path)
    assert again.step == 40 and folder is not None
    _, whole = run(tiny.SLOW, tmp_path / "whole")
    assert all(
        torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(folder).items()
    )
    assert (
        json.loads((folder / "evaluation.json").read_text())["evaluation"]
        == zoo.card("slow", whole.parent).evaluation
    )


def test_a_finished_run_is_stored_again_without_training(tiny, tmp_path):
    _, folder = run(tiny.RECIPE, tmp_path)
    before = weights(folder)
    refuse = replace(tiny.RECIPE, loss=lambda *_: pytest.fail("trained again"))
    _, folder = run(refuse, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())


def test_fresh_forgets(tiny, tmp_path):
    run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    steps = []
    spy = replace(tiny.SLOW, loss=lambda *arguments: steps.append(1) or tiny.loss(*arguments))
    run(spy, tmp_path, fresh=True)
    assert len(steps) == 40


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 4}, "batch was 8 and is now 4"),
        ({"options": {"frames": 8}}, r"options was {} and is now {'frames': 8}"),
        ({"lr": 0.1}, "lr was 0.05 and is now 0.1"),
    ],
)
def test_other_settings_do_not_go_on(tiny, tmp_path, changes, words):
    run(tiny.RECIPE, tmp_path)
    other = replace(tiny.SETTINGS, **changes)
    with pytest.raises(ValueError, match=words):
        run(replace(tiny.RECIPE, settings={"cpu": other, "gpu": other, "ci": other}), tmp_path)
    other = replace(tiny.RECIPE, settings={"cpu": other, "gpu": tiny.SETTINGS, "ci": tiny.SETTINGS})
    run(other, tmp_path, profile="cpu", root=tmp_path / "out")  # each profile has its own state


# What is refused


def test_a_recipe_that_cannot_be_judged_is_refused(tiny):
    with pytest.raises(ValueError, match="bars: expected '>=' or '<=', got '=='"):
        replace(tiny.RECIPE, bars={"error": ("==", 1.0)})
    with pytest.raises(ValueError, match="settings: expected cpu, gpu, ci; got cpu"):
        replace(tiny.RECIPE, settings={"cpu": tiny.SETTINGS})
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        Settings(steps=1, batch=0, lr=0.1)


def test_a_bar_that_nobody_measured_is_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="bars: speed not among what was measured: error, examples"
    ):
        run(replace(tiny.RECIPE, bars={"speed": (">=", 1.0)}), tmp_path)


def test_an_unknown_profile_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="profile: expected one of cpu, gpu, ci; got 'tpu'"):
        run(tiny.RECIPE, tmp_path, profile="tpu")


def test_weights_that_half_precision_cannot_hold_are_refused(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="model: temperature has values that half precision cannot hold"
    ):
        run(
            replace(tiny.RECIPE, finish=lambda model, settings: model.temperature.fill_(1e6)),
            tmp_path,
        )


def test_only_models_with_a_format_are_saved(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="model: expected a ModelMixin or a PreTrainedModel, got Linear"
    ):
        save_half(nn.Linear(2, 1), tmp_path)
    model = tiny.Tiny()
    save_half(model, tmp_path)
    assert model.dtype == torch.float32


def test_a_card_without_bars_and_notes():
    facts = dict(
        name="x",
        about="y",
        command="z",
        settings={},
        minutes=1.0,
        processes=1,
        machine="m",
        versions={},
    )
    text = card_text(
        facts | {"parameters": 1000, "evaluation": {"a": 1, "b": [1, 2]}, "bars": {}}, ""
    )
    assert "as they are stored.\n" in text
    assert (
        "| a | 1 |  |  |" in text
        and "| b |" not in text
        and "limits" not in text
        and "1,000 parameters" in text
    )


def test_a_card_says_how_much_was_trained_where_the_rest_was_there_before():
    facts = dict(
        name="x",
        about="y",
        command="z",
        settings={},
        minutes=1.0,
        processes=1,
        machine="m",
        versions={},
    )
    facts |= {"parameters": 12_000, "evaluation": {}, "bars": {}}
    some = card_text(facts | {"trained parameters": 3_000}, "")
    assert (
        "- 12,000 parameters, of which 3,000 were trained and are stored here, in half precision"
        in some
    )
    assert "- 12,000 parameters, stored in half precision" in card_text(
        facts | {"trained parameters": 12_000}, ""
    )


def test_a_card_shows_intervals_beside_their_numbers():
    facts = dict(
        name="x",
        about="y",
        command="z",
        settings={},
        minutes=1.0,
        processes=1,
        machine="m",
        versions={},
    )
    evaluation = {"right": 0.97, "right, 95 % interval": [0.96, 0.98], "n": 5}
    text = card_text(
        facts | {"parameters": 1, "evaluation": evaluation, "bars": {"right": [">=", 0.9]}}, ""
    )
    assert "| right | 0.97 (0.96 to 0.98) | >= 0.9 | reached |" in text and "| n | 5 |" in text
    assert "stored; in brackets 95 % intervals." in text


# The command line


def main(tmp_path, *words):
    return __main__.main([*words, "--work", str(tmp_path)])


def test_the_command_trains_and_says_so(tmp_path, capsys):
    assert main(tmp_path, "tiny:RECIPE", "--profile", "ci", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert (
        said.out == f"stored in {tmp_path}/out/tests/tiny; bars: error reached, examples missed\n"
    )
    assert re.search(r"40/40 .*loss \d\.\d{4}, \d+ examples/s", said.err)


def test_the_command_says_how_to_go_on(tmp_path, capsys):
    assert main(tmp_path, "tiny:SLOW", "--minutes", "0.001", "--fresh") == 0
    said = capsys.readouterr().out
    assert re.match(
        r"stopped at step \d+ of 40; the same command goes on: python -m course_lib.recipes tiny:SLOW ",
        said,
    )
    assert "--fresh" not in said  # it would begin anew


def test_the_command_says_what_is_wrong_in_one_line(tiny, tmp_path, capsys, monkeypatch):
    def said(**changes):
        monkeypatch.setattr(tiny, "RECIPE", replace(tiny.SLOW, **changes))
        assert main(tmp_path, "tiny:RECIPE") == 1
        return capsys.readouterr().err.rstrip().splitlines()[-1]

    bad = {"loss": lambda *arguments: tiny.loss(*arguments) * math.nan}
    assert said(**bad) == "slow: step 1: the loss is nan; lower lr, or look at this batch"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "ci.safetensors").write_bytes(b"nonsense")
    assert re.match("slow: state: .*ci.safetensors is damaged", said())


def test_an_interrupt_is_no_accident(tiny, tmp_path, capsys, monkeypatch):
    def interrupted(model, batch, generator):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "RECIPE", replace(tiny.RECIPE, loss=interrupted))
    assert main(tmp_path, "tiny:RECIPE") == 130
    assert (
        "interrupted; the same command goes on: python -m course_lib.recipes tiny:RECIPE"
        in capsys.readouterr().err
    )


def test_unknown_names_list_the_known_ones(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "tests/tiny", tiny.RECIPE)
    for words in (["nonsense"], []):
        with pytest.raises(SystemExit) as caught:
            main(tmp_path, *words)
        assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "unknown recipe 'nonsense'; expected one of " in said and "tests/tiny" in said
    assert "which recipe? --list says what there is" in said
    assert main(tmp_path, "--list") == 0
    assert re.search(r"^tests/tiny +a tiny one$", capsys.readouterr().out, re.MULTILINE)


def _command(folder, words, hang_at):
    """The command, in a process of its own; it saves after every step and stops for a nap at one of them."""
    import tiny

    os.environ.update(COURSE_DEVICE="cpu", COURSE_PROFILE="ci")
    torch.set_num_threads(1)
    engine.fit = partial(engine.fit, save_every=0)

    def batches(number, settings):
        if number == hang_at:  # all steps before it have been saved
            (folder / "napping").touch()
            time.sleep(60)
        return tiny.batches(number, settings)

    tiny.SLOW = replace(tiny.SLOW, batches=batches)
    raise SystemExit(__main__.main([*words, "--work", str(folder)]))


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is not a thing on Windows")
def test_killed_the_same_command_goes_on(tiny, tmp_path):
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload(["course_lib.recipes"])
    state, words = tmp_path / "slow" / "ci.safetensors", ["tiny:SLOW"]
    process = context.Process(target=_command, args=(tmp_path, words, 17))
    process.start()
    while (
        process.is_alive() and not (tmp_path / "napping").exists()
    ):  # a state is not read while it is replaced
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -9 and read_state(state)[1]["step"] == 17
    process = context.Process(target=_command, args=(tmp_path, words, None))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    _, whole = run(tiny.SLOW, tmp_path / "whole")
    stored = weights(tmp_path / "checkpoints" / "slow")
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in stored.items())


# The recipes of the course


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_course_is_complete(name):
    recipe = RECIPES[name]
    assert isinstance(recipe, Recipe) and recipe.name == name
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)*", name)
    assert recipe.about and recipe.notes and recipe.bars
