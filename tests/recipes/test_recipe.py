"""A recipe from seed to card, stopped and resumed, and its command line."""

import importlib
import inspect
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

from course_lib import files, zoo
from course_lib.recipes import RECIPES, Recipe, TrainConfig, __main__, run_recipe
from course_lib.recipes import recipe as engine
from course_lib.recipes.recipe import check_targets, default_state_dir, save_fp16
from course_lib.training.state import StateError, read_state

TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setenv("COURSE_PROFILE", "ci")  # restored after `main` has set it
    return importlib.import_module("tiny")


def unchecked(**values):
    """`TrainConfig` without the types that tests check."""
    config = object.__new__(TrainConfig)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    inspect.unwrap(TrainConfig.__post_init__)(config)


def run(recipe, state_dir, **kwargs):
    profile = kwargs.pop("profile", "ci")
    return run_recipe(recipe, profile, state_dir=state_dir, progress=False, **kwargs)


def weights(folder):
    return load_file(folder / "diffusion_pytorch_model.safetensors")


# From seed to card


def test_the_checkpoint_holds_the_ema_weights_post_trained_and_rounded(tiny, tmp_path):
    last, folder = run(tiny.RECIPE, tmp_path)
    assert last.step == 40
    assert folder == tmp_path / "checkpoints" / "tests" / "tiny"
    state, _ = read_state(tmp_path / "tests" / "tiny" / "ci.safetensors")
    stored = weights(folder)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for number, (name, _) in enumerate(tiny.Tiny().named_parameters()):
        assert torch.equal(stored[name], state[f"ema.{number}"].half())
    assert stored["temperature"] == 2 and state["model.temperature"] == 1
    zoo.verify("tests/tiny", tmp_path / "checkpoints")


def test_the_shipped_weights_are_evaluated(tiny, tmp_path):
    _, folder = run(tiny.RECIPE, tmp_path)
    shipped = tiny.Tiny.from_pretrained(folder).float().eval()
    card = zoo.card("tests/tiny", tmp_path / "checkpoints")
    assert card.evaluation == tiny.evaluate(shipped, tiny.CONFIG)


def test_the_card_shows_how_the_model_was_made_and_its_metrics(tiny, tmp_path):
    run(replace(tiny.RECIPE, notes="For tests. Knows nothing else."), tmp_path)
    card = zoo.card("tests/tiny", tmp_path / "checkpoints")
    assert "# tests/tiny\n\na tiny one\n" in card.text
    assert re.search(r"\| error \| [\d.]+ \| <= 9 \| reached \|", card.text)
    assert "| examples | 8 | >= 100 | missed |" in card.text
    assert "## Use and limits\n\nFor tests. Knows nothing else.\n" in card.text
    assert "python -m course_lib.recipes tests/tiny --profile ci" in card.text
    assert "- 17 parameters, stored in half precision" in card.text
    assert 'num_steps 40, batch_size 8, lr 0.05, warmup 4, lr_schedule "cosine"' in card.text
    assert card.metadata["config"]["ema_decay"] == 0.9
    assert card.metadata["targets"]["error"] == ["<=", 9.0]
    assert card.metadata["evaluated_on"] == "8 samples of the test split"
    packages = {"torch", "diffusers", "transformers", "accelerate", "python"}
    assert card.metadata["versions"].keys() == packages
    assert check_targets(card.metadata) == {"error": True, "examples": False}


def test_reevaluation_keeps_the_weights_and_their_history(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.COURSE_CLASSES, "Tiny", "tiny")
    _, folder = run(tiny.RECIPE, tmp_path)
    root = tmp_path / "checkpoints"
    weights_before = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    metadata = zoo.card("tests/tiny", root).metadata
    configs = dict(tiny.RECIPE.configs) | {"ci": replace(tiny.CONFIG, eval_samples=300)}

    def evaluate(model, config):
        return {"error": model.temperature.item(), "examples": config.eval_samples}

    other = replace(tiny.RECIPE, evaluate=evaluate, configs=configs)
    assert engine.reevaluate(other, "ci", root) == folder
    card = zoo.card("tests/tiny", root)
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == weights_before
    assert card.evaluation == {"error": 2, "examples": 300}  # of the stored weights
    assert check_targets(card.metadata)["examples"]
    assert "| examples | 300 | >= 100 | reached |" in card.text
    assert "- evaluated on " in card.text
    changed = {key for key in card.metadata if card.metadata[key] != metadata.get(key)}
    assert changed == {"evaluation", "evaluated_on", "measured_on"}
    zoo.verify("tests/tiny", root)


