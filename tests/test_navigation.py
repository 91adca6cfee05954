"""From lesson to lesson: links, the tables of lessons, the map, and what JupyterLab serves."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from course_lib.lab.gallery import Lesson, read_notebook, write_gallery
from course_lib.lab.offline_page import EXPORTED_DOCS
from tests.jupyter_server import served, status
from tools import write_navigation

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def cells(path, tag=""):
    """The Markdown cells of a notebook, all or those with a tag, as text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    chosen = [cell for cell in notebook["cells"] if write_navigation.is_markdown(cell, tag)]
    return ["".join(cell["source"]) for cell in chosen]


def relative_links(path):
    """Links of a notebook's prose to files of the course, without fragments."""
    prose = re.sub(r"(`+)(?!`).+?\1", "", "\n\n".join(cells(path)))
    parts = [urlsplit(link) for link in LINK.findall(prose)]
    return sorted({unquote(part.path) for part in parts if part.path and not part.scheme})


# The notebooks as they are


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestLesson:
    def test_links_stand_below_the_title_and_at_the_end(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))["cells"]
        places = [
            i for i, c in enumerate(notebook) if write_navigation.is_markdown(c, "navigation")
        ]
        assert places == [1, len(notebook) - 1], "run python tools/write_navigation.py"
        assert len(set(cells(path, "navigation"))) == 1

    def test_links_lead_to_the_neighbours(self, path):
        place = NOTEBOOKS.index(path)
        neighbours = [NOTEBOOKS[i].name for i in (place - 1, place + 1) if 0 <= i < len(NOTEBOOKS)]
        line = cells(path, "navigation")[0]
        links = [
            link for link in LINK.findall(line) if not link.endswith(f"#{'Where-to-go-from-here'}")
        ]
        assert links == neighbours
        assert all((path.parent / link).is_file() for link in links)

    def test_no_ending_was_written_by_hand(self, path):
        endings = [text for text in cells(path) if write_navigation.ENDING.search(text)]
        assert endings == []

    def test_it_says_how_long_it_takes(self, path):
        prose = "\n\n".join(cells(path))
        assert write_navigation.RUN.search(prose), "**Measured:** so many minutes"
        assert write_navigation.READING.search(prose), "Reading and exercises: about …"


def test_no_file_is_out_of_date(capsys):
    assert write_navigation.main(["--check"]) == 0, capsys.readouterr().err


def test_lesson_00_counts_the_lessons_once():
    prose = "\n\n".join(cells(NOTEBOOKS[0]))
    assert re.findall(r"(\d+) of \d+ lessons", prose) == [str(len(NOTEBOOKS))]


def test_the_readme_says_how_many_models_were_not_trained_on_two_cores():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [row for row in readme.splitlines() if row.startswith("| [`")]
    assert len(rows) == len(list((ROOT / "data" / "checkpoints").rglob("evaluation.json")))
    elsewhere = [row for row in rows if "| 2 CPU cores |" not in row]
    assert len(elsewhere) == 1 and "all but one of the models that ship" in readme


# The tool


@pytest.fixture
def course(tmp_path):
    """A course of lessons 00, 01 and 03, of which 02 is planned."""
    rows = [f"| 0{n} | *Lesson {n}* | something | |" for n in range(4)]
    table = "\n".join(["| | lesson | what | x |", "|---|---|---|---|", *rows])
    readme = f"# Course\n\n{table}\n\nThe end.\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    (tmp_path / "notebooks" / "images").mkdir(parents=True)
    (tmp_path / "notebooks" / "images" / "course_map.svg").write_text("", encoding="utf-8")
    for number in ("00", "01", "03"):
        sources = {"title": f"# {number}\n\nHello.\n\n**Measured:** 30 seconds."}
        sources["end"] = "## References\n\n- Book.\n\nNext: lesson 04, which\ndoes not exist."
        prose = [
            {"cell_type": "markdown", "id": name, "metadata": {}, "source": [text]}
            for name, text in sources.items()
        ]
        if number == "00":
            tags = {"tags": ["contents"]}
            prose.append({"cell_type": "markdown", "id": "x", "metadata": tags, "source": []})
        path = tmp_path / "notebooks" / f"{number}_a.ipynb"
        path.write_text(json.dumps({"cells": prose}), encoding="utf-8")
    return tmp_path


