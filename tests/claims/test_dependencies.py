"""Finished runs are reused only while every file that made them is unchanged."""

import shutil

import pytest

from course_lib.claims import MODULES, dependencies
from course_lib.claims.__main__ import _code_digest

TREE = {
    "__init__.py": "",
    "claims/__init__.py": "from course_lib.claims import one, two\n",
    "claims/one.py": "from course_lib.low import deep\nfrom course_lib.claims import shared\n",
    "claims/two.py": "def run():\n    from . import shared\n",
    "claims/shared.py": "import course_lib.other.inner as inner\n",
    "low/__init__.py": "from course_lib.low.base import BASE\n",
    "low/base.py": "BASE = 'course_lib.named'\n",
    "low/deep.py": "from ..cycle import go\n",
    "other/__init__.py": "",
    "other/inner.py": "from .leaf import *\n",
    "other/leaf.py": "import numpy\n",
    "cycle.py": "import course_lib.low.deep\n",
    "named.py": "",
    "lab/__init__.py": "from course_lib.claims import one\n",
    "unused.py": "",
}
EVERYWHERE = {"__init__.py", "claims/shared.py"}
OTHER = {"other/__init__.py", "other/inner.py", "other/leaf.py"}
OF_ONE = {"claims/one.py", "low/__init__.py", "low/base.py", "low/deep.py", "cycle.py", "named.py"}


@pytest.fixture
def package(tmp_path):
    """A small package of that name: a cycle, relative and late imports, a name as a string."""
    for name, text in TREE.items():
        path = tmp_path / "course_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "course_lib"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("claims.one", EVERYWHERE | OTHER | OF_ONE),
        ("claims.two", EVERYWHERE | OTHER | {"claims/two.py"}),
        ("claims", set(TREE) - {"lab/__init__.py", "unused.py"}),
    ],
)
def test_imports_are_followed(package, module, expected):
    files = dependencies.code_files(f"course_lib.{module}", package)
    assert {file.relative_to(package).as_posix() for file in files} == expected


def digests(package):
    return {
        name: dependencies.code_digest(f"course_lib.claims.{name}", package)
        for name in ("one", "two")
    }


@pytest.mark.parametrize("name", TREE)
def test_a_change_counts_where_it_is_reached(package, name):
    before = digests(package)
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("# more\n")
    changed = {id for id, digest in digests(package).items() if digest != before[id]}
    reached = {"one": EVERYWHERE | OTHER | OF_ONE, "two": EVERYWHERE | OTHER | {"claims/two.py"}}
    assert changed == {id for id, names in reached.items() if name in names}


def test_a_removed_and_a_renamed_file_count(package):
    first = digests(package)
    (package / "named.py").unlink()
    second = digests(package)
    assert second["one"] != first["one"] and second["two"] == first["two"]
    (package / "low" / "base.py").rename(package / "low" / "ground.py")
    (package / "low" / "__init__.py").write_text(
        "from course_lib.low.ground import BASE\n", encoding="utf-8"
    )
    assert digests(package)["one"] not in (first["one"], second["one"])


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The course's own package, to be changed."""
    target = tmp_path_factory.mktemp("copy") / "course_lib"
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(dependencies.PACKAGE, target, ignore=ignored)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion/sampling.py",
        "diffusion/objective.py",
        "papers/vdm.py",
        "papers/video_ldm.py",
        "recipes/mini_video.py",
        "recipes/pixel_ddpm.py",
        "pipelines/text_to_video.py",
        "evaluation.py",
        "nn/unet.py",
        "validation.py",
        "zoo/registry.py",
    ],
)
def test_the_course_s_experiments_depend_on(copied, name):
    files = dependencies.code_files("course_lib.claims", copied)
    assert copied / name in files


def test_the_digest_of_the_course_changes_with_its_experiments_and_not_with_its_lab(copied):
    before = dependencies.code_digest(package=copied)
    for room in ("lab", "bench", "exercises"):
        for file in (copied / room).glob("*.py"):
            file.write_text(file.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    assert dependencies.code_digest(package=copied) == before
    sampling = copied / "diffusion" / "sampling.py"
    sampling.write_text(sampling.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    assert dependencies.code_digest(package=copied) != before


def test_data_count_but_results_and_locks_do_not(package, tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setenv("COURSE_DATA", str(data))
    (data / "checkpoints" / "judge").mkdir(parents=True)
    (data / "clips").mkdir()
    seen = [digests(package)["two"]]
    for name in ("clips/earth.mp4", "checkpoints/SHA256SUMS", "sounds.json"):
        (data / name).write_text(name, encoding="utf-8")
        seen.append(digests(package)["two"])
    assert len(set(seen)) == 4
    for name in ("claims.json", "bench.json", ".claims.json.lock", "checkpoints/judge/README.md"):
        (data / name).write_text(name, encoding="utf-8")
    assert digests(package)["two"] == seen[-1]


def test_another_version_of_torch_is_another_experiment(package, monkeypatch):
    before = digests(package)
    monkeypatch.setattr(dependencies, "library_versions", lambda: {"torch": "0.1"})
    assert all(before[name] != digest for name, digest in digests(package).items())


def test_the_claims_of_a_lesson_share_a_digest():
    ids = [[claim.id for claim in module.CLAIMS] for module in MODULES]
    digests = [{_code_digest(id) for id in group} for group in ids]
    assert all(len(group) == 1 for group in digests)
    assert len(set().union(*digests)) == len(MODULES)
    assert _code_digest() not in set().union(*digests)
