"""What a metric refuses. All metrics check here, so that the same mistake gets the same sentence.

The arguments are plain tensors on purpose: a wrong rank must reach these checks and not a type checker.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3  # how far outside [-1, 1] a rounding error may lead


def check_video(name: str, video: Tensor, *, min_frames: int = 1, min_size: int = 1) -> None:
    """Raise ValueError unless `video` is (b, c, f, h, w), floating, finite and in [-1, 1].

    name: of the caller's argument, for the message. min_frames, min_size: smallest f, and smallest h and w in pixels.
    """
    _check_layout(name, video, "(b, c, f, h, w)")
    if video.shape[2] < min_frames:
        raise ValueError(f"{name}: expected at least {min_frames} frames, got {video.shape[2]}")
    _check_size(name, video, min_size)
    _check_range(name, video)


def check_images(name: str, images: Tensor, *, min_size: int = 1) -> None:
    """Raise ValueError unless `images` is (b, c, h, w), floating, finite and in [-1, 1].

    name: of the caller's argument, for the message. min_size: smallest h and w in pixels.
    """
    _check_layout(name, images, "(b, c, h, w)")
    _check_size(name, images, min_size)
    _check_range(name, images)


def check_pair(
    names: tuple[str, str], first: Tensor, second: Tensor, *, min_frames: int = 1, min_size: int = 1
) -> None:
    """Raise ValueError unless both are videos as in `check_video`, and of one shape.

    names: of the caller's two arguments. min_frames, min_size: as for `check_video`.
    """
    check_video(names[0], first, min_frames=min_frames, min_size=min_size)
    check_video(names[1], second, min_frames=min_frames, min_size=min_size)
    if first.shape != second.shape:
        raise ValueError(
            f"{names[1]}: expected the shape of {names[0]}, {_shape(first)}, got {_shape(second)}"
        )


def check_features(name: str, features: Tensor) -> None:
    """Raise ValueError unless `features` is (n, d), floating and finite: what a feature net must return.

    name: of the caller's argument, for the message.
    """
    _check_layout(name, features, "(n, d)")
    _check_finite(name, features)


def check_count(name: str, have: int, need: int) -> None:
    """Raise ValueError if there are fewer samples than the estimator needs.

    name: of what is counted, such as "real clips". have, need: how many.
    """
    if have < need:
        raise ValueError(f"{name}: expected at least {need}, got {have}")


def check_net(name: str, net: Callable) -> None:
    """Raise ValueError if `net` is a module in training mode: its output would depend on the batch or on chance.

    name: of the caller's argument, for the message.
    """
    if isinstance(net, nn.Module) and net.training:
        raise ValueError(f"{name}: expected a network in evaluation mode; call .eval() on it first")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_layout(name: str, tensor: Tensor, axes: str) -> None:
    rank = axes.count(",") + 1
    if tensor.ndim != rank or 0 in tensor.shape:
        hint = (
            f"; one alone needs a batch axis: {name}[None]"
            if tensor.ndim == rank - 1 and rank > 2
            else ""
        )
        raise ValueError(
            f"{name}: expected {axes} with no axis empty, got shape {_shape(tensor)}{hint}"
        )
    if not tensor.is_floating_point():
        hint = f"; convert with {name} / 127.5 - 1" if tensor.dtype == torch.uint8 else ""
        raise ValueError(f"{name}: expected floating point, got {tensor.dtype}{hint}")


def _check_size(name: str, tensor: Tensor, smallest: int) -> None:
    if min(tensor.shape[-2:]) < smallest:
        size = "x".join(map(str, tensor.shape[-2:]))
        raise ValueError(f"{name}: expected at least {smallest}x{smallest} pixels, got {size}")


def _check_finite(name: str, tensor: Tensor) -> tuple[float, float]:
    """Lowest and highest value; one pass, since NaN and infinity show in them."""
    low, high = (bound.item() for bound in tensor.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = tensor.numel() - int(tensor.isfinite().sum())
        raise ValueError(
            f"{name}: expected finite values, got {bad} of {tensor.numel()} NaN or infinite"
        )
    return low, high


def _check_range(name: str, tensor: Tensor) -> None:
    low, high = _check_finite(name, tensor)
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        hint = f"; if it is [0, 255], convert with {name} / 127.5 - 1" if low >= 0 else ""
        raise ValueError(f"{name}: expected values in [-1, 1], got {low:.4g} to {high:.4g}{hint}")
