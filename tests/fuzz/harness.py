"""Calls every example with every mutation of every argument, and judges what comes back.

A call is refused clearly (an error that names the argument), refused obscurely (another error), or
accepted. What is accepted has to be right by a rule of `reason_to_accept`, or by an entry of
`allowed.ALLOWED`; otherwise it is silent and wrong.
"""

import contextlib
import importlib
import inspect
import io
import os
import re
import shutil
import signal
import tempfile
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.allowed import reason_of
from tests.fuzz.args import Arg, X
from tests.fuzz.compare import axes_match, consume, has_nan, mapped, plain, same
from tests.fuzz.mutations import SHAPES, mutations

LIMIT_SECONDS = 5.0
CLEAR_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, IsADirectoryError)
EXAMPLES: dict[str, "Example"] = {}


class Hang(BaseException):
    """The call ran past its time limit."""


@dataclass
class Example:
    """A valid call.

    Args:
        name: dotted, without the package: "metrics.flow.warp", or with a method.
        call: takes the arguments.
        args: of the call.
        names: argument of the call to the name that a message may use for it.
    """

    name: str
    call: Callable[..., Any]
    args: dict[str, Arg]
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one call gave: "clear", "obscure", "accepted", "silent", "damage" or "hang"."""

    room: str
    name: str
    argument: str
    mutation: str
    verdict: str
    detail: str


def resolve(name: str) -> Any:
    """The object of a dotted name inside course_lib."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(".".join(["course_lib", *parts[:end]]))
            for part in parts[end:]:
                found = getattr(found, part)
            return found
    raise LookupError(name)


def add(
    name: str,
    call: Callable[..., Any] | None = None,
    names: Mapping[str, str] | None = None,
    /,
    **args: Any,
) -> None:
    """Register a valid call; a second one of the same function gets a suffix: "name (2)"."""
    if call is None:
        call = resolve(name)
    key = name
    number = 1
    while key in EXAMPLES:
        number += 1
        key = f"{name} ({number})"
    wrapped = {
        label: arg if isinstance(arg, Arg) else X(lambda arg=arg: arg)
        for label, arg in args.items()
    }
    EXAMPLES[key] = Example(key, call, wrapped, dict(names or {}))


def fixed(value: Any) -> Arg:
    """An argument that is never changed."""
    return X(lambda: value)


def target_of(example: Example) -> Any:
    """The public function or class that an example calls."""
    if example.name.startswith("tests."):
        return example.call
    return resolve(example.name.split(" (")[0])


