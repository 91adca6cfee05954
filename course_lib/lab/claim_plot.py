"""A claim of the ledger as a lesson shows it: all runs in one figure, and the verdict in words."""

import textwrap

import matplotlib.pyplot as plt

from course_lib.claims import Record
from course_lib.lab import style
from course_lib.lab.show import show_figure

TEXT_COLUMNS = 96
LABEL_COLUMNS = 36
OTHER_COLOUR = "#777777"


def show_claim(record: Record) -> None:
    """Plot a claim's runs, one dot per arm and seed, and print statement and verdict.

    A thin line joins the arms of a seed. The arm that is claimed to be above the vermilion one
    (below, where less is better) is blue.

    Args:
        record: an entry of `load_ledger()`.
    """
    colours = {record.better: style.BLUE, record.worse: style.VERMILION}
    values = {arm: record.values(arm) for arm in record.runs}
    rows = range(len(values))
    with plt.style.context(style.STYLE_SHEET):
        figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.5 * len(values)))
        for seed_values in zip(*values.values(), strict=True):
            axes.plot(seed_values, rows, color="#bbbbbb", linestyle="-", linewidth=1, zorder=1)
        for row, (arm, arm_values) in enumerate(values.items()):
            colour = colours.get(arm, OTHER_COLOUR)
            axes.scatter(arm_values, [row] * len(arm_values), s=60, color=colour, zorder=2)
        labels = [textwrap.fill(record.arm_labels[arm], LABEL_COLUMNS) for arm in values]
        axes.set_yticks(rows, labels)
        xlabel = textwrap.fill(record.metric_label, LABEL_COLUMNS)
        axes.set(xlabel=xlabel, ylim=(len(values) - 0.5, -0.5))
        numbers = "; ".join(
            f"{record.arm_labels[arm]} " + ", ".join(f"{value:.3g}" for value in arm_values)
            for arm, arm_values in values.items()
        )
        show_figure(figure, f"{record.metric_label} of {len(record.seeds)} seeds: {numbers}")
    low, high = record.interval
    effect = (
        f"{record.arm_labels[record.better]!r} {'below' if record.lower_is_better else 'above'} "
        f"{record.arm_labels[record.worse]!r} by {record.effect:.3g}, "
        f"95 % interval [{low:.3g}, {high:.3g}], in {record.metric_label}"
    )
    print(_wrap(f"Claim:   {record.statement}"))
    print(_wrap(f"Verdict: {record.verdict}, {len(record.seeds)} seeds"))
    print(_wrap(f"Effect:  {effect}"))
    print(_wrap(f"Setup:   {record.setup}"))


def _wrap(text: str) -> str:
    return textwrap.fill(
        text, TEXT_COLUMNS, subsequent_indent=" " * 9, break_on_hyphens=False, drop_whitespace=True
    )
