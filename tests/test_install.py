"""The set-up: install.py's messages and its stamp, and the consistency of the pinned versions."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
PIP_PART = ENVIRONMENT["dependencies"][-1]["pip"]
posix_only = pytest.mark.skipif(os.name == "nt", reason="the fake interpreter is a shell script")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install.py as a module that believes it lives in a folder of its own."""
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    venv = tmp_path / ".venv"
    places = {"ROOT": tmp_path, "VENV": venv, "VENV_PYTHON": venv / "python"}
    places |= {"STAMP": venv / "course-stamp", "HOME": venv / "course-home"}
    for name, path in places.items():
        monkeypatch.setattr(module, name, str(path))
    return module


@pytest.fixture
def fake_install(install, monkeypatch):
    """The same with the slow parts replaced; `.runs` has an entry per installation by pip."""
    runs = []

    def make_environment():
        Path(install.VENV).mkdir(exist_ok=True)
        Path(install.VENV_PYTHON).touch()

    monkeypatch.setattr(install, "check_machine", lambda: None)
    monkeypatch.setattr(install, "make_environment", make_environment)
    monkeypatch.setattr(install, "install", lambda: runs.append(1))
    install.runs = runs
    return install


def pretend_version(install, monkeypatch, *version):
    fake = SimpleNamespace(version_info=version, stdout=sys.stdout, executable=sys.executable)
    monkeypatch.setattr(install, "sys", fake)


# install.py


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 8, 18), (3, 10, 13), (3, 14, 0)])
def test_a_wrong_python_says_so_in_one_line(install, monkeypatch, capsys, version):
    pretend_version(install, monkeypatch, *version)
    monkeypatch.setattr(install, "find_python", lambda: None)
    assert install.main() == 1
    expected = f"Set-up: Python 3.11-3.13 is needed; this is {version[0]}.{version[1]}.\n"
    assert capsys.readouterr().out == expected


def test_old_pythons_can_read_it():
    """No syntax newer than Python 3.3, or the message above would be a SyntaxError."""
    newer = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.AsyncFunctionDef,
        ast.Match,
        ast.Nonlocal,
    )
    tree = ast.parse((ROOT / "install.py").read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, newer), ast.unparse(node)
        if isinstance(node, ast.FunctionDef):
            annotations = [node.returns, *(argument.annotation for argument in node.args.args)]
            assert not any(annotations), node.name
            assert not node.args.kwonlyargs, node.name
        if isinstance(node, ast.Raise):
            assert node.cause is None, "`raise ... from` is a SyntaxError in Python 2"


@posix_only
def test_finds_the_newest_interpreter_that_really_runs(install, monkeypatch, tmp_path):
    shim, real = tmp_path / "python3.13", tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    real.write_text("#!/bin/sh\nprintf /somewhere/python3.12\n")
    for script in (shim, real):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert install.find_python() == "/somewhere/python3.12"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert install.find_python() is None


def test_hands_over_to_the_interpreter_it_found(install, monkeypatch):
    calls = []
    pretend_version(install, monkeypatch, 3, 9, 0)
    monkeypatch.setattr(install, "find_python", lambda: "/somewhere/python3.12")
    monkeypatch.setattr(install.subprocess, "call", lambda command: calls.append(command) or 7)
    assert install.main() == 7
    assert calls == [["/somewhere/python3.12", os.path.join(install.ROOT, "install.py")]]


def test_too_little_disk_stops_a_fresh_install_only(install, monkeypatch, capsys):
    usage = SimpleNamespace(free=3_210_000_000)
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: usage)
    assert install.main() == 1
    assert (
        capsys.readouterr().out
        == "Set-up: about 8 GB of free disk is needed; here there is 3.2 GB.\n"
    )
    Path(install.VENV).mkdir()
    Path(install.STAMP).write_text("an older state")
    install.check_machine()


def test_a_missing_venv_module_names_the_package(install, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert install.main() == 1
    output = capsys.readouterr().out
    minor = sys.version_info[1]
    assert output.endswith(f"sudo apt install python3.{minor}-venv\n")
    assert output.count("\n") == 1


def test_an_intel_mac_has_no_build_of_torch(install, monkeypatch):
    monkeypatch.setattr(install.sys, "platform", "darwin")
    monkeypatch.setattr(install.platform, "machine", lambda: "x86_64")
    with pytest.raises(install.Stop, match="no build for Macs with Intel"):
        install.check_machine()


def fake_pip(install, monkeypatch, *outputs):
    outputs = iter(outputs)

    def run(command, **options):
        code, stdout = next(outputs)
        return subprocess.CompletedProcess(command, code, stdout=stdout)

    monkeypatch.setattr(install.subprocess, "run", run)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            [(1, b"Retrying after connection broken\nERROR: no match")],
            "cannot reach its package index",
        ),
        (
            [(1, b"ERROR: no setuptools==81 (from versions: none)")],
            "cannot reach its package index",
        ),
        (
            [(1, b"Looking\nERROR: No space left on device")],
            "pip failed: ERROR: No space left on device",
        ),
        ([(1, b"")], "pip failed: no output"),
        ([(0, b""), (1, None)], "pip did not finish"),
    ],
)
def test_pip_failures_become_one_line(install, monkeypatch, outputs, message):
    fake_pip(install, monkeypatch, *outputs)
    with pytest.raises(install.Stop, match=message):
        install.install()


