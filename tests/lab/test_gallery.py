import base64
import json
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib.lab import gallery

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5E"
    "rkJggg=="
)


def show_pixel(alt):
    metadata = {"image/png": {"alt": alt}}
    return f"display({{'image/png': '{PIXEL}'}}, raw=True, metadata={metadata})"


def lesson(tmp_path, *code):
    intro = new_markdown_cell(
        "# 01 · Still <life>\n\nA *clip* is a [stack](x.md) of frames. And more."
    )
    notebook = new_notebook(cells=[intro, *map(new_code_cell, code)])
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    notebook.cells[0].metadata = {"tags": ["kept"], "scrolled": True}
    path = tmp_path / "01_still.ipynb"
    nbformat.write(notebook, path)
    return path


def test_in_place_run_saves_a_clean_notebook_with_static_widgets(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    show = (
        "import os\nprint('a')\n"
        "print(os.environ['COURSE_STATIC'], os.path.exists('01_still.ipynb'))"
    )
    path = lesson(tmp_path, show, show_pixel("a red dot"), "1 + 1")
    assert gallery.main(["--in-place", str(path)]) == 0
    saved = json.loads(path.read_text(encoding="utf-8"))
    code = saved["cells"][1:]
    assert [cell["execution_count"] for cell in code] == [1, 2, 3]
    assert code[0]["outputs"] == [
        {"name": "stdout", "output_type": "stream", "text": ["a\n", "1 True\n"]}
    ]
    assert code[2]["outputs"][0]["data"]["text/plain"] == ["2"]
    assert set(saved["metadata"]) == {"kernelspec", "language_info"}
    assert saved["metadata"]["kernelspec"]["name"] == "python3"
    assert saved["cells"][0]["metadata"] == {"tags": ["kept"]}
    assert all(cell["metadata"] == {} for cell in code)
    assert "images: 1" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


def test_a_failing_cell_fails_the_command_and_leaves_the_notebook_alone(tmp_path, capsys):
    path = lesson(tmp_path, "1 / 0")
    before = path.read_bytes()
    assert gallery.main(["--in-place", str(path)]) == 1
    assert "FAILED: ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert path.read_bytes() == before


def executed(alt="a red dot"):
    data, metadata = {"image/png": PIXEL}, {"image/png": {"alt": alt}}
    cell = new_code_cell("draw()", outputs=[new_output("display_data", data, metadata=metadata)])
    return new_notebook(cells=[new_markdown_cell("# Title\n\nOne. Two."), cell])


def test_gallery_links_pages_and_keeps_alternative_text(tmp_path):
    good = gallery.Lesson(tmp_path / "00_a.ipynb", executed("<a> dot"), 1.26)
    bad = gallery.Lesson(tmp_path / "01_b.ipynb", executed(), 0.1, "ValueError: no <good>")
    index = gallery.write_gallery([good, bad], tmp_path / "out", "two cores & hope")
    page = index.read_text(encoding="utf-8")
    assert 'href="00_a.html"' in page
    assert "ran in 1.3 minutes" in page
    assert "failed: ValueError: no &lt;good&gt;" in page
    assert "two cores &amp; hope" in page
    assert (tmp_path / "out" / "00_a.png").read_bytes() == base64.b64decode(PIXEL)
    html = (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")
    assert 'alt="&lt;a&gt; dot"' in html
    assert gallery.NO_ALT not in html


def test_cell_ids_follow_the_source_and_stay_unique():
    cells = [new_code_cell("a"), new_code_cell("b"), new_code_cell("b"), new_markdown_cell("b")]
    ids = [cell.id for cell in gallery.clean_notebook(new_notebook(cells=cells)).cells]
    later = [new_code_cell("before"), *(new_code_cell(source) for source in "abb")]
    assert [cell.id for cell in gallery.clean_notebook(new_notebook(cells=later)).cells][1:] == ids[
        :3
    ]
    assert len(set(ids)) == 4


def test_file_names_are_escaped(tmp_path):
    name = """0 "a" & <b>#1%20'ü.ipynb"""
    index = gallery.write_gallery([gallery.Lesson(tmp_path / name, executed(), 1.0)], tmp_path, "")
    soup = BeautifulSoup(index.read_text(encoding="utf-8"), "html.parser")
    targets = [link["href"] for link in soup.select("a")] + [soup.select_one("img")["src"]]
    assert len(targets) == 3 + len(gallery.EXPORTED_DOCS)
    for target in targets:
        assert (tmp_path / unquote(target)).is_file() and set("?#&<>\"' ").isdisjoint(target)


@pytest.mark.parametrize(
    "content", [b"", b"# text", b"[]", b"3", b"{}", b"\xff\xfe", b'{"cells": 1}']
)
def test_what_is_no_notebook_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "a.ipynb"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as error:
        gallery.main([str(lesson(tmp_path, "1")), str(path)])
    assert error.value.code == 2
    output = capsys.readouterr()
    assert f"{path}: expected a notebook" in output.err.splitlines()[-1] and not output.out


@pytest.mark.parametrize("name", ["missing.ipynb", "."])
def test_a_missing_file_is_one_line(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as error:
        gallery.main([str(tmp_path / name)])
    assert error.value.code == 2
    assert f"{tmp_path / name}: " in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    path = lesson(tmp_path, "1")
    with pytest.raises(SystemExit) as error:
        gallery.main([str(path), "--out", str(path)])
    assert error.value.code == 2
    assert "File exists" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value"), [("COURSE_PROFILE", "fast"), ("COURSE_DEVICE", "abacus")]
)
def test_a_wrong_environment_is_one_line(tmp_path, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        gallery.main([str(lesson(tmp_path, "1"))])
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert name in message and value in message


def test_a_notebook_that_cannot_be_saved_stays(tmp_path, monkeypatch):
    path = lesson(tmp_path, "1")
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        gallery.save_notebook(gallery.Lesson(path, executed(), 1.0))
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# T\n\nPlain words. More.", ("T", "Plain words.")),
        ("# T\nRight below.", ("T", "Right below.")),
        (
            "intro\n\n# T\n\n![pic](a.png)\n\n| a | b |\n\n**Bold** `code` [link](x) end",
            ("T", "Bold code link end"),
        ),
        ("no heading", ("Untitled", "")),
    ],
)
def test_lesson_title(source, expected):
    assert gallery.lesson_title(new_notebook(cells=[new_markdown_cell(source)])) == expected


def test_report_warns_of_a_big_notebook(tmp_path):
    lesson = gallery.Lesson(tmp_path / "a.ipynb", executed(), 2.0)
    assert gallery.report(lesson, 999_000) == "a.ipynb: 2.0 min, images: 1, 999 KB"
    assert "WARNING: over 1 MB" in gallery.report(lesson, 1_000_001)
