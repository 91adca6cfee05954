"""The course's look of matplotlib figures; call `style.apply_style()` at the top of a notebook."""

from pathlib import Path

import matplotlib.pyplot as plt
from IPython.core.getipython import get_ipython

STYLE_SHEET = Path(__file__).with_name("course.mplstyle")

# Okabe and Ito's colour-blind-safe palette, in the order in which plots use it
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)


def apply_style() -> None:
    """Apply `course.mplstyle` to all later figures, and let a notebook store figures as PNG."""
    plt.style.use(STYLE_SHEET)
    if get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png")