def test_the_command_reevaluates(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(zoo.COURSE_CLASSES, "Tiny", "tiny")
    run(tiny.RECIPE, tmp_path)
    perfect = replace(tiny.RECIPE, evaluate=lambda *_: {"error": 1, "examples": 200})
    monkeypatch.setattr(tiny, "RECIPE", perfect)
    folder = ["--checkpoint-dir", str(tmp_path / "checkpoints")]
    assert main(tmp_path, "tiny:RECIPE", "--evaluate", *folder) == 0
    output = capsys.readouterr()
    assert output.out.endswith("targets: error reached, examples reached\n")
    assert "examples/s" not in output.err
    with pytest.raises(SystemExit):
        folder = ["--checkpoint-dir", str(tmp_path / "nothing")]
        main(tmp_path, "tiny:RECIPE", "--evaluate", *folder)
    message = "--evaluate: no checkpoint 'tests/tiny' is stored; train it first"
    assert message in capsys.readouterr().err


def test_the_seed_decides_the_weights(tiny, tmp_path):
    def stored(seed, folder):
        configs = {name: replace(tiny.CONFIG, seed=seed) for name in ("cpu", "gpu", "ci")}
        torch.rand(seed + 1)
        _, checkpoint = run(replace(tiny.RECIPE, configs=configs), tmp_path / folder)
        return weights(checkpoint)["body.0.weight"]

    assert torch.equal(stored(0, "a"), stored(0, "b"))
    assert not torch.equal(stored(0, "c"), stored(1, "d"))


def test_ci_never_touches_the_shipped_checkpoints(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("COURSE_WORK", raising=False)
    assert default_state_dir() == tmp_path / "build" / "training"
    _, ci = run(tiny.RECIPE, None)
    assert ci == tmp_path / "build" / "training" / "checkpoints" / "tests" / "tiny"
    assert not (tmp_path / "data").exists()
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "other"))
    _, real = run(tiny.RECIPE, None, profile="cpu")
    assert real == tmp_path / "data" / "checkpoints" / "tests" / "tiny"
    assert (tmp_path / "other" / "tests" / "tiny" / "cpu.safetensors").exists()


# Stopped and resumed


def test_stopped_by_minutes_it_stores_nothing_and_can_be_resumed(tiny, tmp_path):
    last, folder = run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    assert 0 < last.step < 40 and folder is None
    assert not (tmp_path / "checkpoints").exists()
    last, folder = run(tiny.SLOW, tmp_path)
    assert last.step == 40 and folder is not None
    _, uninterrupted = run(tiny.SLOW, tmp_path / "uninterrupted")
    expected = weights(uninterrupted)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())
    metadata = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert metadata["evaluation"] == zoo.card("slow", uninterrupted.parent).evaluation


def test_a_finished_run_is_stored_again_without_training(tiny, tmp_path):
    _, folder = run(tiny.RECIPE, tmp_path)
    expected = weights(folder)
    no_training = replace(tiny.RECIPE, loss_fn=lambda *_: pytest.fail("trained again"))
    _, folder = run(no_training, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_restart_discards_the_state(tiny, tmp_path):
    run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    steps = []
    spy = replace(tiny.SLOW, loss_fn=lambda *args: steps.append(1) or tiny.loss_fn(*args))
    run(spy, tmp_path, restart=True)
    assert len(steps) == 40


def test_restart_leaves_the_state_of_a_running_run(tiny, tmp_path):
    run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    states = list(tmp_path.rglob("*.safetensors"))
    state = next(path for path in states if path.name == "ci.safetensors")
    with files.locked(state), pytest.raises(StateError, match="in use by another run"):
        run(tiny.SLOW, tmp_path, restart=True)
    assert state.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "batch_size was 8 and is now 4"),
        ({"extra": {"frames": 8}}, r"extra was {} and is now {'frames': 8}"),
        ({"lr": 0.1}, "lr was 0.05 and is now 0.1"),
    ],
)
def test_a_run_with_another_config_is_not_resumed(tiny, tmp_path, changes, message):
    run(tiny.RECIPE, tmp_path)
    other = replace(tiny.CONFIG, **changes)
    configs = {"cpu": other, "gpu": other, "ci": other}
    with pytest.raises(ValueError, match=message):
        run(replace(tiny.RECIPE, configs=configs), tmp_path)
    configs |= {"ci": tiny.CONFIG}
    cpu = {"profile": "cpu", "checkpoint_dir": tmp_path / "out"}
    run(replace(tiny.RECIPE, configs=configs), tmp_path, **cpu)  # each profile has its own state


