"""Checks of videos, images, tensors and prompts, for metrics and for displays.

Videos and images hold floats in [-1, 1]. A failed check raises ValueError with the message
`name: expected X, got Y`, where `name` is the argument of the caller. The tensors are annotated
without axes: a wrong number of axes has to reach the check, not a runtime type checker.
"""

import math
import numbers
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

Array = Tensor | np.ndarray

RANGE_TOLERANCE = 1e-3  # rounding error that is allowed beyond [-1, 1]
UNIT_RANGE_CONTRAST = 0.5  # measured: docs/decisions.md


def require(condition: bool | Tensor, name: str, expected: str, got: object) -> None:
    """Raise ValueError("{name}: expected {expected}, got {got}") unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def check_video(name: str, video: Tensor, *, min_frames: int = 1, min_size: int = 1) -> None:
    """Check a batch of videos, and warn if its values seem to be in [0, 1].

    Args:
        name: argument of the caller, for the message.
        video: expected to be (b, c, f, h, w), floating point, finite and in [-1, 1].
        min_frames: smallest number of frames.
        min_size: smallest height and width in pixels.

    Raises:
        ValueError: if `video` is anything else.
    """
    _check_pixels(name, video, "(b, c, f, h, w)", min_size)
    num_frames = video.shape[2]
    require(num_frames >= min_frames, name, f"at least {min_frames} frames", num_frames)


def check_images(name: str, images: Tensor) -> None:
    """Check a batch of images, and warn if its values seem to be in [0, 1].

    Args:
        name: argument of the caller, for the message.
        images: expected to be (b, c, h, w), floating point, finite and in [-1, 1].

    Raises:
        ValueError: if `images` is anything else.
    """
    _check_pixels(name, images, "(b, c, h, w)")


def check_pair(names: tuple[str, str], first: Tensor, second: Tensor, *, min_size: int = 1) -> None:
    """Check two batches of videos of the same shape.

    Args:
        names: the two arguments of the caller, for the message.
        first: see `check_video`.
        second: see `check_video`.
        min_size: smallest height and width in pixels.

    Raises:
        ValueError: if `check_video` refuses one of them, or if their shapes differ.
    """
    check_video(names[0], first, min_size=min_size)
    check_video(names[1], second, min_size=min_size)
    require(
        first.shape == second.shape,
        names[1],
        f"the shape of {names[0]}, {_shape(first)}",
        _shape(second),
    )


def check_tensor(name: str, tensor: Tensor, axes: str) -> tuple[float, float]:
    """Check the number of axes, the dtype and the values of a tensor.

    Args:
        name: argument of the caller, for the message.
        tensor: expected to be floating point and finite, with one axis per entry of `axes`.
        axes: expected axes, such as "(n, d)".

    Returns:
        Lowest and highest value.

    Raises:
        ValueError: if `tensor` is anything else, or empty.
    """
    _check_axes(name, tensor, axes)
    return _check_values(name, tensor)


def check_float(name: str, tensor: Tensor, axes: str | None = None) -> None:
    """Check the dtype, and the number of axes, of a tensor without reading its values.

    Args:
        name: argument of the caller, for the message.
        tensor: expected to be a floating-point tensor.
        axes: expected axes, such as "(b, c, f, h, w)"; None accepts any number of them.

    Raises:
        ValueError: if `tensor` is anything else; integers would be rounded without a message.
    """
    _check_axes(name, tensor, axes)
    _check_floating_point(name, tensor)


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | int | None = None,
    above: float | int | None = None,
    at_most: float | int | None = None,
    below: float | int | None = None,
) -> None:
    """Check that a value is a finite number inside an interval.

    Args:
        name: argument of the caller, for the message.
        value: expected to be a Python or NumPy number; not a bool, a string, NaN or infinity.
        at_least: closed lower end of the interval.
        above: open lower end.
        at_most: closed upper end.
        below: open upper end.

    Raises:
        ValueError: if `value` is anything else.
    """
    limits = (
        ("at least", at_least, operator.ge),
        ("above", above, operator.gt),
        ("at most", at_most, operator.le),
        ("below", below, operator.lt),
    )
    limits = [limit for limit in limits if limit[1] is not None]
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    is_finite = is_number and math.isfinite(value)
    if not is_finite or not all(compare(value, bound) for _, bound, compare in limits):
        interval = " and ".join(f"{text} {bound:g}" for text, bound, _ in limits)
        expected = f"a finite number {interval}".rstrip()
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer from `low` to `high` (no bool, no float)."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        expected = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected an integer {expected}, got {value!r}")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises ValueError, with the list of choices, unless `value` is one of them."""
    choices = list(choices)
    if not any(value == choice for choice in choices):
        expected = f"one of {', '.join(map(str, choices))}"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def check_generator(generator: Any) -> None:
    """Raises ValueError unless `generator` is a torch.Generator; None would mean torch's own."""
    got = type(generator).__name__
    require(isinstance(generator, torch.Generator), "generator", "a torch.Generator", got)


