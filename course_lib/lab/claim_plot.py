"""A claim of the ledger as a lesson shows it: runs, differences, interval and verdict."""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from course_lib.claims import Record
from course_lib.lab import style
from course_lib.lab.show import show_figure

TEXT_COLUMNS = 96
LABEL_COLUMNS = 28
XLABEL_COLUMNS = 38
TITLE_COLUMNS = 70
OTHER_COLOUR = "#777777"
# Dots are rings, and the seeds of an arm lie one below the other: equal values stay visible
RINGS = {"s": 60, "facecolors": "none", "linewidths": 2, "zorder": 2}
SPREAD = 0.36


def show_claim(record: Record) -> None:
    """Plot a claim's runs and the interval that decides, and print statement and verdict.

    Above, a ring per arm and seed; a thin line joins the arms of a seed. The arm that is claimed to
    be above the vermilion one (below, where less is better) is blue. Below, a ring per seed for
    their difference, positive in favour of the claim, with its mean, its interval and a line at
    zero.

    Args:
        record: an entry of `load_ledger()`.
    """
    labels = [textwrap.fill(record.arm_labels[arm], LABEL_COLUMNS) for arm in record.runs]
    row_height = max(0.5, *(0.21 * (label.count("\n") + 1.3) for label in labels))
    arms_height = row_height * len(labels)
    title = textwrap.fill(record.statement, TITLE_COLUMNS, break_on_hyphens=False)
    height = 3.1 + arms_height + 0.28 * (title.count("\n") + 1)
    with plt.style.context(style.STYLE_SHEET):
        figure, (arms, difference) = plt.subplots(
            2, figsize=(7.2, height), height_ratios=(arms_height, 1.0)
        )
        figure.suptitle(title, fontsize=14, x=0.01, ha="left")
        _plot_arms(arms, record, labels)
        _plot_difference(difference, record)
        for axes in (arms, difference):
            axes.locator_params(axis="x", nbins=6)
        show_figure(figure, _alt(record))
    low, high = (_shown(record, end) for end in record.interval)
    points = " points" if record.unit == "%" else ""
    effect = (
        f"{record.arm_labels[record.better]!r} {'below' if record.lower_is_better else 'above'} "
        f"{record.arm_labels[record.worse]!r} by {_shown(record, record.effect):.3g}{points}, "
        f"{record.interval_name()} [{low:.3g}, {high:.3g}], in {_metric(record)}"
    )
    print(_wrap(f"Claim:   {record.statement}"))
    print(_wrap(f"Verdict: {record.verdict_text()}, {len(record.seeds)} seeds"))
    print(_wrap(f"Effect:  {effect}"))
    print(_wrap(f"Setup:   {record.setup}"))


def _plot_arms(axes: Axes, record: Record, labels: list[str]) -> None:
    """A row per arm, a ring per seed."""
    colours = {record.better: style.BLUE, record.worse: style.VERMILION}
    values = {arm: [_shown(record, x) for x in record.values(arm)] for arm in record.runs}
    offsets = _offsets(len(record.seeds))
    for seed_values, offset in zip(zip(*values.values(), strict=True), offsets, strict=True):
        rows = [row + offset for row in range(len(values))]
        axes.plot(seed_values, rows, color="#bbbbbb", linestyle="-", linewidth=1, zorder=1)
    for row, (arm, arm_values) in enumerate(values.items()):
        colour = colours.get(arm, OTHER_COLOUR)
        axes.scatter(arm_values, [row + offset for offset in offsets], edgecolors=colour, **RINGS)
    if record.chance is not None:
        chance = _shown(record, record.chance)
        axes.axvline(chance, color="#444444", linestyle=":", linewidth=2, zorder=0)
        place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
        axes.annotate(
            "chance", (chance, 1), xycoords=("data", "axes fraction"), fontsize=12, **place
        )
    axes.set_yticks(range(len(values)), labels)
    preference = " (less is better)" if record.lower_is_better else ""
    xlabel = textwrap.fill(f"{_metric(record)}{preference}", XLABEL_COLUMNS)
    axes.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))


def _plot_difference(axes: Axes, record: Record) -> None:
    """The differences of the claim's two arms, their mean, its interval, and zero."""
    differences = [_shown(record, x) for x in record.differences()]
    mean, low, high = (_shown(record, x) for x in (record.effect, *record.interval))
    axes.axvline(0, color="black", linestyle="-", linewidth=1.5, zorder=0)
    ends = {"linestyle": "-", "linewidth": 3, "marker": "|", "markersize": 14, "zorder": 3}
    axes.plot([low, high], [1, 1], color="black", **ends)
    axes.plot([mean], [1], color="black", marker="D", markersize=8, zorder=4)
    rows = [1.5 * offset for offset in _offsets(len(differences))]
    axes.scatter(differences, rows, edgecolors=OTHER_COLOUR, **RINGS)
    first, second = (record.arm_labels[arm] for arm in (record.better, record.worse))
    if record.lower_is_better:
        first, second = second, first
    unit = "percentage points" if record.unit == "%" else _metric(record)
    axes.set_yticks([0, 1], ["differences", record.interval_name()])
    label = textwrap.fill(f"{first} minus {second}, {unit}", XLABEL_COLUMNS, break_on_hyphens=False)
    axes.set(xlabel=label, ylim=(1.5, -0.6))
    heading = f"above 0 supports the claim: {record.verdict_text()}"
    axes.set_title(heading, fontsize=13, loc="right")
    axes.grid(False, axis="y")


def _offsets(num_seeds: int) -> list[float]:
    """Where the ring of every seed lies below or above the middle of its row."""
    return [SPREAD * (i / max(1, num_seeds - 1) - 0.5) for i in range(num_seeds)]


def _shown(record: Record, value: float) -> float:
    return 100 * value if record.unit == "%" else value


def _metric(record: Record) -> str:
    """The metric's name with its unit."""
    return record.metric_label + (f", {record.unit}" if record.unit else "")


def _alt(record: Record) -> str:
    """The figure in words."""
    arms = "; ".join(
        f"{record.arm_labels[arm]} "
        + ", ".join(f"{_shown(record, value):.3g}" for value in record.values(arm))
        for arm in record.runs
    )
    differences = ", ".join(f"{_shown(record, value):+.3g}" for value in record.differences())
    mean, low, high = (_shown(record, x) for x in (record.effect, *record.interval))
    return (
        f"{_metric(record)} of {len(record.seeds)} seeds: {arms}. Differences in favour of the "
        f"claim: {differences}; mean {mean:+.3g}, {record.interval_name()} "
        f"[{low:+.3g}, {high:+.3g}]"
    )


def _wrap(text: str) -> str:
    return textwrap.fill(
        text, TEXT_COLUMNS, subsequent_indent=" " * 9, break_on_hyphens=False, drop_whitespace=True
    )