def test_another_evaluation_size_does_not_stop_a_run_from_being_resumed(tiny, tmp_path):
    run(tiny.SLOW, tmp_path, minutes=0.05 / 60)
    other = replace(tiny.CONFIG, eval_samples=100)
    last, _ = run(replace(tiny.SLOW, configs={"cpu": other, "gpu": other, "ci": other}), tmp_path)
    assert last.step == 40


# What is refused


def test_a_recipe_with_bad_targets_or_configs_is_refused(tiny):
    with pytest.raises(ValueError, match="targets: expected '>=' or '<=', got '=='"):
        replace(tiny.RECIPE, targets={"error": ("==", 1.0)})
    with pytest.raises(ValueError, match="configs: expected cpu, gpu, ci; got cpu"):
        replace(tiny.RECIPE, configs={"cpu": tiny.CONFIG})
    sizes = {"batch_size": 8, "eval_samples": 8}
    for name in sizes:
        for value in (0, -1, 2.5, math.nan, True, "8"):
            with pytest.raises(ValueError, match=f"{name}: expected an integer of at least 1, got"):
                unchecked(num_steps=1, lr=0.1, **sizes | {name: value})


def test_a_target_without_a_metric_is_refused(tiny, tmp_path):
    message = r"targets: expected names of metrics \(error, examples\), got speed"
    with pytest.raises(ValueError, match=message):
        run(replace(tiny.RECIPE, targets={"speed": (">=", 1.0)}), tmp_path)


def test_an_unknown_profile_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="profile: expected one of cpu, gpu, ci; got 'tpu'"):
        run(tiny.RECIPE, tmp_path, profile="tpu")


def test_weights_that_half_precision_cannot_represent_are_refused(tiny, tmp_path):
    def too_large(model, config):
        model.temperature.fill_(1e6)

    message = "model: half precision cannot represent the values of temperature"
    with pytest.raises(ValueError, match=message):
        run(replace(tiny.RECIPE, post_train=too_large), tmp_path)


def test_only_models_with_a_format_are_saved(tiny, tmp_path):
    message = "model: expected a ModelMixin or a PreTrainedModel, got Linear"
    with pytest.raises(ValueError, match=message):
        save_fp16(nn.Linear(2, 1), tmp_path)
    model = tiny.Tiny()
    save_fp16(model, tmp_path)
    assert model.dtype == torch.float32


# The command line


def main(tmp_path, *words):
    return __main__.main([*words, "--state-dir", str(tmp_path)])


def test_the_command_trains_and_reports(tmp_path, capsys):
    folder = ["--checkpoint-dir", str(tmp_path / "out")]
    assert main(tmp_path, "tiny:RECIPE", "--profile", "ci", *folder) == 0
    output = capsys.readouterr()
    stored = f"stored in {tmp_path}/out/tests/tiny"
    assert output.out == f"{stored}; targets: error reached, examples missed\n"
    assert re.search(r"40/40 .*loss \d\.\d{4}, \d+ examples/s", output.err)


def test_the_command_prints_how_to_resume(tmp_path, capsys):
    assert main(tmp_path, "tiny:SLOW", "--minutes", "0.001", "--restart") == 0
    output = capsys.readouterr().out
    resume = "the same command resumes it: python -m course_lib.recipes tiny:SLOW "
    assert re.match(rf"stopped at step \d+ of 40; {resume}", output)
    assert "--restart" not in output