def takes_none(example: Example, argument: str) -> bool:
    """Whether the annotation of an argument says that None is valid."""
    parameters = inspect.signature(target_of(example)).parameters
    if argument not in parameters:
        return False
    annotation = parameters[argument].annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return type(None) in typing.get_args(annotation)
    return annotation is Any or annotation is None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises Hang in the block after some seconds."""

    def ring(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def tree(folder: Path) -> dict[str, int]:
    """Files below a folder, with their sizes."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """A temporary folder, which is the working folder inside the block."""
    before = os.getcwd()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def run(
    example: Example, values: Mapping[str, Any], limit_seconds: float = LIMIT_SECONDS
) -> tuple[Any, list[str]]:
    """The plain result of a call, and the warnings that it gave."""
    torch.manual_seed(0)
    np.random.seed(0)
    streams = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(record=True) as caught, time_limit(limit_seconds):
        warnings.simplefilter("always")
        with streams[0], streams[1]:
            result = plain(consume(example.call(**values)))
    return result, [str(warning.message) for warning in caught]


def make_values(example: Example, folder: Path) -> dict[str, Any]:
    return {name: arg.make(folder) for name, arg in example.args.items()}


def valid_result(example: Example) -> Any:
    """The result of the valid call."""
    with empty_folder() as folder:
        return run(example, make_values(example, folder))[0]


def is_named(example: Example, argument: str, value: Any, message: str) -> bool:
    """Whether a message names the argument, or the text or file that was given for it."""
    label = example.names.get(argument, argument)
    if re.search(rf"(?<![a-zA-Z0-9]){re.escape(label)}(?![a-zA-Z0-9])", message):
        return True
    # Of two that do not fit each other, either may be named
    labels = [example.names.get(name, name) for name in example.args]
    if any(message.startswith((f"{name}: expected", f"{name}, ")) for name in labels):
        return True
    return isinstance(value, str | Path) and len(str(value)) > 1 and str(value) in message


def reason_to_accept(
    example: Example, argument: str, mutation: str, values: Mapping[str, Any], results: Any
) -> str:
    """The rule by which an accepted call is right, or ""."""
    arg, (valid, result) = example.args[argument], results
    value = values[argument]
    if mutation in arg.allows:
        return "documented"
    if value is None and takes_none(example, argument):
        return "documented: None"
    if same(result, valid):
        return "no effect"
    if arg.kind == "text":
        return "a label, shown as it is"
    if arg.kind in ("count", "real") and not isinstance(value, str | bool | type(None)):
        is_right_type = arg.kind == "real" or isinstance(value, int)
        if is_right_type and arg.low <= value <= arg.high and np.isfinite(value):
            return "inside the documented interval"
    if mutation in SHAPES and arg.kind == "tensor":
        with contextlib.suppress(Exception):
            if same(result, mapped(valid, SHAPES[mutation])):
                return "the same rows"
        if mutation != "no rows" and axes_match(example.args, values):
            return "documented axes"
    if arg.kind == "prompts" and mutation in ("one row fewer", "one row more"):
        if axes_match(example.args, values):
            return "documented axes"
    if mutation in ("NaN inside", "infinity inside") and has_nan(result):
        return "NaN in, NaN out"
    return reason_of(example.name, argument, mutation)


def as_number(value: Any) -> tuple[str, Any]:
    """(name of a rule, what Python's conversion makes of a value), or ("", None)."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return "integers as floats", value.astype(np.float32)
    if isinstance(value, torch.Tensor) and not value.is_floating_point():
        return "integers as floats", value.float()
    return "", None


def converted(example: Example, argument: str, value: Any, result: Any) -> str:
    """The rule by which a value of another type gave what its conversion gives, or ""."""
    kind = example.args[argument].kind
    rule, conversion = as_number(value)
    if kind == "count" and isinstance(value, bool):
        rule, conversion = "True is 1", int(value)
    elif kind == "flag":
        rule, conversion = "truth of a value", bool(value)
    with contextlib.suppress(Exception), empty_folder() as folder:
        if rule:
            fresh = {**make_values(example, folder), argument: conversion}
            expected = run(example, fresh)[0]
            return rule * same(mapped(expected, _widen), mapped(result, _widen))
    return ""


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()


def judge(
    example: Example,
    argument: str,
    mutation: str,
    change: Any,
    valid: Any,
    limit_seconds: float,
) -> Outcome:
    """Run one mutated call."""

    def outcome(verdict: str, detail: str = "") -> Outcome:
        room = example.name.split(".")[0]
        return Outcome(room, example.name, argument, mutation, verdict, detail[:300])

    with empty_folder() as folder:
        values = make_values(example, folder)
        values[argument] = change(values[argument])
        is_fixed = {name: example.args[name].kind in ("fixed", "generator") for name in values}
        before = {name: plain(value) for name, value in values.items() if not is_fixed[name]}
        before = mapped(before, lambda tensor: tensor.clone())
        files = tree(folder)
        try:
            result, messages = run(example, values, limit_seconds)
        except Hang:
            return outcome("hang", f"ran longer than {limit_seconds} s")
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
            after = {name: plain(value) for name, value in values.items() if not is_fixed[name]}
            if not same(before, after):
                return outcome("damage", f"the refused call changed its arguments ({message})")
            if tree(folder) != files:
                return outcome("damage", f"the refused call wrote {list(tree(folder))} ({message})")
            clear = isinstance(error, CLEAR_ERRORS)
            clear = clear and is_named(example, argument, values[argument], str(error))
            return outcome("clear" if clear else "obscure", message)
    if any(is_named(example, argument, None, message) for message in messages):
        return outcome("accepted", "with a warning")
    reason = reason_to_accept(example, argument, mutation, values, (valid, result))
    reason = reason or converted(example, argument, values[argument], result)
    if reason:
        return outcome("accepted", reason)
    return outcome("silent", f"{_short(values[argument])} -> {_short(result)}")


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        numbers = ", ".join(f"{x:.4g}" for x in value.detach().double().flatten()[:4].tolist())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} {numbers}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in list(value.items())[:3]) + "}"
    if isinstance(value, list):
        return f"{len(value)} of [" + ", ".join(map(_short, value[:2])) + "]"
    return repr(value)[:60]


def fuzz(example: Example, limit_seconds: float = LIMIT_SECONDS) -> list[Outcome]:
    """All mutated calls of one example; one of verdict "broken" if the valid call fails."""
    room = example.name.split(".")[0]
    start = time.perf_counter()
    try:
        valid = valid_result(example)
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"[:600]
        return [Outcome(room, example.name, "", "valid", "broken", detail)]
    seconds = time.perf_counter() - start
    outcomes = [Outcome(room, example.name, "", "valid", "valid", f"{seconds:.3f}")]
    with empty_folder() as folder:
        values = make_values(example, folder)
        plans = [
            (argument, mutation, change)
            for argument, arg in example.args.items()
            for mutation, change in mutations(arg, values[argument])
            if mutation not in arg.skips
        ]
    outcomes += [judge(example, *plan, valid, limit_seconds) for plan in plans]
    return outcomes
