"""The pinned versions: their ranges, the conda file, the workflow."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PIP_PART = ENVIRONMENT["dependencies"][-1]["pip"]


@pytest.fixture
def install():
    """install.py as a module."""
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def constraints():
    """{name: the pins that hold on this machine}."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{line} is no exact pin"
            if requirement.marker is None or requirement.marker.evaluate():
                assert canonicalize_name(requirement.name) not in pins, f"{line} is pinned twice"
                pins[canonicalize_name(requirement.name)] = str(requirement.specifier)[2:]
    return pins


PINS = constraints()
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_range_has_a_pin_inside_it(requirement):
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(pin), f"{pin} is outside {requirement}"
    assert requirement.specifier, f"{requirement.name} has no range in pyproject.toml"


def needed_here():
    """Every installed package that the course needs on this machine, through all levels."""
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in DIRECT]
    visited = set()
    while todo:
        name, extras = todo.pop()
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # the bench extra is installed by `make bench` only
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        for line in requires:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in (extras or {""})]
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return sorted({name for name, _ in visited})


def test_everything_installed_for_the_course_is_at_its_pin():
    needed = needed_here()
    assert len(needed) > 100
    assert [name for name in needed if name not in PINS] == [], "not in constraints.txt"
    installed = {name: importlib.metadata.version(name) for name in needed}
    wrong = {
        n: (v, PINS[n])
        for n, v in installed.items()
        if not SpecifierSet(f"=={PINS[n]}").contains(v)
    }
    assert wrong == {}, "installed and pinned versions differ: run `make setup`"


def test_one_python_range_everywhere(install):
    allowed = SpecifierSet(PROJECT["requires-python"])
    minors = [minor for minor in range(8, 20) if allowed.contains(f"3.{minor}.1")]
    assert minors == list(range(install.OLDEST[1], install.TOO_NEW[1]))
    versions = f"3.{minors[0]}-3.{minors[-1]}"
    assert f"Python {versions} is needed" in (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [
        f"3.{minor}" for minor in minors
    ]
    conda = next(line for line in ENVIRONMENT["dependencies"] if str(line).startswith("python="))
    assert allowed.contains(conda.removeprefix("python=") + ".1")


def test_conda_installs_what_pip_installs(install):
    assert PIP_PART == ["-c constraints.txt", f"-e .[{install.EXTRAS}]"]
    assert set(install.EXTRAS.split(",")) == {"lab", "dev"} <= set(EXTRAS)


def test_ci_and_the_workflow_run_the_one_test_command():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert script.startswith("#!/usr/bin/env bash\n") and script.endswith("\nmake test\n")
    assert os.access(ROOT / ".ci/run", os.X_OK)
    job = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"][
        "test"
    ]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["python install.py test"]
    assert "COURSE) test\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    systems = {name.split("-")[0] for name in job["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "macos", "windows"}


def test_the_pip_part_of_the_conda_file_resolves(tmp_path):
    """pip itself resolves it, as conda calls it: with a requirements file.

    Packages that are installed at their pin need no network; anything else is asked of pip's index.
    """
    for name in ("pyproject.toml", "constraints.txt", "LICENSE", "LICENSE-prose"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "course_lib").mkdir()
    shutil.copy(ROOT / "course_lib" / "__init__.py", tmp_path / "course_lib")
    (tmp_path / "requirements.txt").write_text("\n".join(PIP_PART) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-build-isolation",
        "--retries",
        "1",
    ]
    process = subprocess.run(
        [*command, "-r", "requirements.txt"], cwd=tmp_path, capture_output=True, text=True
    )
    output = process.stdout + process.stderr
    if process.returncode and ("from versions: none" in output or "connection" in output.lower()):
        pytest.skip("pip cannot reach its index, and not every pinned package is installed here")
    assert process.returncode == 0, output[-2000:]
    assert "Would install" in process.stdout
    assert "course-lib" in process.stdout
