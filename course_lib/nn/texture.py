"""How fine a picture is: what a classifier is free to forget, and what a distance between pictures must not.

The bands are those of the Laplacian pyramid (Burt & Adelson 1983, "The Laplacian Pyramid as a Compact Image Code"), and
their spread is the simplest of the statistics by which Portilla & Simoncelli 2000 describe a texture.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BANDS = 3  # details of 1, 2 and 4 pixels


def texture(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b d"]:
    """Standard deviation of each of three bands of each channel, over all pixels of all frames; blind to their order.

    video: in [-1, 1]; h and w divisible by 8. Returns d = 3 c numbers per clip, the finest band first.
    Raises ValueError for another size.
    """
    b, _, f, h, w = video.shape
    if h % 2**BANDS or w % 2**BANDS:
        raise ValueError(f"video: expected height and width divisible by {2**BANDS}, got {h} x {w}")
    frames, spreads = video.transpose(1, 2).flatten(0, 1), []  # (b f) c h w
    for _ in range(BANDS):
        coarse = F.avg_pool2d(frames, 2)
        band = frames - F.interpolate(coarse, scale_factor=2, mode="bilinear")
        spreads.append(
            band.unflatten(0, (b, f)).transpose(1, 2).flatten(2).std(2, correction=0)
        )  # b c
        frames = coarse
    return torch.cat(spreads, dim=1)