def check_same_shape(name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raises ValueError for two shapes (broadcasting would accept one image for all frames)."""
    if tensor.shape != reference.shape:
        raise ValueError(
            f"{name}: expected the shape of {reference_name}, {tuple(reference.shape)}, "
            f"got {tuple(tensor.shape)}"
        )


def check_count(name: str, num_samples: int, min_samples: int) -> None:
    """Check that an estimator has enough samples.

    Args:
        name: what is counted, such as "real clips".
        num_samples: number of samples.
        min_samples: smallest number that the estimator needs.

    Raises:
        ValueError: if there are fewer.
    """
    require(num_samples >= min_samples, name, f"at least {min_samples}", num_samples)


def check_prompts(name: str, prompts: Sequence[str], num_prompts: int) -> None:
    """Check that there is one prompt per clip.

    Args:
        name: argument of the caller, for the message.
        prompts: expected to be a sequence of strings, not a string.
        num_prompts: expected number of prompts.

    Raises:
        ValueError: for one string, or another number of prompts.
    """
    is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    got = len(prompts) if is_list else "one string" if isinstance(prompts, str) else repr(prompts)
    require(got == num_prompts, name, f"a list of {num_prompts} prompts, one per clip", got)
    others = [prompt for prompt in prompts if not isinstance(prompt, str)]
    require(not others, name, "strings", others)


def check_provided(name: str, value: Any, setting: str, is_required: bool) -> None:
    """Check an argument that one setting of a metric requires and the others do not take.

    Args:
        name: argument of the caller, for the message.
        value: the argument, or None.
        setting: the setting that requires it, such as "flow='exact'".
        is_required: whether the metric has this setting.

    Raises:
        ValueError: if the argument is missing, or given without effect.
    """
    require(
        (value is not None) == is_required,
        name,
        f"a value with {setting}" if is_required else f"None unless {setting}",
        "None" if value is None else "a value",
    )


def check_net(name: str, net: Callable) -> None:
    """Check that a network is in evaluation mode: in training mode, dropout and batch norm act.

    Args:
        name: argument of the caller, for the message.
        net: a module, or any other callable, which passes.

    Raises:
        ValueError: for a module in training mode.
    """
    require(
        not (isinstance(net, nn.Module) and net.training),
        name,
        "a network in evaluation mode",
        "training mode; call .eval() on it first",
    )


def to_uint8(values: Tensor) -> UInt8[Tensor, "..."]:
    """Convert pixel values from [-1, 1] to the nearest level of 0 … 255, with clipping."""
    return ((values.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def clips_to_uint8(video: Array, name: str = "video") -> UInt8[np.ndarray, "b f h w 3"]:
    """Convert clips to RGB levels 0 … 255 for display.

    Args:
        video: one clip (c, f, h, w) or clips (b, c, f, h, w); c = 1 or 3, floats in [-1, 1].
        name: argument of the caller, for the message.

    Raises:
        ValueError: for anything else; the message names the usual remedy.
    """
    clips = _to_tensor(video, name)
    hint = "; for one image, use show_images(image[None])" if clips.ndim == 3 else ""
    require(
        clips.ndim in (4, 5),
        name,
        "one clip (c, f, h, w) or clips (b, c, f, h, w)",
        f"shape {_shape(clips)}{hint}",
    )
    _check_channels(name, clips, "bcfhw"[5 - clips.ndim :])
    if clips.ndim == 4:
        clips = clips[None]
    _check_pixels(name, clips, "(b, c, f, h, w)")
    return _to_rgb(clips)


def images_to_uint8(images: Array, name: str = "images") -> UInt8[np.ndarray, "b h w 3"]:
    """Convert images to RGB levels 0 … 255 for display.

    Args:
        images: (b, c, h, w); c = 1 or 3, floats in [-1, 1].
        name: argument of the caller, for the message.

    Raises:
        ValueError: for anything else; the message names the usual remedy.
    """
    images = _to_tensor(images, name)
    _check_pixels(name, images, "(b, c, h, w)")
    _check_channels(name, images, "bchw")
    return _to_rgb(images)


def to_numpy(values: Any, name: str) -> Float32[np.ndarray, "..."]:
    """Convert a tensor or array of any shape, device and float dtype to float32 on the CPU.

    Args:
        values: expected to be floating point, finite and not empty.
        name: argument of the caller, for the message.

    Raises:
        ValueError: if `values` is anything else.
    """
    tensor = _to_tensor(values, name)
    _check_values(name, tensor)
    return tensor.float().numpy()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_axes(name: str, tensor: Any, axes: str | None) -> None:
    """Check for a tensor, and for its number of axes."""
    require(isinstance(tensor, Tensor), name, "a torch tensor", type(tensor).__name__)
    if axes is None:
        return
    rank = axes.count(",") + 1
    is_single = tensor.ndim == rank - 1 and rank > 2
    hint = f"; a single one needs a batch axis: {name}[None]" if is_single else ""
    require(tensor.ndim == rank, name, axes, f"shape {_shape(tensor)}{hint}")


def _check_floating_point(name: str, tensor: Tensor) -> None:
    hint = f"; convert with {name} / 127.5 - 1" if tensor.dtype == torch.uint8 else ""
    require(tensor.is_floating_point(), name, "floating point", f"{tensor.dtype}{hint}")


def _check_values(name: str, tensor: Tensor) -> tuple[float, float]:
    """Lowest and highest value of a tensor that is floating point, finite and not empty."""
    require(tensor.numel() > 0, name, "no empty axis", f"shape {_shape(tensor)}")
    _check_floating_point(name, tensor)
    low, high = (bound.item() for bound in tensor.detach().aminmax())  # shows NaN and infinity too
    if not (math.isfinite(low) and math.isfinite(high)):
        num_bad = tensor.numel() - int(tensor.isfinite().sum())
        require(False, name, "finite values", f"{num_bad} of {tensor.numel()} NaN or infinite")
    return low, high


def _check_pixels(name: str, tensor: Tensor, axes: str, min_size: int = 1) -> None:
    """Check a video or images in [-1, 1]; warn the caller's caller about [0, 1]."""
    low, high = check_tensor(name, tensor, axes)
    h, w = tensor.shape[-2:]
    require(min(h, w) >= min_size, name, f"at least {min_size}x{min_size} pixels", f"{h}x{w}")
    hint = f"if a model overshoots, use {name}.clamp(-1, 1)"
    if low >= 0 and high > 2:
        hint = f"if it is in [0, 255], use {name} / 127.5 - 1"
    require(
        low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE,
        name,
        "values in [-1, 1]",
        f"{low:.4g} to {high:.4g}; {hint}",
    )
    if low >= 0 and high - low > UNIT_RANGE_CONTRAST:
        message = f"{name}: all values lie in [0, 1]; expected [-1, 1]. If it is in [0, 1], use"
        warnings.warn(f"{message} {name} * 2 - 1", stacklevel=4)


def _check_channels(name: str, tensor: Tensor, axes: str) -> None:
    """Check for 1 or 3 channels; otherwise look for them at the frame axis and at the end."""
    if tensor.shape[axes.index("c")] in (1, 3):
        return
    hint = ""
    for index in (len(axes) - 1, axes.find("f")):
        if index > 0 and tensor.shape[index] in (1, 3):
            rest = axes.replace("c", "")
            layout = rest[:index] + "c" + rest[index:]
            permutation = ", ".join(str(layout.index(axis)) for axis in axes)
            hint = f"; looks like ({', '.join(layout)}), use {name}.permute({permutation})"
    require(
        False,
        name,
        f"({', '.join(axes)}) with 1 or 3 channels",
        f"shape {_shape(tensor)}{hint}",
    )


def _to_tensor(values: Any, name: str) -> Tensor:
    require(
        isinstance(values, Tensor | np.ndarray),
        name,
        "a torch tensor or a NumPy array",
        type(values).__name__,
    )
    # A copy: an array may be read-only or have negative strides
    return values.detach().cpu() if isinstance(values, Tensor) else torch.tensor(values.copy())


def _to_rgb(pixels: Tensor) -> UInt8[np.ndarray, "..."]:
    levels = to_uint8(pixels).movedim(1, -1).numpy()
    return np.broadcast_to(levels, (*levels.shape[:-1], 3))  # a grey channel counts three times
