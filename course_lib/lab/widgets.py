"""`explore`: sliders in a live notebook, a row of examples everywhere else."""

import math
import os
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.core.getipython import get_ipython
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from torch import Tensor

from course_lib.lab import show
from course_lib.lab.checks.present import line
from course_lib.runtime import profile
from course_lib.validation import require

MAX_EXAMPLES = 5  # in place of a control
SLIDER_STEPS = 20  # of a range of floats


def explore(f: Callable[..., Any], /, **choices: Any) -> None:
    """Call `f(**values)` whenever a control moves; without a live notebook, show a few examples.

    In tests, in a notebook that is run without a front end, and with COURSE_STATIC=1 or
    COURSE_PROFILE=ci there are no controls. The first choice then takes up to five of its values,
    the others keep their initial value, and the results are shown side by side with their values:
    plain images and text, no widget, so the saved notebook looks the same everywhere.

    Args:
        f: displays something, or returns an image (c, h, w), a clip (c, f, h, w), clips
            (b, c, f, h, w), a video pipeline's output, a figure or anything else that a notebook
            can display.
        **choices: each becomes a control. A list is a menu, which starts at its first entry. A
            tuple (low, high) or (low, high, step) of numbers is a slider, which starts in the
            middle and has steps of 1, or a twentieth of the range if an end is a float. A bool is a
            tick box.

    Raises:
        ValueError: a choice that is none of these.
    """
    require(len(choices) > 0, "choices", "at least one, such as size=(1, 9)", "none")
    for name, choice in choices.items():
        _check_choice(name, choice)
    if is_live():
        _show_controls(f, choices)
    else:
        _show_examples(f, choices)


def is_live() -> bool:
    """Whether this is a notebook that can show controls to a reader.

    A front end states with every cell whether it can be asked for input; nbclient, nbconvert,
    papermill and nbval cannot. COURSE_STATIC=1 and the ci profile switch controls off.
    """
    if os.environ.get("COURSE_STATIC") == "1" or profile() == "ci":
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    return bool(kernel.get_parent().get("content", {}).get("allow_stdin", False))


def _check_choice(name: str, choice: Any) -> None:
    is_valid = isinstance(choice, bool) or (isinstance(choice, list) and len(choice) > 0)
    if isinstance(choice, tuple) and len(choice) in (2, 3):
        is_numeric = all(isinstance(n, int | float) and not isinstance(n, bool) for n in choice)
        is_numeric = is_numeric and all(map(math.isfinite, choice))
        is_valid = is_numeric and choice[0] < choice[1] and (len(choice) == 2 or choice[2] > 0)
    expected = "a bool, a list with entries, (low, high) or (low, high, step) with low < high"
    require(is_valid, name, f"{expected} and step > 0", repr(choice))


def _slider_values(choice: tuple) -> list[int | float]:
    low, high = choice[:2]
    is_integer = all(isinstance(number, int) for number in choice)
    step = 1 if is_integer else (high - low) / SLIDER_STEPS
    if len(choice) == 3:
        step = choice[2]
    num_values = int((high - low) / step + 1e-9) + 1
    values = [low + i * step for i in range(num_values)]
    return values if is_integer else [round(value, 10) for value in values]


def _initial_value(choice: Any) -> Any:
    if isinstance(choice, tuple):
        values = _slider_values(choice)
        return values[(len(values) - 1) // 2]
    return choice[0] if isinstance(choice, list) else choice


def example_values(choice: Any) -> list[Any]:
    """Up to five evenly spaced values of a choice, both ends among them.

    Args:
        choice: as in `explore`.
    """
    values = choice
    if isinstance(choice, bool):
        values = [False, True]
    elif isinstance(choice, tuple):
        values = _slider_values(choice)
    indices = np.linspace(0, len(values) - 1, min(MAX_EXAMPLES, len(values)))
    return [values[round(i)] for i in indices]


def _label(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in values.items()
    )


def _show_examples(f: Callable[..., Any], choices: dict[str, Any]) -> None:
    """The static form: vary the first choice, side by side if `f` returns images or clips."""
    varied, *fixed = choices
    fixed_values = {name: _initial_value(choices[name]) for name in fixed}
    labels = []
    captures = []
    results = []
    for value in example_values(choices[varied]):
        labels.append(_label({varied: value}))
        # What f displays is shown later: its label comes first, and depends on what f returns
        with capture_output() as captured:
            results.append(_call(f, {varied: value, **fixed_values}))
        captures.append(captured)
    if fixed_values:
        line(f"With {_label(fixed_values)}:")
    if _same_shape(results):
        for captured in captures:
            captured.show()
        batch = torch.stack([result.detach().cpu() for result in results])
        show_batch = show.show_images if batch.ndim == 4 else show.show_video
        show_batch(batch, labels)
        return
    for label, captured, result in zip(labels, captures, results, strict=True):
        line(label)
        captured.show()
        _show_result(result, label, strip=True)


def _same_shape(results: list[Any]) -> bool:
    """Whether the results are images, or clips, of one shape: then they fit into one image."""
    if not all(isinstance(result, Tensor) for result in results):
        return False
    return len({result.shape for result in results}) == 1 and results[0].ndim in (3, 4)


def _call(f: Callable[..., Any], values: dict[str, Any]) -> Any:
    """The result of `f`, or the figures that it left open, closed so the next call has its own."""
    before = set(plt.get_fignums())
    result = f(**values)
    figures = [plt.figure(number) for number in plt.get_fignums() if number not in before]
    for figure in figures:
        plt.close(figure)
    return figures if result is None and figures else result


def _show_result(result: Any, label: str, strip: bool) -> None:
    is_figures = isinstance(result, list) and all(isinstance(item, Figure) for item in result)
    if isinstance(result, Tensor) and result.ndim == 3:
        show.show_images(result[None], alt=label)
    elif hasattr(result, "frames") or (isinstance(result, Tensor) and result.ndim in (4, 5)):
        show.show_video(result, strip=strip, alt=label)
    elif is_figures or isinstance(result, Figure):
        for figure in result if is_figures else [result]:
            show.show_figure(figure, label)
    elif result is not None:
        display(result)


def _show_controls(f: Callable[..., Any], choices: dict[str, Any]) -> None:
    """The live form: one control for each choice, "drawing …" while `f` works, the result."""
    import ipywidgets

    status = ipywidgets.Label()  # keeps its line when it is empty: the result does not jump

    def draw(**values: Any) -> None:
        status.value = "drawing …"
        try:
            _show_result(_call(f, values), _label(values), strip=False)
        finally:
            status.value = ""

    style = {"description_width": f"{max(map(len, choices)) + 1}ch"}  # one left edge for all
    controls = {name: _control(ipywidgets, name, choice, style) for name, choice in choices.items()}
    output = ipywidgets.interactive_output(draw, controls)
    display(ipywidgets.VBox([*controls.values(), status, output]))


def _control(ipywidgets: Any, name: str, choice: Any, style: dict[str, str]) -> Any:
    common = {"description": name, "value": _initial_value(choice), "style": style}
    if isinstance(choice, bool):
        return ipywidgets.Checkbox(**common)
    if isinstance(choice, tuple):
        # not continuous: a model is not run for every pixel that a slider moves
        values = _slider_values(choice)
        return ipywidgets.SelectionSlider(options=values, continuous_update=False, **common)
    return ipywidgets.Dropdown(options=choice, **common)
