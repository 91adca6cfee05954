"""The set-up: install.py's messages, its stamp and its commands."""

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPIN = "GOMP_SPINCOUNT"
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
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
    tree = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"))
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
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n", encoding="utf-8")
    real.write_text("#!/bin/sh\nprintf /somewhere/python3.12\n", encoding="utf-8")
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
    Path(install.STAMP).write_text("an older state", encoding="utf-8")
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
    assert '"fetchNews": "false"' in overrides.read_text(encoding="utf-8")
    assert fake_install.main() == 0
    assert capsys.readouterr().out == "Set-up: up to date in .venv\n"
    assert len(fake_install.runs) == 1
    with open(Path(fake_install.ROOT) / "constraints.txt", "a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    fake_install.main()
    assert len(fake_install.runs) == 2
    project = Path(fake_install.ROOT) / "pyproject.toml"
    project.write_text(
        project.read_text(encoding="utf-8").replace("line-length = 100", "line-length = 99"),
        encoding="utf-8",
    )
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
    (site / "complete-1.dist-info" / "INSTALLER").write_text("pip", encoding="utf-8")
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
    Path(install.HOME).write_text("/elsewhere\n", encoding="utf-8")
    install.make_environment()
    assert len(commands) == 2
    version = b"3 14"
    install.make_environment()
    assert len(commands) == 3


def test_every_python_of_the_environment_sets_the_spin_count_unless_the_user_did(install):
    """A .pth file, which Python runs at its start, before anything can import torch."""
    site = Path(install.VENV) / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    install.settle_threads()
    code = f"import site; site.addsitedir({str(site)!r}); import os; print(os.environ['{SPIN}'])"
    for own, expected in ((None, install.SPIN_COUNT), ("7", "7")):
        env = {key: value for key, value in os.environ.items() if key != SPIN}
        env |= {SPIN: own} if own else {}
        command = [sys.executable, "-S", "-c", code]
        assert subprocess.check_output(command, env=env, text=True).strip() == expected


@pytest.mark.parametrize("own", [None, "7"])
def test_the_package_sets_the_spin_count_before_torch_starts(install, own):
    code = f"import course_lib, os, sys; print(os.environ['{SPIN}'], 'torch' in sys.modules)"
    env = {key: value for key, value in os.environ.items() if key != SPIN}
    env |= {SPIN: own} if own else {}
    # -I would hide course_lib, -S the environment's own .pth file and course_lib with it
    command = [sys.executable, "-S", "-c", code]
    output = subprocess.check_output(command, env=env, text=True, cwd=ROOT)
    assert output.split() == [own or install.SPIN_COUNT, "False"]


def recorded_commands(install, monkeypatch, codes=()):
    calls = []
    codes = list(codes)

    def call(command, cwd=None, env=None):
        calls.append((command[2:], env["COURSE_PROFILE"] if "COURSE_PROFILE" in env else None))
        return codes.pop(0) if codes else 0

    monkeypatch.delenv("COURSE_PROFILE")
    monkeypatch.setattr(install.subprocess, "call", call)
    return calls


def test_one_command_runs_every_check_on_every_system(fake_install, monkeypatch):
    calls = recorded_commands(fake_install, monkeypatch)
    monkeypatch.delenv("WORKERS", raising=False)
    assert fake_install.main(["test"]) == 0
    assert calls == [
        (["ruff", "check", "."], None),
        (["ruff", "format", "--check", "."], None),
        (["pytest", "-n", "2", "--dist", "loadfile", "notebooks", "tests", *NBVAL], "ci"),
    ]


def test_the_tests_do_not_run_after_a_failed_check(fake_install, monkeypatch):
    calls = recorded_commands(fake_install, monkeypatch, codes=[3])
    assert fake_install.main(["test-fast"]) == 3
    assert len(calls) == 1


def test_jupyterlab_opens_the_first_lesson(fake_install, monkeypatch):
    calls = recorded_commands(fake_install, monkeypatch)
    assert fake_install.main(["lab"]) == 0
    assert calls[0][0][:2] == ["jupyter", "lab"]
    flags = dict(flag.partition("=")[::2] for flag in calls[0][0][2:])
    assert flags["--ServerApp.root_dir"] == fake_install.ROOT
    lesson = flags["--LabApp.default_url"].removeprefix("/lab/tree/")
    assert (ROOT / lesson).is_file() and lesson.startswith("notebooks/00_")


@pytest.mark.parametrize("arguments", [["tests"], ["test", "lab"], ["--help"]])
def test_an_unknown_command_installs_nothing(fake_install, capsys, arguments):
    assert fake_install.main(arguments) == 2
    assert "expected nothing or one of lab, lint, test, test-fast" in capsys.readouterr().out
    assert fake_install.runs == []


def test_a_path_with_spaces_and_letters_of_any_script_is_kept(install, tmp_path, monkeypatch):
    """The folder's name is written to a file and compared, under whatever encoding a system has."""
    root = str(tmp_path / "Mein Gerät 视频")
    monkeypatch.setattr(install, "ROOT", root)
    os.makedirs(install.VENV)
    install.write(install.HOME, root)
    assert install.read(install.HOME) == root
    assert Path(install.HOME).read_bytes() == (root + "\n").encode()
    Path(install.HOME).write_bytes((root + "\r\n").encode())
    assert install.read(install.HOME) == root
