"""Rendering styles: the Emoji World's counterpart of "anime style", as targets for LoRA and for editing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pixel_art(video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 3 f h w"]:
    """Redraw as an old computer game: 16 pixels across, six levels per colour.

    Args:
        video: red, green, blue in [-1, 1]; height and width divisible by 16.

    Raises:
        ValueError: height or width not divisible by 16.
    """
    h, w = video.shape[-2:]
    if h % 16 or w % 16:
        raise ValueError(f"video must have height and width divisible by 16, got {h}x{w}")
    block = (1, h // 16, w // 16)
    coarse = F.avg_pool3d(
        video.float(), block
    )  # in float32: half precision has no such pooling on a CPU
    coarse = (coarse.add(1).div(2).mul(5).round() / 5) * 2 - 1
    return F.interpolate(coarse, scale_factor=tuple(map(float, block)), mode="nearest").to(
        video.dtype
    )


def ink(video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 3 f h w"]:
    """Redraw with a pen on warm paper: dark outlines where brightness changes, faint washes of colour.

    Args:
        video: red, green, blue in [-1, 1].
    """
    b, c, f, h, w = video.shape
    frames = video.transpose(1, 2).reshape(b * f, c, h, w)  # (b f) c h w
    sobel = torch.tensor(
        [[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=video.device, dtype=video.dtype
    )
    kernel = torch.stack([sobel, sobel.T])[:, None].repeat(c, 1, 1, 1)  # (2 c) 1 3 3
    slope = (
        F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernel, groups=c)
        if b * f
        else frames
    )
    line = ((slope.square().sum(1, keepdim=True) / 3).sqrt() * 0.9 - 0.35).clamp(
        0, 1
    )  # (b f) 1 h w
    paper = torch.tensor([0.92, 0.84, 0.70], device=video.device, dtype=video.dtype).view(
        1, 3, 1, 1
    )
    washed = paper + 0.25 * (frames - frames.mean(1, keepdim=True))
    drawn = washed * (1 - line) - 0.9 * line
    return drawn.clamp(-1, 1).reshape(b, f, c, h, w).transpose(1, 2).contiguous()


STYLES: dict[str, Callable[[Tensor], Tensor]] = {"pixel art": pixel_art, "ink": ink}
