"""What is done to one argument of a valid call: another dtype, rank, size, number, type."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.args import Arg

Change = Callable[[Any], Any]

# Mutations that move whole rows: they may be done to a result, too
SHAPES: dict[str, Change] = {
    "no first axis": lambda x: x[0],
    "extra axis": lambda x: x[None],
    "first axis of 1": lambda x: x[:1],
    "one row fewer": lambda x: x[:-1],
    "no rows": lambda x: x[:0],
    "second axis of 1": lambda x: x[:, :1],
    "third axis of 1": lambda x: x[:, :, :1],
    "last axis of 1": lambda x: x[..., :1],
}
MIN_AXES = {"second axis of 1": 2, "third axis of 1": 3, "last axis of 1": 2}
AXIS = {"second axis of 1": 1, "third axis of 1": 2, "last axis of 1": -1}
WRONG_TYPES: dict[str, Change] = {"None": lambda _: None, "text": lambda _: "three"}


def _shape_changes(x: Tensor) -> Iterator[tuple[str, Change]]:
    for name, change in SHAPES.items():
        if x.ndim < MIN_AXES.get(name, 1) and not (name == "extra axis"):
            continue
        if name in AXIS and (x.shape[AXIS[name]] == 1 or (AXIS[name] == -1 and x.ndim <= 3)):
            continue  # nothing changes, or another mutation's axis
        if name == "first axis of 1" and x.shape[0] == 1:
            continue
        if name == "one row fewer" and x.shape[0] <= 2:
            continue
        yield name, change


def _with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[x.numel() // 2] = math.nan
    return x


def _tensor(x: Tensor) -> Iterator[tuple[str, Change]]:
    yield from _shape_changes(x)
    if x.dtype == torch.bool:
        yield "floats", lambda x: x.float()
        yield "integers", lambda x: x.long()
    elif x.is_floating_point():
        yield "integers", lambda x: (x * 3).long()
        yield "uint8", lambda x: (x * 100 + 100).clamp(0, 255).to(torch.uint8)
        yield "NaN inside", _with_nan
        yield "infinity inside", lambda x: _with_nan(x).nan_to_num(nan=math.inf)
    else:
        yield "fractions", lambda x: x + 0.5
    yield "NumPy array", lambda x: x.numpy()
    yield "list", lambda x: x.tolist()
    yield from WRONG_TYPES.items()


def _array(x: np.ndarray) -> Iterator[tuple[str, Change]]:
    yield "no first axis", lambda x: x[0]
    yield "extra axis", lambda x: x[None]
    yield "no rows", lambda x: x[:0]
    if len(x) > 1:
        yield "first axis of 1", lambda x: x[:1]
    if np.issubdtype(x.dtype, np.integer):
        yield "fractions", lambda x: x + 0.5
    else:
        yield "integers", lambda x: (x * 3).astype(np.int64)
        yield "NaN inside", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x)
    yield "list", lambda x: x.tolist()
    yield from WRONG_TYPES.items()


def _constants(**values: Any) -> list[tuple[str, Change]]:
    return [
        (name.replace("_", " "), lambda _, value=value: value) for name, value in values.items()
    ]


def _count(arg: Arg) -> list[tuple[str, Change]]:
    above = {} if math.isinf(arg.high) else {"above": int(arg.high) + 1}
    changes = _constants(fraction=2.5, zero=0, negative=-1, NaN=math.nan, infinity=math.inf)
    return changes + _constants(boolean=True, text="3", **{"None": None}, **above)


def _real(arg: Arg) -> list[tuple[str, Change]]:
    below = -1.5 if math.isinf(arg.low) else arg.low - 1
    above = {} if math.isinf(arg.high) else {"above": arg.high + 1}
    changes = _constants(NaN=math.nan, infinity=math.inf, minus_infinity=-math.inf, below=below)
    return changes + _constants(text="0.5", **{"None": None}, **above)


def _path(_: Any) -> Iterator[tuple[str, Change]]:
    yield "missing", lambda path: Path(path).parent / "no-such-folder" / "no-such-file"
    yield "another kind", _folder_or_file
    yield "None", lambda _: None
    yield "number", lambda _: 3.5


def _folder_or_file(path: Any) -> Path:
    """A folder where a file is, and a file where a folder is."""
    other = Path(path).parent / "another-kind"
    if Path(path).is_dir():
        other.write_text("no folder", encoding="utf-8")
    else:
        other.mkdir(exist_ok=True)
    return other


def mutations(arg: Arg, value: Any) -> list[tuple[str, Change]]:
    """(name, function of the valid value) of all mutations of one argument, in a fixed order."""
    match arg.kind:
        case "tensor":
            return list(_tensor(value))
        case "array":
            return list(_array(value))
        case "count":
            return _count(arg)
        case "real":
            return _real(arg)
        case "choice":
            return _constants(unknown="no such name", empty="", **{"None": None}, number=3)
        case "text":
            return _constants(**{"None": None}, number=3)
        case "prompts":
            return [
                ("one string", lambda x: x[0]),
                ("no rows", lambda x: []),
                ("one row fewer", lambda x: x[:-1]),
                ("one row more", lambda x: [*x, x[0]]),
                ("numbers", lambda x: list(range(len(x)))),
                ("None", lambda x: None),
            ]
        case "path":
            return list(_path(value))
        case "flag":
            return _constants(text="yes", **{"None": None})
        case "generator":
            return _constants(**{"None": None}, number=0, text="seed")
    return []
