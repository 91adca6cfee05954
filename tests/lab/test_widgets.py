"""explore: static examples without a front end, controls with one."""

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from course_lib.lab import show, widgets
from course_lib.lab.checks import present


@pytest.fixture
def shown(monkeypatch):
    """Everything displayed, in order."""
    things = []
    for module in (show, present, widgets):
        monkeypatch.setattr(module, "display", things.append)
    return things


def test_examples_stand_for_a_choice():
    assert widgets.example_values(True) == [False, True]
    assert widgets.example_values(["a", "b"]) == ["a", "b"]
    assert widgets.example_values(list("abcdefghi")) == ["a", "c", "e", "g", "i"]
    assert widgets.example_values((0, 8)) == [0, 2, 4, 6, 8]
    assert widgets.example_values((1, 3)) == [1, 2, 3]
    assert widgets.example_values((0, 1, 0.5)) == [0.0, 0.5, 1.0]
    assert widgets.example_values((0.0, 1.0)) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_images_stand_side_by_side(shown):
    calls = []

    def f(level, dim, mode):
        calls.append((level, dim, mode))
        return torch.full((3, 8, 8), level)

    widgets.explore(f, level=(-1.0, 1.0), dim=(1, 9), mode=["x", "y"])
    assert calls == [(level, 5, "x") for level in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    assert [repr(thing) for thing in shown] == [
        "With dim = 5, mode = x:",
        "[image: image of 5: level = -1; level = -0.5; level = 0; level = 0.5; level = 1]",
    ]


def test_clips_stand_side_by_side(shown):
    widgets.explore(lambda on: torch.full((3, 4, 8, 8), 2 * on - 1.0), on=True)
    assert repr(shown[0]) == "[image: animation of 2: on = False; on = True]" and len(shown) == 2


def test_other_results_follow_their_labels(shown, capsys):
    def f(n):
        print(f"printed {n}")
        return {"n": n}

    widgets.explore(f, n=(1, 2))
    assert [repr(thing) for thing in shown] == ["n = 1", "{'n': 1}", "n = 2", "{'n': 2}"]
    assert capsys.readouterr().out == "printed 1\nprinted 2\n"


def test_figures_are_shown_in_their_place_and_closed(shown):
    plt.close("all")  # what other tests of this process have left open
    widgets.explore(lambda n: plt.figure(), n=(1, 2))
    widgets.explore(lambda n: plt.figure() and None, n=(1, 2))
    assert [repr(thing) for thing in shown] == [
        "n = 1",
        "[image: n = 1]",
        "n = 2",
        "[image: n = 2]",
    ] * 2
    assert plt.get_fignums() == []


def test_clips_of_different_length_are_shown_one_by_one(shown):
    widgets.explore(lambda f: torch.zeros(3, f, 8, 8), f=(1, 2))
    assert [repr(thing) for thing in shown] == [
        *("f = 1", "[image: f = 1]", "[image: film strip: f = 1]"),
        *("f = 2", "[image: f = 2]", "[image: film strip: f = 2]"),
    ]


@pytest.mark.parametrize(
    "choice", [3, "abc", [], (1,), (2, 1), (1, 2, 0), ("a", "b"), (True, False), None]
)
def test_an_invalid_choice_is_named(choice):
    with pytest.raises(ValueError, match="size: expected a bool, a list with entries"):
        widgets.explore(print, size=choice)


def test_no_choice():
    with pytest.raises(ValueError, match="choices: expected at least one"):
        widgets.explore(print)


class FrontEnd:
    """A stand-in for IPython in a kernel."""

    def __init__(self, allow_stdin):
        self.kernel = self
        self.message = {"content": {"allow_stdin": allow_stdin}}

    def get_parent(self):
        return self.message


def test_live_needs_a_reader(monkeypatch):
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    assert not widgets.is_live()  # no kernel
    monkeypatch.setattr(widgets, "get_ipython", lambda: FrontEnd(False))
    assert not widgets.is_live()
    monkeypatch.setattr(widgets, "get_ipython", lambda: FrontEnd(True))
    assert widgets.is_live()
    monkeypatch.setenv("COURSE_PROFILE", "ci")
    assert not widgets.is_live()
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    monkeypatch.setenv("COURSE_STATIC", "1")
    assert not widgets.is_live()


def test_controls_drive_the_function(monkeypatch):
    things, calls = [], []
    monkeypatch.setattr(widgets, "display", things.append)
    monkeypatch.setattr(widgets, "is_live", lambda: True)
    statuses = []

    def record(**values):
        calls.append(values)
        if things:
            statuses.append(things[0].children[3].value)

    widgets.explore(record, size=(0, 8, 2), kind=["a", "b"], on=True)
    size, kind, on, status, _ = things[0].children
    assert calls == [{"size": 4, "kind": "a", "on": True}]
    size.value, kind.value, on.value = 6, "b", False
    assert calls[-1] == {"size": 6, "kind": "b", "on": False} and len(calls) == 4
    assert statuses == ["drawing …"] * 3 and status.value == ""


def test_an_executed_notebook_is_static_and_keeps_no_widget(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_STATIC", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "cpu")  # so that only the missing front end can tell
    source = (
        "import torch\nfrom course_lib.lab import style, widgets\nstyle.apply_style()\n"
        "widgets.explore(lambda n: torch.zeros(3, 4, 8, 8), n=(1, 3))\n"
        "import matplotlib.pyplot as plt\n"
        "widgets.explore(lambda n: plt.plot([0, n]) and None, n=(1, 2))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": "."}}).execute()
    assert "widgets" not in notebook.metadata
    kinds = [sorted(output.data) for output in notebook.cells[0].outputs]
    image = ["image/png", "text/plain"]
    text = ["text/markdown", "text/plain"]
    assert kinds == [image, image, text, image, text, image]
    first = notebook.cells[0].outputs[0]
    assert first.metadata["image/png"]["alt"] == "animation of 3: n = 1; n = 2; n = 3"
