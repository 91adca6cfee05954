"""Whether two results are the same, and whether one is the other's rows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.fuzz.args import Arg

MAX_ITEMS, MAX_DEPTH = 50, 6


def consume(result: Any) -> Any:
    """The items of an iterator, since a generator function only runs when it is read."""
    if isinstance(result, Iterator):
        return list(islice(result, MAX_ITEMS))
    return result


def plain(value: Any, depth: int = 0) -> Any:
    """A value as nested lists, tuples and dicts of tensors and immutable objects."""
    if depth > MAX_DEPTH:
        return repr(type(value))
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic | Path):
        return value.item() if isinstance(value, np.generic) else "path"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, nn.Module):
        return {"": type(value).__name__, **value.state_dict()}
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, torch.Generator):
        return value.get_state()
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name), depth + 1) for item in fields(value)}
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype):
        return value
    if callable(value) and not hasattr(value, "config"):
        return "callable"
    content = getattr(value, "config", None) or getattr(value, "__dict__", {})
    content = {key: item for key, item in dict(content).items() if not key.startswith("_")}
    return {"": type(value).__name__, **plain(content, depth + 1)}


def same(first: Any, second: Any) -> bool:
    """Whether two plain values are equal, floats up to rounding."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return (
            first.shape == second.shape
            and first.dtype == second.dtype
            and torch.allclose(first.double(), second.double(), 1e-4, 1e-5, equal_nan=True)
        )
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-5) or first != first != second
    return type(first) is type(second) and first == second


def mapped(value: Any, change: Any) -> Any:
    """A plain value with a change done to every tensor; raises where that is impossible."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a plain value; numbers count as tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def has_nan(value: Any) -> bool:
    """Whether NaN or an infinity is in a plain value."""
    return any(t.is_floating_point() and not t.isfinite().all() for t in tensors(value))


def axes_match(args: Mapping[str, Arg], values: Mapping[str, Any]) -> bool:
    """Whether the shapes of all tensors are what their axes say, each name with one size.

    `*name` stands for any number of axes, the same in the whole call.
    """
    sizes: dict[str, Any] = {}
    for name, arg in args.items():
        value = values[name]
        if not arg.axes or value is None:
            continue
        tokens = arg.axes.split()
        shape = [len(value)] if arg.kind == "prompts" else list(getattr(value, "shape", ()))
        star = next((i for i, token in enumerate(tokens) if token.startswith("*")), None)
        if star is not None:
            num_starred = len(shape) - (len(tokens) - 1)
            if num_starred < 0:
                return False
            shape[star : star + num_starred] = [tuple(shape[star : star + num_starred])]
        if len(shape) != len(tokens):
            return False
        for token, size in zip(tokens, shape, strict=True):
            expected = int(token) if token.isdecimal() else sizes.setdefault(token, size)
            if expected != size:
                return False
    return True
