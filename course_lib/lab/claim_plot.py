"""A claim of the ledger as a lesson shows it: all runs in one picture, and in words what they say."""

import textwrap

import matplotlib.pyplot as plt

from course_lib.claims import Record
from course_lib.lab import style
from course_lib.lab.show import show_figure

ROOM = 96  # columns of printed text
LABEL = 36  # columns of an arm's name beside its row


def show_claim(record: Record) -> None:
    """Draw a claim's runs, one dot for each seed with a thin line through the arms, and print claim and verdict.

    Blue is the arm that is claimed to be above the vermilion one (below, where less is better).

    Args:
        record: of `load_ledger()`.
    """
    low, high = record.interval
    with plt.style.context(style.SHEET):
        figure, axes = plt.subplots(figsize=(7.2, 1.2 + 0.5 * len(record.runs)))
        rows = range(len(record.runs))
        values = [record.values(arm) for arm in record.runs]
        for run in zip(*values, strict=True):  # what began with the same seed belongs together
            axes.plot(run, rows, color="#bbbbbb", linestyle="-", linewidth=1, zorder=1)
        for row, arm in enumerate(values):
            axes.scatter(arm, [row] * len(arm), s=60, color=_colour(record, row), zorder=2)
        axes.set_yticks(rows, [textwrap.fill(arm, LABEL) for arm in record.runs])
        axes.set(xlabel=record.metric, ylim=(len(values) - 0.5, -0.5))
        numbers = "; ".join(
            f"{arm} " + ", ".join(f"{v:.3g}" for v in some)
            for arm, some in zip(record.runs, values, strict=True)
        )
        show_figure(figure, f"{record.metric} of {len(record.seeds)} seeds: {numbers}")
    print(f"Claim:   {_wrapped(record.statement)}")
    print(f"Verdict: {record.verdict}, {len(record.seeds)} seeds")
    side = "below" if record.lower_is_better else "above"
    effect = f"{record.better!r} {side} {record.worse!r} by {record.effect:.3g}"
    print(
        f"Effect:  {_wrapped(f'{effect}, 95 % interval [{low:.3g}, {high:.3g}], in {record.metric}')}"
    )
    print(f"How:     {_wrapped(record.setting)}")


def _colour(record: Record, row: int) -> str:
    """The two arms that the claim compares stand out."""
    return {record.better: style.BLUE, record.worse: style.VERMILION}.get(
        list(record.runs)[row], "#777777"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, ROOM, subsequent_indent=" " * 9, break_on_hyphens=False)
