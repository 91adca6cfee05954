"""show_claim: every run plotted at its value, the interval drawn, the verdict in words."""

from dataclasses import replace

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


def rings(axes):
    return [[tuple(spot) for spot in group.get_offsets().tolist()] for group in axes.collections]


def percent(values):
    return pytest.approx([100 * value for value in values])


def test_every_run_is_a_ring_and_every_seed_a_line(figures):
    record = load_ledger()["order-blind"]
    claim_plot.show_claim(record)
    ((figure, alt),) = figures
    arms = figure.axes[0]
    for row, (group, arm) in enumerate(zip(rings(arms), record.runs, strict=True)):
        assert [x for x, _ in group] == percent(record.values(arm))
        assert all(abs(y - row) < 0.5 for _, y in group)
    lines = [line.get_xdata() for line in arms.lines if len(line.get_xdata()) == 2][:3]
    for line, run in zip(lines, zip(*map(record.values, record.runs), strict=True), strict=True):
        assert list(line) == percent(run)
    labels = [record.arm_labels[arm] for arm in record.runs]
    assert [label.get_text() for label in arms.get_yticklabels()] == labels
    assert alt.startswith(f"test accuracy, % of 3 seeds: {labels[0]} 50, 50, 50; ")
    assert "95 % interval [+49.8, +50.1]" in alt


def test_seeds_that_coincide_stay_visible(figures):
    """f-R2D's three accuracies are equal; its rings are empty and lie one below the other."""
    claim_plot.show_claim(load_ledger()["order-blind"])
    group = figures[0][0].axes[0].collections[0]
    heights = [y for _, y in group.get_offsets()]
    assert len({round(height, 6) for height in heights}) == 3
    assert len(group.get_facecolor()) == 0


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_the_interval_that_decides_is_drawn_with_zero(id, figures):
    record = load_ledger()[id]
    claim_plot.show_claim(record)
    axes = figures[0][0].axes[1]
    factor = 100 if record.unit == "%" else 1
    zero, interval, mean = axes.lines
    assert set(zero.get_xdata()) == {0}
    assert list(interval.get_xdata()) == pytest.approx([factor * end for end in record.interval])
    assert list(mean.get_xdata()) == pytest.approx([factor * record.effect])
    differences = [x for x, _ in rings(axes)[0]]
    assert differences == pytest.approx([factor * x for x in record.differences()])
    left, right = axes.get_xlim()
    assert left <= min(0, factor * record.interval[0])
    assert right >= max(0, factor * record.interval[1])
    level = "97.5 %" if record.added_seeds else "95 %"
    assert axes.get_yticklabels()[1].get_text() == f"{level} interval"
    assert record.verdict_text() in axes.get_title(loc="right")


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_nothing_is_cut_off_and_no_text_lies_on_another(id, figures):
    claim_plot.show_claim(load_ledger()[id])
    ((figure, _),) = figures
    figure.canvas.draw()
    page = figure.bbox
    title = " ".join(figure.get_suptitle().split())
    assert title == " ".join(load_ledger()[id].statement.split())
    boxes = [figure._suptitle.get_window_extent()]
    for axes in figure.axes:
        assert axes.get_window_extent().width >= 0.4 * page.width
        boxes.append(axes.xaxis.label.get_window_extent())
        boxes.extend(label.get_window_extent() for label in axes.get_yticklabels())
    boxes.append(figure.axes[1].title.get_window_extent())
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1
        assert not any(box.overlaps(other) for other in boxes[:i] if other.width and box.width)


@pytest.mark.parametrize("id", sorted(load_ledger()))
def test_claim_verdict_effect_and_setup_are_printed(id, figures, capsys):
    record = load_ledger()[id]
    claim_plot.show_claim(record)
    text = " ".join(capsys.readouterr().out.split())
    factor, points = (100, " points") if record.unit == "%" else (1, "")
    low, high = (factor * end for end in record.interval)
    for part in (record.statement, record.verdict, f"[{low:.3g}, {high:.3g}]", record.setup):
        assert " ".join(part.split()) in text
    side = "below" if record.lower_is_better else "above"
    better, worse = (record.arm_labels[arm] for arm in (record.better, record.worse))
    assert f"{better!r} {side} {worse!r} by {factor * record.effect:.3g}{points}, " in text


def test_seeds_that_were_added_are_marked(figures, capsys):
    claim_plot.show_claim(load_ledger()["temporal-layers-need-text"])
    text = capsys.readouterr().out
    assert "Verdict: reproduced (2 seeds added), 5 seeds" in text and "97.5 % interval" in text


def test_the_two_arms_of_the_claim_stand_out(figures):
    record = load_ledger()["early-temporal-convolutions"]
    claim_plot.show_claim(record)
    colours = [
        to_hex(group.get_edgecolor()[0]).upper() for group in figures[0][0].axes[0].collections
    ]
    highlighted = {record.better: style.BLUE, record.worse: style.VERMILION}
    assert colours == [highlighted.get(arm, claim_plot.OTHER_COLOUR) for arm in record.runs]


@pytest.mark.parametrize("chance", [0.25, None])
def test_chance_is_a_line_where_there_is_one(chance, figures):
    claim_plot.show_claim(replace(load_ledger()["order-blind"], chance=chance))
    arms = figures[0][0].axes[0]
    marks = [line for line in arms.lines if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in marks] == ([] if chance is None else [[25, 25]])
    assert [text.get_text() for text in arms.texts] == ([] if chance is None else ["chance"])


def test_it_is_one_image(monkeypatch):
    images = []
    monkeypatch.setattr(show, "display", images.append)
    claim_plot.show_claim(load_ledger()["order-blind"])
    assert [type(image) for image in images] == [show.PngImage]
