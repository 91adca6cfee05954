"""Valid calls of course_lib.lab: what a notebook shows."""

import numpy as np

from course_lib.lab import show
from tests.fuzz.args import A, F, N, P, R, S, Y
from tests.fuzz.harness import add

LEVELS = (np.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3) % 251).astype(np.uint8)


def shown(function):
    """A call whose result is what the notebook is given."""

    def call(**kwargs):
        outputs = []
        before = show.display
        show.display = lambda *items, **_: outputs.extend(items)
        try:
            function(**kwargs)
        finally:
            show.display = before
        return [vars(item) if hasattr(item, "__dict__") else item for item in outputs]

    return call


SCALE = N(2)
CAPTIONS = P(2, allows="None numbers")
add(
    "lab.show.show_video",
    shown(show.show_video),
    video=F("b 3 f h w", b=2, f=3, allows="second_axis_of_1 no_first_axis NumPy_array"),
    captions=CAPTIONS,
    fps=R(8.0, 1e-9),
    scale=SCALE,
    strip=Y(),
    strip_frames=N(2),
    colours=N(16, low=2, high=256),
    alt="x",
)
add(
    "lab.show.show_images",
    shown(show.show_images),
    images=F("b 3 h w", b=2, allows="second_axis_of_1 NumPy_array"),
    captions=CAPTIONS,
    columns=N(2),
    scale=SCALE,
    alt="x",
)
add(
    "lab.show.show_flow", shown(show.show_flow),
    flow=F("b 2 f h w", b=2, f=2), captions=CAPTIONS, max_flow=R(2.0, 1e-9), fps=R(8.0, 1e-9),
    strip=Y(),
)  # fmt: skip
add("lab.encode.encode_png", image=A(LEVELS[0], allows="first_axis_of_1"))
add(
    "lab.encode.encode_apng",
    frames=A(LEVELS, allows="first_axis_of_1"),
    fps=R(8.0, 1e-9),
    colours=N(16, low=2, high=256),
)
add("lab.flow.flow_to_rgb", flow=F("n 2 h w"), max_flow=R(2.0, 1e-9))
add(
    "lab.conv_animations.signed_colours", values=F("b 1 f h w"), gain=R(4.0, 1e-9),
)  # fmt: skip


add(
    "lab.show.show_curves", lambda values, **kwargs: show.show_curves({"a": values}, **kwargs),
    {"values": "curves"}, values=F("n"), xlabel="x", ylabel="y", logy=Y(False),
)  # fmt: skip
add(
    "lab.show.show_bars", lambda value, **kwargs: show.show_bars({"a": value, "b": 1.0}, **kwargs),
    {"value": "bars"}, value=R(0.5), xlabel=S("x"),
)  # fmt: skip
