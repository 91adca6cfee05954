"""Arguments of a valid example call: a value, and what the documentation says about its kind."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Sizes of the axes; an argument may name its own, as in `F("b c f h w", h=16)`
SIZES = {"b": 3, "c": 3, "f": 4, "h": 8, "w": 8, "y": 4, "x": 4}
SIZES |= {"n": 4, "m": 5, "k": 3, "d": 6, "l": 5}


@dataclass(frozen=True)
class Arg:
    """One argument.

    Args:
        kind: "tensor", "array", "count", "real", "choice", "text", "prompts", "path", "flag",
            "generator" or "fixed", which is never changed.
        make: the valid value, made anew for every call, from a folder for its files.
        axes: of a tensor, such as "b c f h w"; a name stands for one size in the whole call, and
            "b_2" is another name with the default size of "b".
        low: smallest valid number.
        high: largest valid number.
        allows: names of mutations which are documented, so valid.
        skips: names of mutations that would touch the course's own files.
    """

    kind: str
    make: Callable[[Path], Any]
    axes: str = ""
    low: float = -math.inf
    high: float = math.inf
    allows: frozenset[str] = field(default_factory=frozenset)
    skips: frozenset[str] = field(default_factory=frozenset)


def _draw(axes: str, sizes: dict[str, int]) -> torch.Tensor:
    sizes = {**SIZES, **sizes}
    keys = [axis.lstrip("*").split("_")[0] for axis in axes.split()]
    shape = [int(key) if key.isdecimal() else sizes[key] for key in keys]
    seed = sum(map(ord, axes)) + len(axes)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def _words(allows: str) -> frozenset[str]:
    return frozenset(word.replace("_", " ") for word in allows.split())


def F(axes: str, /, *, scale: float = 1, allows: str = "", value: Any = None, **sizes: int) -> Arg:
    """A tensor of floats in (-0.9, 0.9) times `scale`, or of a given value."""
    tensor = _draw(axes, sizes) * scale if value is None else torch.as_tensor(value).float()
    return Arg("tensor", lambda _: tensor.clone(), axes=axes, allows=_words(allows))


def I(axes: str, /, value: Any = None, high: int = 3, allows: str = "", **sizes: int) -> Arg:  # noqa: E743, E741
    """A tensor of integers from 0 to `high` - 1, or of a given value."""
    drawn = ((_draw(axes, sizes) + 1) / 2 * high).long()
    tensor = drawn if value is None else torch.as_tensor(value)
    return Arg("tensor", lambda _: tensor.clone(), axes=axes, allows=_words(allows))


def B(axes: str, /, value: Any = None, allows: str = "", **sizes: int) -> Arg:
    """A tensor of bools."""
    tensor = _draw(axes, sizes) > 0 if value is None else torch.as_tensor(value).bool()
    return Arg("tensor", lambda _: tensor.clone(), axes=axes, allows=_words(allows))


def A(array: Any, allows: str = "") -> Arg:
    """A NumPy array."""
    return Arg("array", lambda _: np.array(array), allows=_words(allows))


def N(value: int, low: float = 1, high: float = math.inf, allows: str = "") -> Arg:
    """A count, from 1 unless said otherwise."""
    return Arg("count", lambda _: value, low=low, high=high, allows=_words(allows))


def R(value: float, low: float = -math.inf, high: float = math.inf, allows: str = "") -> Arg:
    """A finite number of a closed interval; `allows="inf"` where infinity is documented."""
    return Arg("real", lambda _: value, low=low, high=high, allows=_words(allows))


def C(value: str, allows: str = "") -> Arg:
    """One name of a list."""
    return Arg("choice", lambda _: value, allows=_words(allows))


def S(value: str, allows: str = "") -> Arg:
    """Any text: a title, a label."""
    return Arg("text", lambda _: value, allows=_words(allows))


def P(count: int = 3, allows: str = "", words: tuple[str, ...] = ()) -> Arg:
    """A list of prompts, one per row."""
    prompts = list(words or ("a cat moving left on grass", "a red circle on sky", "a dog on snow"))
    return Arg("prompts", lambda _: prompts[:count], axes="b", allows=_words(allows))


def Y(value: bool = True) -> Arg:
    """A flag."""
    return Arg("flag", lambda _: value)


def Dir(make: Callable[[Path], Path], allows: str = "", skips: str = "") -> Arg:
    """A path, from a function that prepares it in an empty folder."""
    return Arg("path", make, allows=_words(allows), skips=_words(skips))


def G(seed: int = 1, allows: str = "") -> Arg:
    """A random generator in a known state."""
    return Arg("generator", lambda _: torch.Generator().manual_seed(seed), allows=_words(allows))


def X(make: Callable[[], Any]) -> Arg:
    """Anything else, made anew for every call and never changed: a network, a scheduler."""
    return Arg("fixed", lambda _: make())
