"""Pictures as bytes: small PNG and animated PNG (APNG), written here so that a notebook stays small.

Every frame shares one palette, and a frame stores only the pixels that changed since the last: four 64x64
clips of 16 frames fit in well under 100 KB, which no general writer manages. Browsers, JupyterLab and GitHub
play APNG as the plain `image/png` that it also is. Format: PNG specification, third edition (2025), W3C.
"""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = 255  # of 256 palette entries one is kept for "as in the last frame"
UNCHANGED = 255
KEEP, REPLACE, OVER = 0, 0, 1  # APNG: dispose_op "none"; blend_op "source" and "over"


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """One opaque picture as PNG bytes; 0 … 255, at most 255 colours (exact if it has no more)."""
    return encode_apng(image[None], fps=1)


def encode_apng(
    frames: UInt8[np.ndarray, "n h w 3"], fps: float | int, colours: int = COLOURS
) -> bytes:
    """Frames 0 … 255 as an endlessly looping, opaque APNG; a single frame gives a plain PNG.

    `fps`: frames per second, 0.1 … 100. `colours`: how many are kept over the whole animation, 2 … 255: exact if
    the frames have no more, else an adaptive palette without dithering (dither flickers and does not compress).
    Raises ValueError for no frames, no pixels, or such an `fps` or `colours`.
    """
    if 0 in frames.shape:
        raise ValueError(
            f"frames must hold at least one frame and one pixel; got shape {frames.shape}"
        )
    if not 0.1 <= fps <= 100:
        raise ValueError(f"fps must lie in 0.1 … 100; got {fps}")
    if not 2 <= colours <= COLOURS:
        raise ValueError(f"colours must lie in 2 … {COLOURS}; got {colours}")
    indices, palette = _one_palette(frames, colours)
    n, height, width = indices.shape
    delay = struct.pack(">HH", round(1000 / fps), 1000)

    body = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    ]  # 8 bits, palette
    if n > 1:
        body.append(_chunk(b"acTL", struct.pack(">II", n, 0)))  # 0: loop for ever
    body.append(_chunk(b"PLTE", palette.tobytes()))
    if len(palette) > UNCHANGED:
        body.append(_chunk(b"tRNS", b"\xff" * UNCHANGED + b"\x00"))
    sequence = 0
    for i in range(n):
        pixels, left, top = (indices[0], 0, 0) if i == 0 else _changes(indices[i - 1], indices[i])
        data = zlib.compress(_rows(pixels), 9)
        if n > 1:
            box = struct.pack(">IIIII", sequence, pixels.shape[1], pixels.shape[0], left, top)
            blend = REPLACE if i == 0 else OVER
            body.append(_chunk(b"fcTL", box + delay + bytes([KEEP, blend])))
            sequence += 1
        if i == 0:
            body.append(_chunk(b"IDAT", data))
        else:
            body.append(_chunk(b"fdAT", struct.pack(">I", sequence) + data))
            sequence += 1
    return SIGNATURE + b"".join(body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _one_palette(frames: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Palette indices (n, h, w), and the palette (colours, 3): 256 rows if one must say "unchanged"."""
    red, green, blue = (frames[..., channel].astype(np.int32) for channel in range(3))
    code = red << 16 | green << 8 | blue
    seen = np.zeros(
        1 << 24, bool
    )  # one cell for each of the 2**24 colours: faster than sorting the pixels
    seen[code] = True
    codes = np.flatnonzero(seen)
    table = np.empty(1 << 24, np.int32)
    table[codes] = np.arange(len(codes))
    indices = table[code]
    palette = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)
    if len(palette) > most:
        palette, nearest = _adapt(palette, np.bincount(indices.ravel()), most)
        indices = nearest[indices]
    palette = palette.astype(np.uint8)
    if len(frames) > 1:
        palette = np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])
    return indices.astype(np.uint8), palette


def _adapt(colours: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A palette of so many (an octree, then three rounds of k-means), and the nearest entry to each colour."""
    sample = np.repeat(colours, 1 + (60_000 * (counts / counts.sum())).astype(int), axis=0).astype(
        np.uint8
    )
    cut = Image.fromarray(sample[None]).quantize(
        most, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    )
    palette = np.array(cut.getpalette("RGB"), float).reshape(-1, 3)[:most]
    for _ in range(3):
        nearest = _nearest(colours, palette)
        weight = np.bincount(nearest, counts, len(palette))
        for channel in range(3):
            total = np.bincount(nearest, counts * colours[:, channel], len(palette))
            palette[:, channel] = np.where(weight > 0, total / weight.clip(1), palette[:, channel])
    palette = palette.round()
    common = colours[
        counts > 0.02 * counts.sum()
    ]  # a page's white, a flat background: exact, or it shows
    palette[_nearest(common, palette)] = common
    return palette, _nearest(colours, palette)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index of the palette entry closest to each colour (Euclidean in RGB)."""
    pieces = np.array_split(
        colours.astype(np.float32), 1 + len(colours) // 20_000
    )  # bounds the memory
    centres = palette.astype(np.float32)
    length = (centres**2).sum(1)
    return np.concatenate([(length - 2 * piece @ centres.T).argmin(1) for piece in pieces])


def _changes(before: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The smallest box that holds every changed pixel, the others marked; and its left and top edge."""
    changed = before != now
    if not changed.any():
        return np.full((1, 1), UNCHANGED, np.uint8), 0, 0
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.where(changed, now, UNCHANGED).astype(np.uint8)[box], int(columns[0]), int(rows[0])


def _rows(pixels: np.ndarray) -> bytes:
    """Scan lines, each after its filter byte: 2 ("up", all zeros) where a row repeats the one above."""
    repeats = np.zeros((len(pixels), 1), bool)
    repeats[1:, 0] = (pixels[1:] == pixels[:-1]).all(1)
    lines = np.where(repeats, 0, pixels)
    return np.concatenate([np.where(repeats, 2, 0), lines], 1).astype(np.uint8).tobytes()
