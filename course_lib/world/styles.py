"""Rendering styles: targets for LoRA fine-tuning and for editing."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from course_lib.validation import require
from course_lib.world.checks import at_least_float32, check_rgb


def pixel_art(video: Tensor) -> Float[Tensor, "b 3 f h w"]:
    """Redraw at 16x16 pixels with six levels per colour.

    Args:
        video: clips (b, 3, f, h, w), RGB in [-1, 1]; height and width divisible by 16.

    Raises:
        ValueError: any other video.
    """
    check_rgb("video", video, may_be_empty=True)
    h, w = video.shape[-2:]
    require(h % 16 == w % 16 == 0, "video", "sides divisible by 16", f"{h}x{w}")
    block = (1, h // 16, w // 16)
    coarse = F.avg_pool3d(video.float(), block)  # float32: the CPU has no half-precision pooling
    coarse = (coarse.add(1).div(2).mul(5).round() / 5) * 2 - 1
    scale = tuple(map(float, block))
    return F.interpolate(coarse, scale_factor=scale, mode="nearest").to(video.dtype)


def ink(video: Tensor) -> Float[Tensor, "b 3 f h w"]:
    """Redraw in ink on warm paper: dark lines where brightness changes, faint washes of colour.

    Args:
        video: clips (b, 3, f, h, w), RGB in [-1, 1].

    Raises:
        ValueError: any other video.
    """
    check_rgb("video", video, may_be_empty=True)
    if video.numel() == 0:  # conv2d rejects an empty batch
        return video
    frames = at_least_float32(video).transpose(1, 2).flatten(0, 1)  # (b f) c h w
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(frames)
    kernel = torch.stack([sobel, sobel.T])[:, None].repeat(3, 1, 1, 1)  # (2 c) 1 3 3
    gradient = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    line = (gradient.square().sum(1, keepdim=True) / 3).sqrt() * 0.9 - 0.35
    line = line.clamp(0, 1)  # (b f) 1 h w
    paper = torch.tensor([0.92, 0.84, 0.70]).to(frames).view(1, 3, 1, 1)
    wash = paper + 0.25 * (frames - frames.mean(1, keepdim=True))
    out = (wash * (1 - line) - 0.9 * line).clamp(-1, 1)
    return out.unflatten(0, (len(video), -1)).transpose(1, 2).contiguous().to(video.dtype)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {"pixel art": pixel_art, "ink": ink}