def test_it_writes_links_tables_and_map(course, capsys):
    assert write_navigation.main(["--check"], course) == 1
    assert "00_a.ipynb" in capsys.readouterr().err
    assert write_navigation.main([], course) == 0
    middle = cells(course / "notebooks" / "01_a.ipynb")
    line = (
        "← [00 · Lesson 0](00_a.ipynb) | [contents](00_a.ipynb#Where-to-go-from-here) | "
        "next that is ready: [03 · Lesson 3](03_a.ipynb) →"
    )
    hello, end = "Hello.\n\n**Measured:** 30 seconds.", "## References\n\n- Book."
    assert middle == ["# 01", line, hello, end, line]
    assert cells(course / "notebooks" / "03_a.ipynb")[-1].endswith("the last lesson so far")
    readme = (course / "README.md").read_text(encoding="utf-8")
    assert "| 01 | [Lesson 1](notebooks/01_a.ipynb) | something | 0.5 | |\n" in readme
    assert "| 02 | *Lesson 2* | something | | |\n" in readme and readme.endswith("\n\nThe end.\n")
    assert "3 of 4 lessons are ready" in cells(course / "notebooks" / "00_a.ipynb", "contents")[0]
    drawn = (course / "notebooks" / "images" / "course_map.svg").read_text(encoding="utf-8")
    assert drawn.count("stroke-dasharray") == 15 and "Planned: 02, 04, 05" in drawn


def test_another_run_changes_nothing_and_a_new_lesson_is_found(course, capsys):
    write_navigation.main([], course)
    files = [path for path in course.rglob("*.*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    capsys.readouterr()
    assert write_navigation.main([], course) == 0 == write_navigation.main(["--check"], course)
    assert capsys.readouterr().err == ""
    assert [path.read_bytes() for path in files] == before
    notebooks = course / "notebooks"
    shutil.copy(notebooks / "01_a.ipynb", notebooks / "02_a.ipynb")
    assert write_navigation.main(["--check"], course) == 1
    write_navigation.main([], course)
    assert "next: [02 · Lesson 2](02_a.ipynb)" in cells(notebooks / "01_a.ipynb")[-1]
    assert write_navigation.main(["--check"], course) == 0


def test_a_lesson_that_the_readme_does_not_know_is_refused(course):
    notebooks = course / "notebooks"
    shutil.copy(notebooks / "01_a.ipynb", notebooks / "09_a.ipynb")
    with pytest.raises(ValueError, match="no row for 09"):
        write_navigation.main([], course)


# JupyterLab


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not importlib.util.find_spec("jupyterlab"):
        pytest.skip("JupyterLab is not installed: make setup")
    with served(tmp_path_factory.mktemp("jupyter")) as running:
        yield running


def test_jupyterlab_prints_its_address_with_the_token(server):
    port, token, log = server
    said = log.read_text(encoding="utf-8", errors="replace")
    assert f"localhost:{port}/lab/tree/notebooks/00_start_here.ipynb?token=" in said
    assert status(port, token, "lab/tree/notebooks/00_start_here.ipynb") == 200
    assert status(port, "wrong", "api/contents/README.md") == 403


def test_jupyterlab_serves_every_link_of_every_lesson(server):
    port, token, _ = server
    linked = set()
    for path in NOTEBOOKS:
        for link in relative_links(path):
            target = os.path.normpath(path.parent / link)
            linked.add(Path(target).relative_to(ROOT).as_posix())
    assert any(link.startswith("data/checkpoints/") for link in linked)
    missing = []
    for link in sorted({*linked, "install.py", "course_lib/runtime.py"}):
        kind = "api/contents" if (ROOT / link).is_dir() else "files"
        if status(port, token, f"{kind}/{link}") != 200:
            missing.append(link)
    assert missing == []


# Exported pages


def test_links_between_exported_pages_answer(tmp_path):
    """Of all lessons together, as `make course` writes them, and of the pages of docs/."""
    write_gallery([Lesson(path, read_notebook(path), 1.0) for path in NOTEBOOKS], tmp_path, "")
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    assert len(pages) == 1 + len(NOTEBOOKS) + len(EXPORTED_DOCS)
    ids = {name: set(re.findall(r'\bid="([^"]+)"', page)) for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in re.findall(r'<a\b[^>]*\bhref="([^"]+)"', page):
            parts = urlsplit(link)
            target = parts.path or name
            places = ids.get(target, set())  # an id of a heading is itself in percent-encoding
            known = not parts.fragment or {parts.fragment, unquote(parts.fragment)} & places
            if not parts.scheme and not (target in pages and known):
                broken.append(f"{name}: {link}")
    assert broken == []
