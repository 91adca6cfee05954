"""Sprites: emoji read from `data/sprites/`, coloured shapes rendered from signed distances.

A sprite is 16 frames of 64x64 premultiplied RGBA: colour is already multiplied by its coverage.
Filtering then never mixes in the colour of invisible pixels (the dark fringe of naive compositing),
and compositing is one multiplication: out = sprite + (1 - alpha) * background.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from course_lib.files import read_json, verify_checksum
from course_lib.runtime import data_dir
from course_lib.validation import check_choice, check_number, require
from course_lib.world.subjects import COLOURS, EMOJI, SHAPES

SPRITE_SIZE = 64
SPRITE_FRAMES = 16
EXTENT = 60 / SPRITE_SIZE  # fraction of the sprite that the subject's longer side covers
# Gaussian sigma, in texels, for subjects about as large as the sprite, a little smaller, and half
# as large. Without blur, downscaling skips texels: thin lines flicker as they move, which no flow
# field can explain.
MIP_BLUR_SIGMAS: tuple[float, ...] = (0.6, 0.8, 1.05)


@lru_cache(maxsize=1)
def sprite_atlas() -> tuple[Tensor, np.ndarray]:
    """All sprite images, and an index of them.

    Returns:
        images, uint8 premultiplied RGBA of shape (mip level, image, 4, 64, 64), and an integer
        table of shape (subject, frame) with indices into its second axis: emoji have 16 images
        each, a shape has one.

    Raises:
        FileNotFoundError: a file of the sprites is missing.
        ValueError: a file is damaged, or does not hold the emoji of `subjects.py`.
    """
    emoji = _load_emoji()  # (n, 16, 4, 64, 64)
    shapes = torch.stack([draw_shape(shape, rgb) for shape in SHAPES for rgb in COLOURS.values()])
    sharp = torch.cat([emoji.flatten(0, 1), shapes])  # (images, 4, 64, 64)
    levels = [_blur(sharp, sigma).mul(255).round().to(torch.uint8) for sigma in MIP_BLUR_SIGMAS]
    num_emoji_images = len(EMOJI) * SPRITE_FRAMES
    animated = np.arange(num_emoji_images).reshape(len(EMOJI), SPRITE_FRAMES)
    static = num_emoji_images + np.arange(len(shapes))[:, None]
    static = np.broadcast_to(static, (len(shapes), SPRITE_FRAMES))
    return torch.stack(levels), np.concatenate([animated, static])


def mip_level_for(size: np.ndarray, frame_size: int) -> np.ndarray:
    """Choose the sharpest mip level that does not flicker when scaled to `size`.

    Args:
        size: fraction of the frame that the subject covers.
        frame_size: height and width of the frame in pixels.

    Returns:
        integer indices into `MIP_BLUR_SIGMAS`.
    """
    texels_per_pixel = SPRITE_SIZE * EXTENT / (np.asarray(size) * frame_size)
    return np.searchsorted([1.3, 1.7], texels_per_pixel)


def draw_shape(shape: str, rgb: tuple[float, float, float]) -> Float[Tensor, "4 64 64"]:
    """Render a coloured shape with a darker rim, anti-aliased by its signed distance.

    Args:
        shape: a name from `SHAPES`.
        rgb: colour in [0, 1].

    Raises:
        ValueError: an unknown shape, or a colour outside [0, 1].
    """
    for channel in rgb:
        check_number("rgb", channel, at_least=0.0, at_most=1.0)
    centres = (np.arange(SPRITE_SIZE) * 2 + 1) / SPRITE_SIZE - 1
    x, y = np.meshgrid(centres / EXTENT, centres / EXTENT)  # the shape spans [-1, 1]
    distance = signed_distance(shape, x, y)
    texel = 2 / (SPRITE_SIZE * EXTENT)
    coverage = np.clip(0.5 - distance / texel, 0, 1)
    rim = np.clip(0.5 + (distance + 0.09) / texel, 0, 1)
    colour = np.asarray(rgb)[:, None, None] * (1 - 0.35 * rim)
    return torch.from_numpy(np.concatenate([colour * coverage, coverage[None]])).float()


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape that spans [-1, 1]: negative inside, positive outside.

    Args:
        shape: a name from `SHAPES`.
        x: horizontal coordinates.
        y: vertical coordinates, pointing down.

    Raises:
        ValueError: an unknown shape.

    Source: Inigo Quilez, "2D distance functions" (circle, box, polygons, heart).
    """
    check_choice("shape", shape, SHAPES)
    match shape:
        case "circle":
            return np.hypot(x, y) - 1
        case "ring":
            return np.abs(np.hypot(x, y) - 0.74) - 0.26
        case "square":
            dx, dy = np.abs(x) - 0.88, np.abs(y) - 0.88
            outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
            return outside + np.minimum(np.maximum(dx, dy), 0)
        case "triangle":
            return _polygon(x, y, [(0.0, -0.9), (1.0, 0.85), (-1.0, 0.85)])
        case "star":
            angles = np.pi * np.arange(10) / 5
            radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
            corners = zip(radii * np.sin(angles), 0.05 - radii * np.cos(angles), strict=True)
            return _polygon(x, y, list(corners))
        case _:  # Quilez's heart stands on its tip at the origin
            px, py = np.abs(x) * 0.62, 0.58 - y * 0.62
            lobe = np.hypot(px - 0.25, py - 0.75) - np.sqrt(2) / 4
            half = np.maximum(px + py, 0) / 2
            flank = np.minimum(np.hypot(px, py - 1), np.hypot(px - half, py - half))
            return np.where(px + py > 1, lobe, flank * np.sign(px - py)) / 0.62


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    distance = np.full_like(x, np.inf)
    inside = np.zeros_like(x, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * ex, y - ay - along * ey))
        crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay + 1e-30) + ax)
        inside ^= crosses  # even-odd rule
    return np.where(inside, -distance, distance)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur as two matrix products: far faster on a CPU than a depthwise convolution."""
    texels = torch.arange(float(SPRITE_SIZE))
    kernel = torch.exp(-((texels[:, None] - texels[None]) ** 2) / (2 * sigma**2))
    # the margin is empty, so rows near the border lose nothing
    kernel = kernel / kernel.sum(1).max()
    return (kernel @ images @ kernel).clamp(0, 1)


def _load_emoji() -> Float[Tensor, "n 16 4 64 64"]:
    folder = data_dir() / "sprites"
    listing, images = folder / "emoji.json", folder / "emoji.webp"
    for file in (listing, images):
        verify_checksum(file, folder)
    listed = [entry["name"] for entry in read_json(listing)["emoji"]]
    is_complete = listed == [emoji.name for emoji in EMOJI]
    require(is_complete, str(listing), "the emoji of subjects.py", "others; rebuild data/")
    atlas = np.asarray(Image.open(images).convert("RGBA"), dtype=np.float32) / 255
    expected = (len(EMOJI) * SPRITE_SIZE, SPRITE_FRAMES * SPRITE_SIZE, 4)
    got = f"{atlas.shape}; rebuild data/"
    require(atlas.shape == expected, str(images), f"shape {expected}", got)
    tiles = atlas.reshape(len(EMOJI), SPRITE_SIZE, SPRITE_FRAMES, SPRITE_SIZE, 4)  # n h f w c
    tiles = tiles.transpose(0, 2, 4, 1, 3).copy()  # n f c h w
    tiles[:, :, :3] *= tiles[:, :, 3:]  # premultiply
    return torch.from_numpy(tiles)
