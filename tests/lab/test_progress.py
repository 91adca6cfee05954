"""Progress on disk, with two notebooks at once."""

import json

import pytest

from course_lib.lab.checks import present, progress


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A progress file that does not exist yet, in a new kernel."""
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(progress, "_solved", {})
    monkeypatch.setattr(progress, "_shown_notices", set())
    return tmp_path / "progress.json"


def test_what_another_notebook_stores_meanwhile_stays(file, monkeypatch):
    read = progress._read
    solved = {"98.2": "2020-02-20", "98.1": "2020-02-21"}

    def read_and_let_another_write():
        stored = read()
        if not file.exists():
            content = {"format": progress.FORMAT, "solved": solved}
            file.write_text(json.dumps(content), encoding="utf-8")
        return stored

    monkeypatch.setattr(progress, "_read", read_and_let_another_write)
    progress.record_solved("98.1")
    progress.record_solved("98.3")
    stored = json.loads(file.read_text(encoding="utf-8"))["solved"]
    assert stored.keys() == {"98.1", "98.2", "98.3"}
    assert stored["98.1"] == "2020-02-21"  # the first date counts


def test_a_file_that_another_notebook_damages_meanwhile_is_left_alone(file, monkeypatch):
    notices = []
    monkeypatch.setattr(present, "display", notices.append)
    file.write_text("{", encoding="utf-8")
    progress.record_solved("98.1")
    assert file.read_text(encoding="utf-8") == "{" and len(notices) == 1
    assert "progress.json: expected JSON in UTF-8" in repr(notices[0])
