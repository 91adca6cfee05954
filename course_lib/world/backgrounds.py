"""Ten backgrounds: plain gradients and small scenes, each a short function of position.

Every painter gets `y`, `x` in [-1, 1] (top-left is (-1, -1)), shape (1, h, w), and `u`, a function that returns
per-clip random numbers in [0, 1) of shape (n, 1, 1); it returns red, green, blue in [0, 1], each broadcastable to
(n, h, w). Clips are painted at twice the size and averaged, so borders are smooth.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_lib.world.hashing import uniform


def _mix(a: tuple, b: tuple, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blend colours a and b; share 0 is a, 1 is b."""
    return tuple(ca + (cb - ca) * share for ca, cb in zip(a, b, strict=True))


def _over(below: tuple, above: tuple, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put colour `above` on `below` where the mask (0 or 1) says so."""
    return tuple(cb + (ca - cb) * where for cb, ca in zip(below, above, strict=True))


def _white(y, x, u):
    """Plain paper, a little grey towards one corner."""
    return _mix((0.97, 0.97, 0.97), (0.90, 0.91, 0.93), (y + 1) / 2 * u("shade"))


def _mint(y, x, u):
    """A plain pale gradient."""
    return _mix((0.72, 0.93, 0.85), (0.50, 0.80, 0.74), (y + 1) / 2 * (0.6 + 0.4 * u("shade")))


def _sunset(y, x, u):
    """Violet above, orange below."""
    return _mix(
        (0.45, 0.25, 0.55), (1.0, 0.62, 0.30), ((y + 1) / 2 + 0.3 * (u("shade") - 0.5)).clamp(0, 1)
    )


def _grass(y, x, u):
    """A meadow under a blue sky."""
    hill = 0.15 + 0.35 * u("horizon") + 0.08 * torch.sin(3 * x + 6.3 * u("shift"))
    meadow = _mix((0.42, 0.72, 0.28), (0.26, 0.55, 0.18), (y + 1) / 2)
    return _over(
        _mix((0.45, 0.70, 0.95), (0.80, 0.91, 0.99), (y + 1) / 1.5), meadow, (y > hill).float()
    )


def _night_sky(y, x, u):
    """Dark blue with a dozen stars."""
    sky = _mix((0.03, 0.04, 0.16), (0.13, 0.13, 0.36), (y + 1) / 2)
    for star in range(14):
        dy, dx = y - (2 * u(f"star y{star}") - 1), x - (2 * u(f"star x{star}") - 1)
        sky = _over(
            sky,
            (1.0, 0.97, 0.80),
            (dx**2 + dy**2 < (0.022 + 0.028 * u(f"star r{star}")) ** 2).float(),
        )
    return sky


def _sea(y, x, u):
    """Blue water in bands of waves."""
    waves = torch.sin(22 * (y + 0.04 * torch.sin(7 * x + 6.3 * u("shift")) + u("tide")))
    return _over(
        _mix((0.16, 0.50, 0.76), (0.03, 0.25, 0.52), (y + 1) / 2),
        (0.35, 0.68, 0.88),
        (waves > 0.8).float(),
    )


def _checkerboard(y, x, u):
    """Two greys in squares."""
    cells = torch.floor(3.5 * (x + u("dx"))) + torch.floor(3.5 * (y + u("dy")))
    return _mix((0.86, 0.86, 0.86), (0.60, 0.60, 0.62), cells % 2)


def _desert(y, x, u):
    """Sand dunes under a pale sky."""
    dune = 0.05 + 0.3 * u("horizon") + 0.13 * torch.sin(2.5 * x + 6.3 * u("shift"))
    sand = _mix((0.93, 0.77, 0.48), (0.80, 0.60, 0.33), (y + 1) / 2)
    return _over((0.99, 0.93, 0.80), sand, (y > dune).float())


def _snow(y, x, u):
    """White ground, grey-blue sky, falling flakes caught in mid-air."""
    ground = 0.35 + 0.25 * u("horizon") + 0.05 * torch.sin(4 * x + 6.3 * u("shift"))
    scene = _over((0.62, 0.71, 0.82), (0.95, 0.97, 1.0), (y > ground).float())
    for flake in range(10):
        dy, dx = y - (1.4 * u(f"flake y{flake}") - 1), x - (2 * u(f"flake x{flake}") - 1)
        scene = _over(scene, (0.97, 0.98, 1.0), (dx**2 + dy**2 < 0.045**2).float())
    return scene


def _forest(y, x, u):
    """Dark trunks on deep green."""
    trunks = torch.sin(9 * x + 6.3 * u("shift") + 0.6 * torch.sin(2 * y)) > 0.55
    leaves = _mix((0.16, 0.42, 0.22), (0.07, 0.23, 0.13), (y + 1) / 2)
    return _over(leaves, (0.25, 0.16, 0.10), trunks.float())


_PAINTERS = (
    _white,
    _mint,
    _sunset,
    _grass,
    _night_sky,
    _sea,
    _checkerboard,
    _desert,
    _snow,
    _forest,
)
BACKGROUNDS: tuple[str, ...] = tuple(
    painter.__name__[1:].replace("_", " ") for painter in _PAINTERS
)
BACKGROUND_INDEX: dict[str, int] = {name: i for i, name in enumerate(BACKGROUNDS)}


def paint(
    background: Int[np.ndarray, "b"],
    variant: Int[np.ndarray, "b"],
    size: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b 3 h w"]:
    """Paint one still background per clip.

    Args:
        background: indices into `BACKGROUNDS`.
        variant: one integer per clip; it fixes horizon, stars and shades.
        size: height and width in pixels.
        device: where the pixels are made.

    Returns:
        red, green, blue in [0, 1].
    """
    fine = 2 * size
    line = (
        torch.arange(fine, device=device, dtype=torch.float32) * 2 + 1
    ) / fine - 1  # pixel centres
    y, x = line[None, :, None], line[None, None, :]  # (1, h, 1), (1, 1, w)
    out = torch.zeros(len(background), 3, size, size, device=device)
    for index, painter in enumerate(_PAINTERS):
        chosen = np.flatnonzero(np.asarray(background) == index)
        if len(chosen) == 0:
            continue

        def u(name: str, chosen=chosen) -> Tensor:
            draws = uniform(f"background {name}", np.asarray(variant)[chosen])
            return torch.from_numpy(draws).float().to(device)[:, None, None]  # (n, 1, 1)

        rgb = [
            torch.as_tensor(c, device=device).expand(len(chosen), fine, fine)
            for c in painter(y, x, u)
        ]
        picture = torch.stack(rgb, dim=1)  # (n, 3, 2 size, 2 size)
        out[torch.from_numpy(chosen).to(device)] = torch.nn.functional.avg_pool2d(picture, 2)
    return out
