"""Controlled corruptions of a clip, one property at a time, to test metrics and to train the judge.

Every function takes clips (b, c, f, h, w), floats in [-1, 1], and keeps shape, range and dtype; its
argument is the strength. Anything else is a ValueError that names the argument. Corruptions of
frames come first (blur, noise, colour, compression), then those of time. For labelled defects of a
data set, see `defects`. `remove_top` needs to know the subject, so it takes rendered scenes.
"""

import io
import math
from collections.abc import Callable

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as TF

from course_lib.validation import (
    check_float,
    check_generator,
    check_int,
    check_number,
    check_tensor,
    require,
    to_uint8,
)
from course_lib.world.checks import CLIPS_AXES, at_least_float32, check_clips, check_rgb
from course_lib.world.film import encode_h264, from_uint8
from course_lib.world.rendering import Clips, paint_backgrounds, pixel_grid

Corruption = Callable[[Tensor, torch.Generator], Tensor]


def _fold_frames(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "n c h w"]:
    return video.transpose(1, 2).flatten(0, 1)  # (b f) c h w


def _unfold_frames(frames: Float[Tensor, "n c h w"], b: int) -> Float[Tensor, "b c f h w"]:
    return frames.unflatten(0, (b, -1)).transpose(1, 2)


def blur(video: Tensor, sigma: float | int) -> Float[Tensor, "b c f h w"]:
    """Gaussian blur of every frame.

    Args:
        video: in [-1, 1].
        sigma: standard deviation in pixels, positive.

    Raises:
        ValueError: no clips of floats, or sigma is not positive.
    """
    check_float("video", video, CLIPS_AXES)
    check_number("sigma", sigma, above=0.0)
    planes = at_least_float32(video).flatten(0, 2)[:, None]  # (b c f) 1 h w
    # reflection padding must be smaller than the frame
    radius = min(math.ceil(3 * sigma), min(video.shape[-2:]) - 1)
    taps = torch.arange(-radius, radius + 1, device=video.device)
    taps = torch.exp(-(taps**2) / (2 * sigma**2))
    taps = (taps / taps.sum()).to(planes.dtype).view(1, 1, 1, -1)
    # separable; torchvision's gaussian_blur gives the same with a 2D kernel, many times slower
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="reflect"), taps)
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="reflect"), taps.transpose(2, 3))
    return planes.view(video.shape).to(video.dtype)


def noise(video: Tensor, std: float | int, generator: torch.Generator) -> Tensor:
    """Independent Gaussian noise on every value, clipped to [-1, 1].

    Args:
        video: in [-1, 1].
        std: standard deviation, in the units of the video; at least 0.
        generator: on the CPU.

    Raises:
        ValueError: no such clips, or std is negative.
    """
    check_clips("video", video, may_be_empty=True)
    check_number("std", std, at_least=0.0)
    check_generator(generator)
    return (video + std * torch.randn(video.shape, generator=generator).to(video)).clamp(-1, 1)


def shift_hue(video: Tensor, hue: float | int) -> Float[Tensor, "b c f h w"]:
    """Rotate the hue of every pixel.

    Args:
        video: in [-1, 1], three channels.
        hue: fraction of the colour circle, in [-0.5, 0.5]; 1/3 turns red into green.

    Raises:
        ValueError: no RGB clips, or hue out of range.
    """
    check_rgb("video", video)
    check_number("hue", hue, at_least=-0.5, at_most=0.5)
    frames = _fold_frames(at_least_float32(video)).add(1).div(2).clamp(0, 1)
    shifted = TF.adjust_hue(frames, float(hue)).mul(2).sub(1)
    return _unfold_frames(shifted, len(video)).to(video.dtype)


def jpeg(video: Tensor, quality: int) -> Float[Tensor, "b 3 f h w"]:
    """JPEG compression of every frame.

    Args:
        video: in [-1, 1].
        quality: 1 (worst) to 100.

    Raises:
        ValueError: no RGB clips, or quality out of range.
    """
    check_rgb("video", video)
    check_int("quality", quality, 1, 100)
    frames = to_uint8(_fold_frames(video)).cpu()
    decoded = torch.stack([decode_jpeg(encode_jpeg(frame, quality)) for frame in frames])
    frames = decoded.to(at_least_float32(video)).div(127.5).sub(1)
    return _unfold_frames(frames, len(video)).to(video.dtype)


def h264(video: Tensor, crf: int) -> Float[Tensor, "b 3 f h w"]:
    """H.264 compression of every clip. Unlike those of JPEG, its errors last over several frames.

    Args:
        video: in [-1, 1]; height and width even.
        crf: constant rate factor of the codec, 0 (best) to 51 (worst).

    Raises:
        ValueError: no RGB clips, an odd height or width, or crf out of range.
    """
    check_rgb("video", video)
    decoded = []
    for clip in video:
        file = io.BytesIO()
        encode_h264(file, clip, fps=8, crf=crf)
        file.seek(0)
        with av.open(file) as reader:
            frames = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
        decoded.append(from_uint8(np.stack(frames)))
    return torch.stack(decoded).to(video)


