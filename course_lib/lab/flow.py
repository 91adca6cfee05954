"""Optical flow as colour: the Middlebury wheel, hue for direction and strength for speed.

Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def colour_wheel(like: Tensor) -> Float[Tensor, "55 3"]:
    """The 55 hues, 0 … 255, from red through yellow, green, cyan, blue and magenta; device as `like`."""
    ramps = [
        (15, 0, 1, 1),
        (6, 1, 0, -1),
        (4, 1, 2, 1),
        (11, 2, 1, -1),
        (13, 2, 0, 1),
        (6, 0, 2, -1),
    ]
    hues = []
    for (
        length,
        full,
        moving,
        sign,
    ) in ramps:  # one colour stays full while another rises (1) or falls (-1)
        part = torch.zeros(length, 3, device=like.device)
        part[:, full] = 255
        rise = torch.floor(255 * torch.arange(length, device=like.device) / length)
        part[:, moving] = rise if sign == 1 else 255 - rise
        hues.append(part)
    return torch.cat(hues)


def flow_colours(
    flow: Float[Tensor, "n 2 h w"], largest: float | int | None = None
) -> UInt8[Tensor, "n 3 h w"]:
    """Colours 0 … 255 for a flow of (rightward, downward) pixels; no motion is white.

    `largest`: the speed in pixels that gets the full colour; without one, the largest in `flow`.
    """
    flow = flow.float()
    speed = flow.square().sum(1).sqrt()
    full = float(speed.max()) if largest is None else largest
    flow = flow / max(full, 1e-6)  # a flow of zeros stays zero
    strength = flow.square().sum(1, keepdim=True).sqrt()
    angle = torch.atan2(-flow[:, 1], -flow[:, 0]) / math.pi  # -1 … 1
    position = (angle + 1) / 2 * 54
    below = position.floor().long()
    above = (below + 1) % 55
    wheel = colour_wheel(flow)
    weight = (position - below).unsqueeze(-1)
    hue = ((1 - weight) * wheel[below] + weight * wheel[above]).movedim(-1, 1) / 255  # (n, 3, h, w)
    return (255 * (1 - strength.clamp(max=1) * (1 - hue))).floor().to(torch.uint8)
