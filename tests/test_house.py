"""The rules of the house: which room may import which, how long a file may be, what no file may contain."""

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

import course_lib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_lib"

# From the ground up. A room imports the floors below it and itself, never its neighbours on the same floor.
FLOORS = (
    ("runtime",),
    ("nn", "diffusion", "world", "training", "training_state"),
    ("metrics",),
    ("papers",),
    ("zoo", "recipes"),
    ("claims", "bench"),
    ("lab",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# A recipe may start from a shipped checkpoint; the training loop is two files
NEIGHBOURS = {("recipes", "zoo"), ("training", "training_state")}

LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # hard limits, in lines; the aim is 300 and 40


def modules(package):
    """{dotted name without the package's own: path}, e.g. {"nn.convolution": …, "nn": …}."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_rooms(path, package):
    """The rooms of `package` that the file imports, inside functions too."""
    base = [package.name, *path.relative_to(package).parent.parts]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) + 1 - node.level] if node.level else []
            module = ".".join(start + ([node.module] if node.module else []))
            targets = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [target.split(".") for target in targets]
        rooms |= {part[1] for part in parts if part[0] == package.name and len(part) > 1}
    return {
        room for room in rooms if (package / room).is_dir() or (package / f"{room}.py").exists()
    }


def broken_floors(package):
    """One sentence for every import that goes up or sideways, and for every room that is on no floor."""
    problems = []
    for name, path in modules(package).items():
        room = name.split(".")[0]
        if room and room not in FLOOR:
            problems.append(f"{room} stands on no floor: give it one in tests/test_house.py")
            continue
        for other in sorted(imported_rooms(path, package) - {room}):
            below = room and FLOOR.get(other, 0) < FLOOR[room]
            if not below and (room, other) not in NEIGHBOURS:
                problems.append(
                    f"{name or package.name} imports {other}, which does not stand below it"
                )
    return problems


def fake_package(tmp_path, files):
    package = tmp_path / "course_lib"
    for name, source in {"__init__.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    return package


GOOD = {
    "runtime.py": "import torch",
    "nn/__init__.py": "from course_lib import runtime",
    "nn/attention.py": "from .convolution import x\nfrom course_lib.nn import convolution",
    "nn/convolution.py": "from ..runtime import device",
    "papers/vdm.py": "import course_lib.nn.attention",
    "zoo.py": "",
    "recipes/vdm.py": "from course_lib.zoo import load",
    "lab/show.py": "from course_lib.papers import vdm",
}


def test_the_floors_hold():
    assert broken_floors(PACKAGE) == []


def test_the_checker_accepts_a_sound_house(tmp_path):
    assert broken_floors(fake_package(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("runtime.py", "from course_lib.nn import attention", "runtime imports nn"),
        ("runtime.py", "def f():\n    import course_lib.lab.show", "runtime imports lab"),
        ("nn/attention.py", "from course_lib import papers", "nn.attention imports papers"),
        ("nn/attention.py", "from ..lab.show import show_video", "nn.attention imports lab"),
        ("nn/__init__.py", "from ..papers import vdm", "nn imports papers"),
        ("world/__init__.py", "from .. import nn", "world imports nn"),
        ("zoo.py", "from course_lib.recipes import vdm", "zoo imports recipes"),
        ("__init__.py", "from . import lab", "course_lib imports lab"),
        ("attic/__init__.py", "", "attic stands on no floor"),
    ],
)
def test_the_checker_sees_a_broken_floor(tmp_path, file, source, problem):
    problems = broken_floors(fake_package(tmp_path, {**GOOD, file: source}))
    assert len(problems) == 1
    assert problems[0].startswith(problem)


# Sizes and style

SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "install.py"]


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def style_problems(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    problems = []
    if len(source.splitlines()) > LONGEST_FILE:
        problems.append(f"{path.name} has more than {LONGEST_FILE} lines")
    for node in functions(tree):
        if node.end_lineno - node.lineno >= LONGEST_FUNCTION:
            problems.append(f"{path.name}: {node.name} has more than {LONGEST_FUNCTION} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            problems.append(
                f"{path.name}: no `from __future__ import`: it hides the annotations from the tests"
            )
    return problems


def public_problems(path):
    """What a module's public functions and classes lack: docstrings, annotations."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    problems = [] if ast.get_docstring(tree) else [f"{path.name} has no docstring"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            problems.append(f"{path.name}: {node.name} has no docstring")
        # a reference solution is shown to students, who write no annotations
        if isinstance(node, ast.FunctionDef) and not re.fullmatch(r"lesson_\d\d", path.stem):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [argument.arg for argument in arguments if argument.annotation is None]
            problems += [f"{path.name}: {node.name}({name}) is not annotated" for name in bare]
    return problems


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    assert style_problems(path) == []


@pytest.mark.parametrize(
    "path", modules(PACKAGE).values(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_everything_public_is_documented_and_annotated(path):
    assert public_problems(path) == []


def test_the_style_checker_can_fail(tmp_path):
    path = tmp_path / "long.py"
    body = "    x = 1\n" * LONGEST_FUNCTION
    path.write_text(
        "from __future__ import annotations\n" + f"def f(a):\n{body}" + "# \n" * LONGEST_FILE
    )
    assert len(style_problems(path)) == 3
    assert public_problems(path) == [
        "long.py has no docstring",
        "long.py: f has no docstring",
        "long.py: f(a) is not annotated",
    ]


@pytest.mark.parametrize(
    "name", [name for name in modules(PACKAGE) if not name.endswith("__main__")]
)
def test_every_module_imports(name):
    importlib.import_module(f"course_lib.{name}".rstrip("."))


def test_the_axis_vocabulary_is_declared():
    for axis in "bcfhwld":
        assert f"`{axis}`" in course_lib.__doc__


# Words that no file may contain. They are spelt in pieces here, so that this file may stand in the tree.

HOSTS = [
    ".".join(parts)
    for parts in (("py" + "pi", "org"), ("python" + "hosted", "org"), ("registry", "npm" + "js"))
]
MACHINE_FOLDERS = ("work", "farm", "root", "opt", "home", "Users")
MACHINE_PATH = re.compile(r"(?<![\w.~/+:-])/(?:" + "|".join(MACHINE_FOLDERS) + r")/[\w.-]")
SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z]{30,}\b|\bghp_\w{36}\b"
)


def forbidden(text):
    found = [host for host in HOSTS if host in text]
    return found + [
        match.group() for pattern in (MACHINE_PATH, SECRET) for match in pattern.finditer(text)
    ]


def files_of_the_repository():
    """What git tracks or would add, as paths; binary files have no words to look for."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = (
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_registry_addresses_machine_paths_or_secrets():
    bad, read = {}, 0
    for path in files_of_the_repository():
        try:
            words = forbidden(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        read += 1
        if words:
            bad[str(path.relative_to(ROOT))] = words[:3]
    assert read > 20
    assert bad == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("see " + HOSTS[0] + "/simple", 1),
        ('open("/' + 'work/main/x.py")', 1),
        ("File /" + "home/ada/lib.py", 1),
        ("key hf_" + "a" * 34, 1),
        ("a ratio and/or work/life, https://example.org/opt/out, ../root/x, notebooks/work/", 0),
    ],
)
def test_the_word_checker_can_fail(text, count):
    assert len(forbidden(text)) == count