def test_the_command_reports_an_error_in_one_line(tiny, tmp_path, capsys, monkeypatch):
    def last_line(**changes):
        monkeypatch.setattr(tiny, "RECIPE", replace(tiny.SLOW, **changes))
        assert main(tmp_path, "tiny:RECIPE") == 1
        return capsys.readouterr().err.rstrip().splitlines()[-1]

    diverged = last_line(loss_fn=lambda *args: tiny.loss_fn(*args) * math.nan)
    assert diverged.startswith("slow: step 1: the loss is nan")
    (tmp_path / "slow").mkdir(exist_ok=True)
    (tmp_path / "slow" / "ci.safetensors").write_bytes(b"nonsense")
    assert re.match("slow: .*ci.safetensors", last_line())


def test_an_interrupt_is_reported_with_the_command(tiny, tmp_path, capsys, monkeypatch):
    def interrupted(model, batch, generator):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "RECIPE", replace(tiny.RECIPE, loss_fn=interrupted))
    assert main(tmp_path, "tiny:RECIPE") == 130
    resume = "the same command resumes it: python -m course_lib.recipes tiny:RECIPE"
    assert f"interrupted; {resume}" in capsys.readouterr().err


def test_unknown_names_list_the_valid_ones(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(RECIPES, "tests/tiny", tiny.RECIPE)
    for words in (["nonsense"], []):
        with pytest.raises(SystemExit) as caught:
            main(tmp_path, *words)
        assert caught.value.code == 2
    output = capsys.readouterr().err
    assert "unknown recipe 'nonsense'; expected one of " in output and "tests/tiny" in output
    assert "which recipe? --list names them" in output
    assert main(tmp_path, "--list") == 0
    assert re.search(r"^tests/tiny +a tiny one$", capsys.readouterr().out, re.MULTILINE)


def _command(folder, words, hang_at):
    """The command, in a process of its own; it saves after every step and hangs at one of them."""
    import tiny

    os.environ.update(COURSE_DEVICE="cpu", COURSE_PROFILE="ci")
    torch.set_num_threads(1)
    engine.fit = partial(engine.fit, save_every=0)

    def make_batch(number, config):
        if number == hang_at:  # all steps before it have been saved
            (folder / "hanging").touch()
            time.sleep(60)
        return tiny.make_batch(number, config)

    tiny.SLOW = replace(tiny.SLOW, make_batch=make_batch)
    raise SystemExit(__main__.main([*words, "--state-dir", str(folder)]))


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is not a thing on Windows")
def test_after_a_kill_the_same_command_resumes(tiny, tmp_path):
    context = multiprocessing.get_context("forkserver")  # torch is imported once
    context.set_forkserver_preload(["course_lib.recipes"])
    state_path, words = tmp_path / "slow" / "ci.safetensors", ["tiny:SLOW"]
    process = context.Process(target=_command, args=(tmp_path, words, 17))
    process.start()
    # A state is not read while it is replaced
    while process.is_alive() and not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -9 and read_state(state_path)[1]["step"] == 17
    process = context.Process(target=_command, args=(tmp_path, words, None))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    _, uninterrupted = run(tiny.SLOW, tmp_path / "uninterrupted")
    expected = weights(uninterrupted)
    stored = weights(tmp_path / "checkpoints" / "slow")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())


# The recipes of the course


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_the_course_is_complete(name):
    recipe = RECIPES[name]
    assert isinstance(recipe, Recipe) and recipe.name == name
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)*", name)
    assert recipe.summary and recipe.notes and recipe.targets
    assert set(recipe.hub_metadata) <= {"library_name", "pipeline_tag", "base_model"}
    for config in recipe.configs.values():
        assert all(key.isidentifier() for key in config.extra)


def test_recipes_import_none_of_each_other():
    files = {file.stem: file for file in Path(engine.__file__).parent.glob("*.py")}
    recipes = [
        name for name, file in files.items() if "Recipe(\n    " in file.read_text(encoding="utf-8")
    ]
    assert {"judge", "mini_clip", "mini_sd", "vdm", "mini_video"} <= set(recipes)
    for name in recipes:
        pattern = r"^from course_lib\.recipes(?:\.| import )(\w+)"
        imported = re.findall(pattern, files[name].read_text(encoding="utf-8"), re.MULTILINE)
        assert not set(imported) & set(recipes)
