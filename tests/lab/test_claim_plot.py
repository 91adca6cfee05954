"""show_claim: every run plotted at its value, the verdict in words."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from course_lib.claims import load_ledger
from course_lib.lab import claim_plot, show, style


@pytest.fixture
def figures(monkeypatch):
    """What reaches show_figure: (figure, alternative text)."""
    figures = []
    monkeypatch.setattr(claim_plot, "show_figure", lambda *args: figures.append(args))
    yield figures
    plt.close("all")


def dots(figure):
    (axes,) = figure.axes
    return [[tuple(spot) for spot in group.get_offsets().tolist()] for group in axes.collections]


def test_every_run_is_a_dot_and_every_seed_a_line(figures):
    record = load_ledger()["order-blind"]
    claim_plot.show_claim(record)
    ((figure, alt),) = figures
    assert dots(figure) == [
        [(value, row) for value in record.values(arm)] for row, arm in enumerate(record.runs)
    ]
    lines = [line.get_xdata().tolist() for line in figure.axes[0].lines]
    assert lines == [list(run) for run in zip(*map(record.values, record.runs), strict=True)]
    labels = [record.arm_labels[arm] for arm in record.runs]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == labels
    assert alt.startswith(f"{record.metric_label} of 3 seeds: {labels[0]} 0.5, 0.5, 0.5; ")


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_names_of_arms_leave_room_for_the_runs(id, figures):
    claim_plot.show_claim(load_ledger()[id])
    ((figure, _),) = figures
    (axes,) = figure.axes
    figure.canvas.draw()
    page = figure.bbox
    xlabel = axes.xaxis.label.get_window_extent()
    assert axes.get_window_extent().width >= 0.4 * page.width
    assert page.x0 <= xlabel.x0 and xlabel.x1 <= page.x1  # the metric's name is not cut off
    label = " ".join(axes.get_yticklabels()[-1].get_text().split())
    assert label == list(load_ledger()[id].arm_labels.values())[-1]


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_claim_verdict_effect_and_setup_are_printed(id, figures, capsys):
    record = load_ledger()[id]
    claim_plot.show_claim(record)
    text = " ".join(capsys.readouterr().out.split())
    low, high = record.interval
    for part in (record.statement, record.verdict, f"[{low:.3g}, {high:.3g}]", record.setup):
        assert " ".join(part.split()) in text
    side = "below" if record.lower_is_better else "above"
    better, worse = (record.arm_labels[arm] for arm in (record.better, record.worse))
    assert f"{better!r} {side} {worse!r} by {record.effect:.3g}" in text


def test_the_two_arms_of_the_claim_stand_out(figures):
    record = load_ledger()["early-temporal-convolutions"]
    claim_plot.show_claim(record)
    colours = [
        to_hex(group.get_facecolor()[0]).upper() for group in figures[0][0].axes[0].collections
    ]
    highlighted = {record.better: style.BLUE, record.worse: style.VERMILION}
    assert colours == [highlighted.get(arm, claim_plot.OTHER_COLOUR) for arm in record.runs]


def test_it_is_one_image(monkeypatch):
    images = []
    monkeypatch.setattr(show, "display", images.append)
    claim_plot.show_claim(load_ledger()["order-blind"])
    assert [type(image) for image in images] == [show.PngImage]
