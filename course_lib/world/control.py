"""Control signals: what a ControlNet is told besides the caption. (Trajectories are part of `Clips`.)"""

import numpy as np
import torch
from jaxtyping import Float
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor


def canny_edges(
    video: Float[Tensor, "b 3 f h w"], sigma: float = 1.0
) -> Float[Tensor, "b 1 f h w"]:
    """Find the edges of every frame.

    Args:
        video: red, green, blue in [-1, 1].
        sigma: width of the Gaussian that comes first, in pixels.

    Returns:
        1 on an edge, 0 elsewhere.

    Source: Canny 1986, as implemented in scikit-image.
    """
    frames = (
        video.detach().float().cpu().add(1).div(2).permute(0, 2, 3, 4, 1).numpy()
    )  # (b, f, h, w, 3)
    edges = np.zeros(frames.shape[:-1], dtype=np.float32)
    for b, f in np.ndindex(*frames.shape[:2]):
        edges[b, f] = canny(rgb2gray(frames[b, f]), sigma=sigma)
    return torch.from_numpy(edges)[:, None].to(video.device)
