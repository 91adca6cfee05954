"""Control signals for a ControlNet; `Clips.trajectory` is another one."""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor

from course_lib.validation import check_number
from course_lib.world.checks import check_rgb


def canny_edges(video: Tensor, sigma: float = 1.0) -> Float[Tensor, "b 1 f h w"]:
    """Detect the edges of every frame.

    Args:
        video: clips (b, 3, f, h, w), RGB in [-1, 1].
        sigma: standard deviation of the Gaussian smoothing, in pixels; at least 0.

    Returns:
        1 on an edge, 0 elsewhere.

    Raises:
        ValueError: any other video or sigma.

    Source: Canny 1986, as implemented in scikit-image.
    """
    check_rgb("video", video)
    check_number("sigma", sigma, at_least=0.0)
    frames = rearrange(video.detach().float().cpu() / 2 + 0.5, "b c f h w -> (b f) h w c").numpy()
    edges = np.stack([canny(rgb2gray(frame), sigma=sigma) for frame in frames])
    edges = torch.from_numpy(edges).to(video.device, torch.float32)
    return rearrange(edges, "(b f) h w -> b 1 f h w", b=len(video))
