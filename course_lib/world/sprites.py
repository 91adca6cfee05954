"""The cast: emoji sprites read from `data/sprites/`, coloured shapes drawn from signed distances.

A sprite is 16 frames of 64x64 premultiplied RGBA. Premultiplied means that colour is already multiplied by its
coverage, so filtering never drags in the colour of invisible pixels (the dark fringe of naive compositing), and
"over" is one multiplication: out = sprite + (1 - alpha) * background.
"""

import json
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from course_lib.runtime import data_dir
from course_lib.world.subjects import COLOURS, EMOJI, SHAPES

SPRITE_SIZE = 64
SPRITE_FRAMES = 16
EXTENT = (
    60 / SPRITE_SIZE
)  # share of the sprite that the subject's longer side covers; the rest is empty margin
# Blur (in texels) for subjects drawn about as large as the texture, a little smaller, and half as large.
# Without it, shrinking skips texels: thin lines flicker as they move, and no flow field can explain flicker.
LEVELS: tuple[float, ...] = (0.6, 0.8, 1.05)


@lru_cache(maxsize=1)
def sprite_bank() -> tuple[Tensor, np.ndarray]:
    """Return all sprite pictures, and where to find each subject's.

    Returns:
        pictures, uint8 premultiplied RGBA of shape (level, picture, 4, 64, 64), and an integer table of shape
        (subject, frame) into its second axis: emoji have 16 pictures each, a shape has one.

    Raises:
        FileNotFoundError: the sprite file is missing.
        ValueError: the sprite file does not hold the emoji this version of the course knows.
    """
    emoji = _load_emoji()  # (n, 16, 4, 64, 64)
    shapes = torch.stack([draw_shape(shape, rgb) for shape in SHAPES for rgb in COLOURS.values()])
    sharp = torch.cat([emoji.flatten(0, 1), shapes])  # (picture, 4, 64, 64)
    levels = [_blur(sharp, sigma).mul(255).round().to(torch.uint8) for sigma in LEVELS]
    animated = np.arange(len(EMOJI) * SPRITE_FRAMES).reshape(len(EMOJI), SPRITE_FRAMES)
    still = np.repeat(
        len(EMOJI) * SPRITE_FRAMES + np.arange(len(shapes))[:, None], SPRITE_FRAMES, axis=1
    )
    return torch.stack(levels), np.concatenate([animated, still])


def level_for(size: np.ndarray, pixels: int) -> np.ndarray:
    """Choose the sharpest sprite level that shrinking to `size` does not make flicker.

    Args:
        size: share of the frame the subject covers.
        pixels: height and width of the frame.

    Returns:
        integer indices into `LEVELS`.
    """
    shrink = SPRITE_SIZE * EXTENT / (np.asarray(size) * pixels)  # texels per pixel
    return np.searchsorted([1.3, 1.7], shrink)


def draw_shape(shape: str, rgb: tuple[float, float, float]) -> Float[Tensor, "4 64 64"]:
    """Draw a coloured shape with a darker rim, anti-aliased by its signed distance.

    Args:
        shape: a name from `SHAPES`.
        rgb: colour in [0, 1].

    Raises:
        ValueError: an unknown shape.
    """
    line = (np.arange(SPRITE_SIZE) * 2 + 1) / SPRITE_SIZE - 1
    x, y = np.meshgrid(line / EXTENT, line / EXTENT)  # the shape spans [-1, 1]
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
        x, y: coordinates, y pointing down.

    Raises:
        ValueError: an unknown shape.

    Source: Inigo Quilez, "2D distance functions" (circle, box, polygons, heart).
    """
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius - 1
    if shape == "ring":
        return np.abs(radius - 0.74) - 0.26
    if shape == "square":
        dx, dy = np.abs(x) - 0.88, np.abs(y) - 0.88
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0)
    if shape == "triangle":
        return _polygon(x, y, [(0.0, -0.9), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "star":
        angles = np.pi * np.arange(10) / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        return _polygon(
            x, y, list(zip(reach * np.sin(angles), 0.05 - reach * np.cos(angles), strict=True))
        )
    if shape == "heart":
        px, py = np.abs(x) * 0.62, 0.58 - y * 0.62  # Quilez's heart stands on its tip at the origin
        lobe = np.hypot(px - 0.25, py - 0.75) - np.sqrt(2) / 4
        half = np.maximum(px + py, 0) / 2
        flank = np.minimum(np.hypot(px, py - 1), np.hypot(px - half, py - half)) * np.sign(px - py)
        return np.where(px + py > 1, lobe, flank) / 0.62
    raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    distance, inside = np.full_like(x, np.inf), np.zeros_like(x, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex**2 + ey**2), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * ex, y - ay - along * ey))
        crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay + 1e-30) + ax)
        inside ^= crosses  # a ray to the right crosses the outline an odd number of times
    return np.where(inside, -distance, distance)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur as two small matrix products: far faster on a CPU than a depthwise convolution."""
    line = torch.arange(float(SPRITE_SIZE))
    band = torch.exp(-((line[:, None] - line[None]) ** 2) / (2 * sigma**2))
    band = band / band.sum(1).max()  # rows near the border lose nothing: the margin is empty
    return (band @ images @ band).clamp(0, 1)


def _load_emoji() -> Tensor:
    folder = data_dir() / "sprites"
    listed = [entry["name"] for entry in json.loads((folder / "emoji.json").read_text())["emoji"]]
    if listed != [emoji.name for emoji in EMOJI]:
        raise ValueError(
            f"{folder / 'emoji.json'} lists other emoji than this version of the course; rebuild data/"
        )
    atlas = np.asarray(Image.open(folder / "emoji.webp").convert("RGBA"), dtype=np.float32) / 255
    expected = (len(EMOJI) * SPRITE_SIZE, SPRITE_FRAMES * SPRITE_SIZE, 4)
    if atlas.shape != expected:
        raise ValueError(
            f"{folder / 'emoji.webp'} has shape {atlas.shape}, expected {expected}; rebuild data/"
        )
    tiles = atlas.reshape(len(EMOJI), SPRITE_SIZE, SPRITE_FRAMES, SPRITE_SIZE, 4).transpose(
        0, 2, 4, 1, 3
    )
    tiles = np.concatenate(
        [tiles[:, :, :3] * tiles[:, :, 3:], tiles[:, :, 3:]], axis=2
    )  # premultiply
    return torch.from_numpy(tiles)  # (n, 16, 4, 64, 64)
