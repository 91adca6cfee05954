"""The style sheet: it loads, it is opaque, its colours differ."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from course_lib.lab import style


@pytest.fixture(autouse=True)
def restore():
    with plt.rc_context():
        yield


def test_every_figure_is_opaque_and_readable():
    style.apply_style()
    assert (
        to_rgb(plt.rcParams["figure.facecolor"])
        == to_rgb(plt.rcParams["axes.facecolor"])
        == (1, 1, 1)
    )
    assert not plt.rcParams["savefig.transparent"]
    width = plt.rcParams["figure.figsize"][0] * plt.rcParams["savefig.dpi"]
    assert width <= 720  # GitHub shrinks what is wider
    smallest = min(float(plt.rcParams[f"{name}.labelsize"]) for name in ("xtick", "ytick"))
    assert smallest * plt.rcParams["savefig.dpi"] / 72 / 2 >= 9  # pixels at half size


def test_curves_differ_in_more_than_colour():
    style.apply_style()
    cycle = list(plt.rcParams["axes.prop_cycle"])
    assert len({entry["color"] for entry in cycle}) == len(cycle) == 7
    assert all(a["linestyle"] != b["linestyle"] for a, b in zip(cycle, cycle[1:], strict=False))
    named = (
        style.BLUE,
        style.VERMILION,
        style.GREEN,
        style.PURPLE,
        style.ORANGE,
        style.SKY,
        style.BLACK,
    )
    assert [to_rgb(entry["color"]) for entry in cycle] == [to_rgb(name) for name in named]
