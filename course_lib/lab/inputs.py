"""What `show` accepts, and what it says about everything else. Nothing is repaired: a picture of a mistake
teaches the mistake."""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

Array = Tensor | np.ndarray
TOLERANCE = 1e-3  # rounding may carry a value this far beyond [-1, 1]


def to_numpy(values: Any, name: str) -> np.ndarray:
    """`values` (any shape, device and float dtype, bfloat16 included) as float32 on the CPU.

    Raises ValueError if they are not floats, or not all finite; `name` is what the message calls them.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise ValueError(
            f"{name} must be a torch tensor or a NumPy array; got {type(values).__name__}"
        )
    is_float = (
        values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    )
    if not is_float:
        hint = (
            "divide uint8 by 127.5 and subtract 1"
            if "int8" in str(values.dtype)
            else "convert with .float()"
        )
        raise ValueError(f"{name} must be float; got {describe(values, name)}: {hint}")
    array = (
        values.detach().to("cpu", torch.float32).numpy() if isinstance(values, Tensor) else values
    )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{name} has {bad} of {array.size} values that are NaN or infinite; {describe(values, name)}"
        )
    return array


def describe(values: Array, name: str) -> str:
    """ "shape (2, 3, 16, 64, 64), float32, from -1 to 0.98"; the range is that of the finite values."""
    text = f"{name} of shape {tuple(values.shape)}, {str(values.dtype).removeprefix('torch.')}"
    array = (
        values.detach().to("cpu", torch.float64).numpy() if isinstance(values, Tensor) else values
    )
    finite = array[np.isfinite(array)]
    return text + (
        f", from {finite.min():.4g} to {finite.max():.4g}" if finite.size else ", no finite value"
    )


def checked_clips(video: Array, name: str = "video") -> UInt8[np.ndarray, "b f h w 3"]:
    """A clip (c, f, h, w) or clips (b, c, f, h, w), float in [-1, 1], as colours 0 … 255.

    Raises ValueError, stating what it got and the usual remedy, for another rank, a channel count other than
    1 or 3, an integer dtype, NaN, infinity, a value beyond [-1, 1] by more than 1e-3, or nothing to show.
    """
    array = to_numpy(video, name)
    got = describe(video, name)
    if array.ndim not in (4, 5):
        remedy = ": for one image, use show_images(image[None])" if array.ndim == 3 else ""
        raise ValueError(
            f"expected one clip (c, f, h, w) or clips (b, c, f, h, w); got {got}{remedy}"
        )
    order = "b c f h w".split()[5 - array.ndim :]
    channel = array.ndim - 4
    if array.shape[channel] not in (1, 3):
        raise ValueError(f"expected ({', '.join(order)}) with 1 or 3 channels; got {got}"
                         + _other_order(array.shape, order, name))  # fmt: skip
    _check_range(array, got, name)
    return _to_colours(np.moveaxis(array if array.ndim == 5 else array[None], 1, -1))


def checked_images(images: Array, name: str = "images") -> UInt8[np.ndarray, "b h w 3"]:
    """Images (b, c, h, w), float in [-1, 1], as colours 0 … 255.

    Raises ValueError as `checked_clips` does.
    """
    array = to_numpy(images, name)
    got = describe(images, name)
    if array.ndim != 4:
        remedy = {3: f": for one image, {name}[None]", 5: ": for clips, show_video"}.get(
            array.ndim, ""
        )
        raise ValueError(f"expected images (b, c, h, w); got {got}{remedy}")
    if array.shape[1] not in (1, 3):
        raise ValueError(f"expected (b, c, h, w) with 1 or 3 channels; got {got}"
                         + _other_order(array.shape, "b c h w".split(), name))  # fmt: skip
    _check_range(array, got, name)
    return _to_colours(np.moveaxis(array, 1, -1))


def _other_order(shape: tuple[int, ...], order: list[str], name: str) -> str:
    """Where the channel axis seems to be instead, and the permute that puts it right."""
    here = order.index("c")
    candidates = [
        i
        for i in (order.index("f") if "f" in order else -1, len(shape) - 1)
        if i >= 0 and shape[i] in (1, 3)
    ]
    if not candidates:
        return ""
    there = candidates[0]
    looks = [axis for axis in order if axis != "c"]
    looks.insert(there, "c")
    moves = ", ".join(str(looks.index(axis)) for axis in order)
    assert looks[there] == "c" and there != here
    return f": looks like ({', '.join(looks)}); use {name}.permute({moves})"


def _check_range(array: np.ndarray, got: str, name: str) -> None:
    if array.size == 0:
        raise ValueError(f"nothing to show; got {got}")
    low, high = array.min(), array.max()
    if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
        return
    if low >= 0 and 2 < high <= 255:
        remedy = "looks like 0 … 255: divide by 127.5 and subtract 1"
    else:
        remedy = f"if a model overshoots, show {name}.clamp(-1, 1)"
    raise ValueError(f"expected values in [-1, 1] (tolerance {TOLERANCE}); got {got}: {remedy}")


def _to_colours(array: np.ndarray) -> np.ndarray:
    colours = ((array + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    return np.broadcast_to(colours, (*colours.shape[:-1], 3))  # grey: the one channel three times
