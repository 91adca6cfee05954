"""A texture descriptor for Fréchet distances: the strength of three Laplacian-pyramid bands.

Burt & Adelson 1983, "The Laplacian Pyramid as a Compact Image Code"; Portilla & Simoncelli 2000, "A
Parametric Texture Model Based on Joint Statistics of Complex Wavelet Coefficients".
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course_lib.nn.utils import fold_frames, unfold_frames
from course_lib.validation import check_float

NUM_BANDS = 3  # details of 1, 2 and 4 pixels


def laplacian_band_std(video: Tensor) -> Float[Tensor, "b d"]:
    """Standard deviation of three bands of each channel, over all pixels of all frames.

    Args:
        video: (b, c, f, h, w) in [-1, 1]; h and w are multiples of 8.

    Returns:
        d = 3 c numbers per clip, the finest band first.

    Raises:
        ValueError: for any other size or number of axes, and for integers.
    """
    check_float("video", video, "(b, c, f, h, w)")
    num_frames, h, w = video.shape[2:]
    if h % 2**NUM_BANDS or w % 2**NUM_BANDS:
        raise ValueError(
            f"video: expected height and width divisible by {2**NUM_BANDS}, got {h} x {w}"
        )
    frames = fold_frames(video)
    stds = []
    for _ in range(NUM_BANDS):
        coarse = F.avg_pool2d(frames, 2)
        band = frames - F.interpolate(coarse, scale_factor=2, mode="bilinear")
        stds.append(unfold_frames(band, num_frames).flatten(2).std(2, correction=0))  # b c
        frames = coarse
    return torch.cat(stds, dim=1)
