"""`explore`: sliders where somebody can move them, a row of examples everywhere else."""

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

MOST = 5  # examples in place of a control


def explore(f: Callable[..., Any], /, **choices: Any) -> None:
    """Call `f(**values)` whenever a control moves; without a reader at the controls, show a few examples.

    Each choice becomes a control: a list (a menu; starts at its first entry), a tuple (low, high) or
    (low, high, step) of numbers (a slider; starts in the middle; steps of 1, or a twentieth of the way if
    either end is a float), or a bool (a tick box).
    `f` displays something, or returns an image (c, h, w), a clip (c, f, h, w), clips (b, c, f, h, w), a
    figure or anything else that a notebook can display.

    Controls need a live notebook with somebody at it. In tests, in any notebook that is run without a front
    end, and with COURSE_STATIC=1 or COURSE_PROFILE=ci, the first choice takes up to five of its values, the
    others stay where they start, and the results stand side by side with their values: plain pictures and
    text, no widget, so that the saved notebook reads the same everywhere.
    Raises ValueError, naming it, for a choice that is none of the above.
    """
    if not choices:
        raise ValueError("explore needs at least one choice, such as size=(1, 9)")
    for name, choice in choices.items():
        _check(name, choice)
    if is_live():
        _controls(f, choices)
    else:
        _examples(f, choices)


def is_live() -> bool:
    """Whether a reader sits at a notebook that can show controls.

    A front end says with every cell whether it can be asked for input; nbclient, nbconvert, papermill and
    nbval say that they cannot, and so does COURSE_STATIC=1 or the ci profile for all of them.
    """
    if os.environ.get("COURSE_STATIC") == "1" or profile() == "ci":
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    return bool(kernel.get_parent().get("content", {}).get("allow_stdin", False))


def _check(name: str, choice: Any) -> None:
    if isinstance(choice, bool) or (isinstance(choice, list) and choice):
        return
    numbers = isinstance(choice, tuple) and all(
        isinstance(end, int | float) and not isinstance(end, bool) for end in choice
    )
    if (
        numbers
        and len(choice) in (2, 3)
        and choice[0] < choice[1]
        and (len(choice) == 2 or choice[2] > 0)
    ):
        return
    raise ValueError(
        f"{name} must be a bool, a list with entries, (low, high) or (low, high, step) with low < high and "
        f"step > 0; got {choice!r}"
    )


def _grid(choice: tuple) -> list[int | float]:
    """Every value of a slider."""
    low, high = choice[:2]
    whole = all(isinstance(end, int) for end in choice)
    step = choice[2] if len(choice) == 3 else 1 if whole else (high - low) / 20
    count = int((high - low) / step + 1e-9) + 1
    return [low + i * step if whole else round(low + i * step, 10) for i in range(count)]


def _start(choice: Any) -> Any:
    if isinstance(choice, tuple):
        grid = _grid(choice)
        return grid[(len(grid) - 1) // 2]
    return choice[0] if isinstance(choice, list) else choice


def examples_of(choice: Any) -> list[Any]:
    """Up to five values that stand for a choice: both ends, and evenly spaced between."""
    values = (
        [False, True]
        if isinstance(choice, bool)
        else _grid(choice)
        if isinstance(choice, tuple)
        else choice
    )
    return [values[round(i)] for i in np.linspace(0, len(values) - 1, min(MOST, len(values)))]


def _label(values: dict[str, Any]) -> str:
    words = {
        name: f"{value:.4g}" if isinstance(value, float) else value
        for name, value in values.items()
    }
    return ", ".join(f"{name} = {value}" for name, value in words.items())


def _examples(f: Callable[..., Any], choices: dict[str, Any]) -> None:
    """The static form: vary the first choice, side by side if `f` returns pictures."""
    first, *rest = choices
    others = {name: _start(choices[name]) for name in rest}
    labels, shown, results = [], [], []
    for value in examples_of(choices[first]):
        labels.append(_label({first: value}))
        # What f displays is held back: its label comes first, and that depends on what f returns.
        with capture_output() as captured:
            results.append(_call(f, {first: value, **others}))
        shown.append(captured)
    if others:
        line(f"With {_label(others)}:")
    if _are_alike(results):
        for captured in shown:
            captured.show()
        together = torch.stack([result.detach().cpu() for result in results])
        (show.show_images if together.ndim == 4 else show.show_video)(together, labels)
        return
    for label, captured, result in zip(labels, shown, results, strict=True):
        line(label)
        captured.show()
        _show(result, label, strip=True)


def _are_alike(results: list[Any]) -> bool:
    """Whether they are images, or clips, of one shape: then they fit in one picture."""
    tensors = all(isinstance(result, Tensor) for result in results)
    return tensors and len({result.shape for result in results}) == 1 and results[0].ndim in (3, 4)


def _call(f: Callable[..., Any], values: dict[str, Any]) -> Any:
    """What `f` returns, or the figures it has left open; closed, or the next call would draw into them."""
    before = set(plt.get_fignums())
    result = f(**values)
    left = [plt.figure(number) for number in plt.get_fignums() if number not in before]
    for figure in left:
        plt.close(figure)
    return left if result is None and left else result


def _show(result: Any, label: str, strip: bool) -> None:
    if result is None:
        return
    if isinstance(result, Tensor) and result.ndim == 3:
        show.show_images(result[None], alt=label)
    elif isinstance(result, Tensor) and result.ndim in (4, 5):
        show.show_video(result, strip=strip, alt=label)
    elif isinstance(result, list) and all(isinstance(part, Figure) for part in result):
        for figure in result:
            show.show_figure(figure, label)
    elif isinstance(result, Figure):
        show.show_figure(result, label)
    else:
        display(result)


def _controls(f: Callable[..., Any], choices: dict[str, Any]) -> None:
    """The live form: one control for each choice, and the result below them."""
    import ipywidgets

    controls = {name: _control(ipywidgets, name, choice) for name, choice in choices.items()}
    output = ipywidgets.interactive_output(
        lambda **values: _show(_call(f, values), _label(values), strip=False), controls
    )
    display(ipywidgets.VBox([*controls.values(), output]))


def _control(ipywidgets: Any, name: str, choice: Any) -> Any:
    # continuous_update=False: a model is not run for every pixel that a slider moves
    common = {
        "description": name,
        "value": _start(choice),
        "style": {"description_width": "initial"},
    }
    if isinstance(choice, bool):
        return ipywidgets.Checkbox(**common)
    if isinstance(choice, tuple):
        return ipywidgets.SelectionSlider(options=_grid(choice), continuous_update=False, **common)
    return ipywidgets.Dropdown(options=choice, **common)