def test_a_second_run_does_nothing_and_a_changed_pin_installs_again(fake_install, capsys):
    assert fake_install.main() == 0
    assert "Open the course with" in capsys.readouterr().out
    overrides = Path(fake_install.VENV) / "share/jupyter/lab/settings/overrides.json"
    assert '"fetchNews": "false"' in overrides.read_text()
    assert fake_install.main() == 0
    assert capsys.readouterr().out == "Set-up: up to date in .venv\n"
    assert len(fake_install.runs) == 1
    with open(Path(fake_install.ROOT) / "constraints.txt", "a") as file:
        file.write("another==1.0\n")
    fake_install.main()
    assert len(fake_install.runs) == 2
    project = Path(fake_install.ROOT) / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 100", "line-length = 99"))
    fake_install.main()
    assert len(fake_install.runs) == 2, "a tool's settings do not decide what is installed"


def test_an_interrupted_run_starts_again(fake_install, monkeypatch):
    def cut_short():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fake_install, "install", cut_short)
        with pytest.raises(KeyboardInterrupt):
            fake_install.main()
    assert not fake_install.up_to_date()
    fake_install.main()
    assert fake_install.up_to_date()


def test_an_environment_without_its_python_is_not_up_to_date(fake_install):
    fake_install.main()
    Path(fake_install.VENV_PYTHON).unlink()
    assert not fake_install.up_to_date()


def test_a_half_installed_package_is_removed(install):
    site = Path(install.VENV) / "lib" / "python3.11" / "site-packages"
    for name in (
        "complete-1.dist-info",
        "cut-1.dist-info",
        "complete-1.dist-info/licenses/vendored-1.dist-info",
    ):
        (site / name).mkdir(parents=True)
    (site / "complete-1.dist-info" / "INSTALLER").write_text("pip")
    install.remove_half_installed()
    assert sorted(path.name for path in site.iterdir()) == ["complete-1.dist-info"]
    assert (site / "complete-1.dist-info" / "licenses" / "vendored-1.dist-info").is_dir()


def test_an_environment_is_kept_unless_moved_or_of_another_python(install, monkeypatch):
    commands = []
    version = b"3 12"

    def call(command):
        commands.append(command)
        Path(install.VENV).mkdir(exist_ok=True)
        Path(install.VENV_PYTHON).touch()
        return 0

    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, stdout=version)

    monkeypatch.setattr(install.subprocess, "call", call)
    monkeypatch.setattr(install.subprocess, "run", run)
    for _ in range(3):
        install.make_environment()
    assert len(commands) == 1
    assert commands[0][1:4] == ["-m", "venv", "--clear"]
    Path(install.HOME).write_text("/elsewhere\n")
    install.make_environment()
    assert len(commands) == 2
    version = b"3 14"
    install.make_environment()
    assert len(commands) == 3


# Ranges, pins and the conda file


def constraints():
    """{name: the pins that hold on this machine}."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
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
    assert f"Python {versions} is needed" in (ROOT / "Makefile").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [
        f"3.{minor}" for minor in minors
    ]
    conda = next(line for line in ENVIRONMENT["dependencies"] if str(line).startswith("python="))
    assert allowed.contains(conda.removeprefix("python=") + ".1")


def test_conda_installs_what_pip_installs(install):
    assert PIP_PART == ["-c constraints.txt", f"-e .[{install.EXTRAS}]"]
    assert set(install.EXTRAS.split(",")) == {"lab", "dev"} <= set(EXTRAS)


def test_ci_and_the_workflow_run_the_one_test_command():
    assert (ROOT / ".ci/run").read_text() == "#!/usr/bin/env bash\nmake test\n"
    assert os.access(ROOT / ".ci/run", os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    assert [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step] == [
        "make test"
    ]


def test_the_pip_part_of_the_conda_file_resolves(tmp_path):
    """pip itself resolves it, as conda calls it: with a requirements file.

    Packages that are installed at their pin need no network; anything else is asked of pip's index.
    """
    for name in ("pyproject.toml", "constraints.txt", "LICENSE", "LICENSE-prose"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "course_lib").mkdir()
    shutil.copy(ROOT / "course_lib" / "__init__.py", tmp_path / "course_lib")
    (tmp_path / "requirements.txt").write_text("\n".join(PIP_PART) + "\n")
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
