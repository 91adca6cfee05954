"""Wrong options of `python -m course_lib.recipes` end in one line and exit status 2."""

from pathlib import Path

import pytest

from course_lib.recipes import __main__

TESTS = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setenv("COURSE_PROFILE", "ci")  # restored after `main` has set it


def main(tmp_path, *words):
    return __main__.main([*words, "--state-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny:RECIPE", "--minutes", "-1"], "--minutes: expected a finite number above 0, got"),
        (["tiny:RECIPE", "--minutes", "0"], "--minutes: expected a finite number above 0, got"),
        (
            ["tiny:RECIPE", "--minutes", "nan"],
            "--minutes: expected a finite number above 0, got nan",
        ),
        (
            ["tiny:RECIPE", "--minutes", "inf"],
            "--minutes: expected a finite number above 0, got inf",
        ),
        (["tiny:RECIPE", "--minutes", "x"], "argument --minutes: invalid float value: 'x'"),
        (["tiny:RECIPE", "--profile", "tpu"], "argument --profile: invalid choice: 'tpu'"),
        (["tiny:NOTHING"], "tiny:NOTHING: expected package.module:ATTRIBUTE; "),
        (["tiny:"], "tiny:: expected package.module:ATTRIBUTE; "),
        (["tiny:RECIPE.name"], "tiny:RECIPE.name: expected package.module:ATTRIBUTE; "),
        (["no.such.module:RECIPE"], "expected package.module:ATTRIBUTE; No module named 'no'"),
        ([":RECIPE"], ":RECIPE: expected package.module:ATTRIBUTE; "),
        ([".tiny:RECIPE"], ".tiny:RECIPE: expected package.module:ATTRIBUTE; "),
        (["tiny:CONFIG"], "tiny:CONFIG: expected a Recipe, got TrainConfig"),
        (["tiny:Tiny"], "tiny:Tiny: expected a Recipe, got type"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        main(tmp_path, *words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("COURSE_PROFILE", "fast"), ("COURSE_DEVICE", "abacus")]
)
def test_a_wrong_environment_is_one_line(tmp_path, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main(tmp_path, "tiny:RECIPE")
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert name in message and value in message


def test_a_damaged_checkpoint_is_one_line(tmp_path, capsys):
    folder = ["--checkpoint-dir", str(tmp_path / "out")]
    assert main(tmp_path, "tiny:RECIPE", *folder) == 0
    next((tmp_path / "out").rglob("*.safetensors")).write_bytes(b"nonsense")
    capsys.readouterr()
    assert main(tmp_path, "tiny:RECIPE", "--evaluate", *folder) == 1
    error = capsys.readouterr().err
    assert error.startswith("tests/tiny: ") and "Traceback" not in error
