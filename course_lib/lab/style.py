"""The course's one look for matplotlib figures; call `style.use()` once at the top of a notebook."""

from pathlib import Path

import matplotlib.pyplot as plt
from IPython.core.getipython import get_ipython

SHEET = Path(__file__).with_name("course.mplstyle")

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
"""Okabe and Ito's colour-blind-safe palette, in the order in which plots use it."""


def use() -> None:
    """Apply `course.mplstyle` to every later figure, and have a notebook store figures as PNG."""
    plt.style.use(SHEET)
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png")
