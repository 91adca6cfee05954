"""Images as bytes: PNG and animated PNG (APNG), which browsers, JupyterLab and GitHub play.

Pillow writes the file. Two things here keep it small: all frames share one adaptive palette, and a
frame has only the pixels that changed. Format: PNG specification, third edition (2025), W3C.
"""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from course_lib.validation import check_int, check_number, require

MAX_COLOURS = 255  # one of 256 palette entries means "as in the last frame"
UNCHANGED = 255
KMEANS_ROUNDS = 3
COMMON_SHARE = 0.02  # colours of so many pixels stay exact: a page's white, a flat background


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """One opaque image as PNG.

    Args:
        image: 0 to 255; exact up to 255 colours.

    Raises:
        ValueError: for anything else.
    """
    return encode_apng(image[None], fps=1)


def encode_apng(
    frames: UInt8[np.ndarray, "n h w 3"], fps: float | int, colours: int = MAX_COLOURS
) -> bytes:
    """Frames as an endlessly looping, opaque APNG; a single frame gives a plain PNG.

    Args:
        frames: 0 to 255.
        fps: frames per second, 0.1 to 100.
        colours: size of the palette of the whole animation, 2 to 255. Frames with more colours get
            an adaptive palette without dithering, which would flicker and compress badly.

    Raises:
        ValueError: no frames, no pixels, no levels, or such an `fps` or `colours`.
    """
    is_rgb = frames.ndim == 4 and frames.shape[-1] == 3
    require(is_rgb, "frames", "(n, h, w, 3)", f"shape {frames.shape}")
    require(0 not in frames.shape, "frames", "no empty axis", f"shape {frames.shape}")
    # Floats would be cut off, and NaN become any level
    require(frames.dtype == np.uint8, "frames", "levels 0 to 255 as uint8", frames.dtype)
    check_number("fps", fps, at_least=0.1, at_most=100.0)
    check_int("colours", colours, 2, MAX_COLOURS)
    indices, palette = _shared_palette(frames, colours)
    is_repeated = indices[1:] == indices[:-1]  # (n - 1, h, w)
    changes = np.where(is_repeated, np.uint8(UNCHANGED), indices[1:])
    images = [Image.fromarray(pixels) for pixels in (indices[0], *changes)]
    for image in images:
        image.putpalette(palette.tobytes())
    animation = {}
    if len(images) > 1:
        animation = {
            "save_all": True,
            "append_images": images[1:],
            "duration": round(1000 / fps),  # milliseconds
            "loop": 0,
            "disposal": PngImagePlugin.Disposal.OP_NONE,
            "blend": PngImagePlugin.Blend.OP_OVER,
            "transparency": UNCHANGED,
        }
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG", optimize=True, **animation)
    return buffer.getvalue()


def _shared_palette(frames: np.ndarray, max_colours: int) -> tuple[np.ndarray, np.ndarray]:
    """Palette indices (n, h, w) and palette (colours, 3); of animations with all 256 entries."""
    red, green, blue = (frames[..., channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue
    # a table of all 2**24 colours: faster than sorting the pixels
    index_of = np.zeros(1 << 24, np.int32)
    index_of[codes] = 1
    unique = np.flatnonzero(index_of)
    index_of[unique] = np.arange(len(unique))
    indices = index_of[codes]
    palette = np.stack([unique >> 16, unique >> 8 & 255, unique & 255], 1)
    if len(palette) > max_colours:
        palette, nearest = _quantize_palette(palette, np.bincount(indices.ravel()), max_colours)
        indices = nearest[indices]
    if len(frames) > 1:
        palette = np.pad(palette, ((0, 256 - len(palette)), (0, 0)))
    return indices.astype(np.uint8), palette.astype(np.uint8)


def _quantize_palette(
    colours: np.ndarray, counts: np.ndarray, max_colours: int
) -> tuple[np.ndarray, np.ndarray]:
    """A palette by octree and k-means, and the index of its nearest entry for each colour."""
    repeats = 1 + (60_000 * (counts / counts.sum())).astype(int)
    sample = np.repeat(colours, repeats, axis=0).astype(np.uint8)
    octree = Image.fromarray(sample[None]).quantize(
        max_colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    palette = np.array(octree.getpalette("RGB"), float).reshape(-1, 3)[:max_colours]
    for _ in range(KMEANS_ROUNDS):
        nearest = _nearest(colours, palette)
        weight = np.bincount(nearest, counts, len(palette))
        for channel in range(3):
            total = np.bincount(nearest, counts * colours[:, channel], len(palette))
            palette[:, channel] = np.where(weight > 0, total / weight.clip(1), palette[:, channel])
    palette = palette.round()
    common = colours[counts > COMMON_SHARE * counts.sum()]
    palette[_nearest(common, palette)] = common
    return palette, _nearest(colours, palette)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index of the palette entry closest to each colour (Euclidean in RGB)."""
    chunks = np.array_split(colours.astype(np.float32), 1 + len(colours) // 20_000)
    centres = palette.astype(np.float32)
    squares = (centres**2).sum(1)
    return np.concatenate([(squares - 2 * chunk @ centres.T).argmin(1) for chunk in chunks])