def elastic_distortion(
    video: Tensor,
    rms_px: float | int,
    generator: torch.Generator,
    *,
    consistent: bool,
) -> Float[Tensor, "b c f h w"]:
    """Smooth random displacement of the pixels, per clip or per frame.

    Both variants damage single frames equally; only a field per frame makes the clip flicker.

    Args:
        video: in [-1, 1].
        rms_px: root mean square of the displacement along each axis, in every frame, in pixels;
            0 leaves the clips as they are.
        generator: on the CPU.
        consistent: one displacement field per clip, not one per frame.

    Raises:
        ValueError: no clips of finite floats, or rms_px is negative.

    Source: after Ge et al. 2024, "On the Content Bias in Fréchet Video Distance", section 3.
    """
    check_tensor("video", video, CLIPS_AXES)
    check_number("rms_px", rms_px, at_least=0.0)
    check_generator(generator)
    b, _, f, h, w = video.shape
    fields = torch.randn(b, 1 if consistent else f, 2, 5, 5, generator=generator)  # coarse grid
    if rms_px == 0:  # the kernels below would round
        return video.clone()
    fields = F.interpolate(fields.flatten(0, 1), (h, w), mode="bicubic", align_corners=True)
    fields = fields.view(b, -1, 2, h, w)
    fields = fields / fields.square().mean(dim=(2, 3, 4), keepdim=True).sqrt() * rms_px
    shift = fields.expand(b, f, 2, h, w).flatten(0, 1).permute(0, 2, 3, 1)  # (b f) h w 2
    identity = torch.eye(2, 3).expand(b * f, 2, 3)
    identity = F.affine_grid(identity, [b * f, 1, h, w], align_corners=False)  # (b f) h w 2
    # not in half precision, where the CPU's kernel reads beyond the border
    frames = _fold_frames(at_least_float32(video))
    grid = (identity + shift * 2 / torch.tensor([w, h])).to(frames)
    frames = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    return _unfold_frames(frames, b).to(video.dtype)


# Corruptions of time


def remove_top(clips: Clips, part: float | int = 1 / 3) -> Float[Tensor, "b 3 f h w"]:
    """Replace the upper part of every subject by its background: cats without heads.

    Args:
        clips: rendered scenes, whose backgrounds are known.
        part: fraction of the subject's height, in (0, 1].

    Returns:
        The changed videos, in [-1, 1].

    Raises:
        ValueError: a part out of range.
    """
    check_number("part", part, above=0.0, at_most=1.0)
    size = clips.video.shape[-1]
    y = pixel_grid(size, clips.video.device)[..., 1]  # h w
    centre, extent = clips.path[:, None, :, 1:3, None, None].unbind(dim=3)  # b 1 f 1 1
    is_top = y < centre - (1 - 2 * part) * extent  # b 1 f h w
    backgrounds = paint_backgrounds(clips.scenes, size, clips.video.device) * 2 - 1
    return backgrounds[:, :, None].where(is_top & (clips.alpha > 0.05), clips.video)


def freeze(video: Tensor) -> Float[Tensor, "b c f h w"]:
    """Repeat the first frame."""
    check_float("video", video, CLIPS_AXES)
    return video[:, :, :1].expand_as(video).contiguous()


def reverse(video: Tensor) -> Float[Tensor, "b c f h w"]:
    """Reverse the order of the frames."""
    check_float("video", video, CLIPS_AXES)
    return video.flip(2)


def shuffle(video: Tensor, generator: torch.Generator) -> Float[Tensor, "b c f h w"]:
    """Permute the frames of each clip independently.

    The result is neither the original order nor its reverse.

    Args:
        video: at least three frames.
        generator: on the CPU.

    Raises:
        ValueError: fewer than three frames.
    """
    check_float("video", video, CLIPS_AXES)
    check_generator(generator)
    f = video.shape[2]
    require(f >= 3, "video", "at least 3 frames to shuffle", f)
    out = torch.empty_like(video)
    for clip, target in zip(video, out, strict=True):
        order = list(range(f))
        while order in (list(range(f)), list(range(f))[::-1]):
            order = torch.randperm(f, generator=generator).tolist()
        target.copy_(clip[:, order])
    return out


def swap_halves(video: Tensor) -> Float[Tensor, "b c f h w"]:
    """Show the second half of each clip before the first, so that a single transition is wrong."""
    check_float("video", video, CLIPS_AXES)
    return video.roll(video.shape[2] // 2, dims=2)


def hard_cut(video: Tensor) -> Float[Tensor, "b c f h w"]:
    """Cut to the next clip of the batch in the middle.

    Args:
        video: at least two clips of at least two frames.

    Raises:
        ValueError: fewer clips or frames.
    """
    check_float("video", video, CLIPS_AXES)
    b, _, f = video.shape[:3]
    require(min(b, f) >= 2, "video", "at least 2 clips of 2 frames", f"{b} of {f}")
    return torch.cat([video[:, :, : f // 2], video.roll(-1, dims=0)[:, :, f // 2 :]], dim=2)


# (video, generator) -> video, at the strengths of lesson 16
CORRUPTIONS: dict[str, Corruption] = {
    "blur": lambda video, generator: blur(video, video.shape[-1] / 43),  # 1.5 pixels of 64
    "noise": lambda video, generator: noise(video, 0.2, generator),
    "colour": lambda video, generator: shift_hue(video, 0.15),
    "compression": lambda video, generator: h264(video, 40),
    "freeze": lambda video, generator: freeze(video),
    "shuffle": shuffle,
    "reverse": lambda video, generator: reverse(video),
    "cut": lambda video, generator: hard_cut(video),
}
