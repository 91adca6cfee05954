"""Ten backgrounds: plain gradients and small scenes, each a short function of position.

Every painter takes `y` (1, h, 1) and `x` (1, 1, w) in [-1, 1], where (-1, -1) is the top-left
corner, and `u`, a function from a name to per-clip random numbers in [0, 1) of shape (n, 1, 1). It
returns red, green and blue in [0, 1], each broadcastable to (n, h, w). Backgrounds are painted at
twice the size and averaged, to anti-alias them.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from course_lib.validation import require
from course_lib.world.hashing import hash_uniform


def _mix(start: tuple, end: tuple, weight: Tensor) -> tuple:
    """Interpolate from the colour `start` (weight 0) to `end` (1); a binary weight is a mask."""
    return tuple(a + (b - a) * weight for a, b in zip(start, end, strict=True))


def _disc(
    y: Tensor, x: Tensor, centre_y: Tensor, centre_x: Tensor, radius: Tensor | float
) -> Tensor:
    """1 inside a disc, 0 outside."""
    return ((x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2).float()


def _grass(y, x, u):
    hill = 0.15 + 0.35 * u("horizon") + 0.08 * torch.sin(3 * x + 6.3 * u("shift"))
    meadow = _mix((0.42, 0.72, 0.28), (0.26, 0.55, 0.18), (y + 1) / 2)
    sky = _mix((0.45, 0.70, 0.95), (0.80, 0.91, 0.99), (y + 1) / 1.5)
    return _mix(sky, meadow, (y > hill).float())


def _night_sky(y, x, u):
    sky = _mix((0.03, 0.04, 0.16), (0.13, 0.13, 0.36), (y + 1) / 2)
    for i in range(14):
        radius = 0.022 + 0.028 * u(f"star r{i}")
        star = _disc(y, x, 2 * u(f"star y{i}") - 1, 2 * u(f"star x{i}") - 1, radius)
        sky = _mix(sky, (1.0, 0.97, 0.80), star)
    return sky


def _sea(y, x, u):
    waves = torch.sin(22 * (y + 0.04 * torch.sin(7 * x + 6.3 * u("shift")) + u("tide")))
    water = _mix((0.16, 0.50, 0.76), (0.03, 0.25, 0.52), (y + 1) / 2)
    return _mix(water, (0.35, 0.68, 0.88), (waves > 0.8).float())


def _desert(y, x, u):
    dune = 0.05 + 0.3 * u("horizon") + 0.13 * torch.sin(2.5 * x + 6.3 * u("shift"))
    sand = _mix((0.93, 0.77, 0.48), (0.80, 0.60, 0.33), (y + 1) / 2)
    return _mix((0.99, 0.93, 0.80), sand, (y > dune).float())


def _snow(y, x, u):
    ground = 0.35 + 0.25 * u("horizon") + 0.05 * torch.sin(4 * x + 6.3 * u("shift"))
    scene = _mix((0.62, 0.71, 0.82), (0.95, 0.97, 1.0), (y > ground).float())
    for i in range(10):
        flake = _disc(y, x, 1.4 * u(f"flake y{i}") - 1, 2 * u(f"flake x{i}") - 1, 0.045)
        scene = _mix(scene, (0.97, 0.98, 1.0), flake)
    return scene


def _forest(y, x, u):
    trunks = torch.sin(9 * x + 6.3 * u("shift") + 0.6 * torch.sin(2 * y)) > 0.55
    leaves = _mix((0.16, 0.42, 0.22), (0.07, 0.23, 0.13), (y + 1) / 2)
    return _mix(leaves, (0.25, 0.16, 0.10), trunks.float())


_PAINTERS: dict[str, Callable] = {
    "white": lambda y, x, u: _mix((0.97, 0.97, 0.97), (0.90, 0.91, 0.93), (y + 1) / 2 * u("shade")),
    "mint": lambda y, x, u: _mix(
        (0.72, 0.93, 0.85), (0.50, 0.80, 0.74), (y + 1) / 2 * (0.6 + 0.4 * u("shade"))
    ),
    "sunset": lambda y, x, u: _mix(
        (0.45, 0.25, 0.55),
        (1.0, 0.62, 0.30),
        ((y + 1) / 2 + 0.3 * (u("shade") - 0.5)).clamp(0, 1),
    ),
    "grass": _grass,
    "night sky": _night_sky,
    "sea": _sea,
    "checkerboard": lambda y, x, u: _mix(
        (0.86, 0.86, 0.86),
        (0.60, 0.60, 0.62),
        (torch.floor(3.5 * (x + u("dx"))) + torch.floor(3.5 * (y + u("dy")))) % 2,
    ),
    "desert": _desert,
    "snow": _snow,
    "forest": _forest,
}
BACKGROUNDS: tuple[str, ...] = tuple(_PAINTERS)
BACKGROUND_INDEX: dict[str, int] = {name: i for i, name in enumerate(BACKGROUNDS)}


def paint(
    background: Int[np.ndarray, "b"],
    variant: Int[np.ndarray, "b"],
    size: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b 3 h w"]:
    """Paint one static background per clip.

    Args:
        background: indices into `BACKGROUNDS`.
        variant: one integer per clip; it determines horizon, stars and shades.
        size: height and width in pixels.
        device: device to paint on.

    Returns:
        RGB in [0, 1].

    Raises:
        ValueError: an index that is not one of a background.
    """
    background = np.asarray(background)
    is_index = bool(((background >= 0) & (background < len(BACKGROUNDS))).all())
    require(is_index, "background", "indices into BACKGROUNDS", background)
    fine = 2 * size
    centres = (torch.arange(fine, device=device, dtype=torch.float32) * 2 + 1) / fine - 1
    out = torch.zeros(len(background), 3, size, size, device=device)
    for index, painter in enumerate(_PAINTERS.values()):
        rows = np.flatnonzero(background == index)
        if len(rows) == 0:
            continue

        def u(choice: str, rows=rows) -> Tensor:
            values = hash_uniform(f"background {choice}", np.asarray(variant)[rows])
            return torch.from_numpy(values).float().to(device)[:, None, None]  # (n, 1, 1)

        rgb = [
            torch.as_tensor(channel, device=device).expand(len(rows), fine, fine)
            for channel in painter(centres[None, :, None], centres[None, None, :], u)
        ]
        image = torch.stack(rgb, dim=1)  # (n, 3, 2 size, 2 size)
        out[torch.from_numpy(rows).to(device)] = avg_pool2d(image, 2)
    return out
