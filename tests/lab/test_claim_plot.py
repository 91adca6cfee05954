"""show_claim: every run drawn where it was measured, the verdict in words."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from course_lib.claims import load_ledger
from course_lib.lab import show, style, verdict


@pytest.fixture
def figures(monkeypatch):
    """What reaches show_figure: (figure, alternative text)."""
    found = []
    monkeypatch.setattr(verdict, "show_figure", lambda figure, alt: found.append((figure, alt)))
    yield found
    plt.close("all")


def dots(figure):
    (axes,) = figure.axes
    return [[tuple(spot) for spot in group.get_offsets().tolist()] for group in axes.collections]


def test_every_run_is_a_dot_and_every_seed_a_line(figures):
    record = load_ledger()["order-blind"]
    verdict.show_claim(record)
    ((figure, alt),) = figures
    assert dots(figure) == [
        [(value, row) for value in record.values(arm)] for row, arm in enumerate(record.runs)
    ]
    lines = [line.get_xdata().tolist() for line in figure.axes[0].lines]
    assert lines == [list(run) for run in zip(*map(record.values, record.runs), strict=True)]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(record.runs)
    assert alt.startswith("test accuracy of 3 seeds: f-r2d 0.5, 0.5, 0.5; r3d ")


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_names_of_arms_leave_room_for_the_runs(id, figures):
    verdict.show_claim(load_ledger()[id])
    ((figure, _),) = figures
    (axes,) = figure.axes
    figure.canvas.draw()
    whole, below = figure.bbox, axes.xaxis.label.get_window_extent()
    assert axes.get_window_extent().width >= 0.4 * whole.width
    assert whole.x0 <= below.x0 and below.x1 <= whole.x1  # nothing of the metric's name is cut off
    assert (
        " ".join(axes.get_yticklabels()[-1].get_text().split()) == list(load_ledger()[id].runs)[-1]
    )


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_claim_verdict_effect_and_setting_are_told(id, figures, capsys):
    record = load_ledger()[id]
    verdict.show_claim(record)
    told = " ".join(capsys.readouterr().out.split())
    low, high = record.interval
    for part in (record.statement, record.verdict, f"[{low:.3g}, {high:.3g}]", record.setting):
        assert " ".join(part.split()) in told
    side = "below" if record.lower_is_better else "above"
    assert f"{record.better!r} {side} {record.worse!r} by {record.effect:.3g}" in told


def test_the_two_arms_of_the_claim_stand_out(figures):
    record = load_ledger()["where-time-belongs"]
    verdict.show_claim(record)
    colours = [
        to_hex(group.get_facecolor()[0]).upper() for group in figures[0][0].axes[0].collections
    ]
    known = {record.better: style.BLUE, record.worse: style.VERMILION}
    assert colours == [known.get(arm, "#777777") for arm in record.runs]


def test_it_is_one_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    verdict.show_claim(load_ledger()["order-blind"])
    assert [type(picture) for picture in shown] == [show.Picture]
