"""Layout: clips and their captions on a white page, as plain pixel arrays that any test can read."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

PAGE = 720  # pixels: what GitHub shows of a notebook without shrinking it
GAP = 12
INK, GREY, EDGE = (34, 34, 34), (95, 95, 95), (200, 200, 200)
FONT_SIZE, SMALL = 15, 13
MAX_LINES = 4


@dataclass(frozen=True)
class Row:
    """Clips shown side by side: 0 … 255, one caption each ("" for none), and a heading ("" for none)."""

    clips: UInt8[np.ndarray, "b f h w 3"]
    captions: tuple[str, ...]
    title: str = ""


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib brings it along: the same letters on every machine, no download."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def fit(text: str, width: int, size: int = FONT_SIZE) -> list[str]:
    """`text` broken into at most four lines of at most `width` pixels; the last ends in … if cut."""
    letters = font(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and letters.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], " ".join(lines[MAX_LINES - 1 :])]
    return [_cut(line, width, letters) for line in lines]


def _cut(line: str, width: int, letters: ImageFont.FreeTypeFont) -> str:
    if letters.getlength(line) <= width:
        return line
    while line and letters.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def resize(
    clips: UInt8[np.ndarray, "*n h w 3"], scale: int, reduce: int = 1
) -> UInt8[np.ndarray, "*n H W 3"]:
    """Enlarge `scale` times without smoothing (pixels stay square), or average blocks of `reduce` pixels."""
    if reduce > 1:
        h, w = (size // reduce * reduce for size in clips.shape[-3:-1])
        blocks = clips[..., :h, :w, :].reshape(
            *clips.shape[:-3], h // reduce, reduce, w // reduce, reduce, 3
        )
        clips = blocks.astype(np.float32).mean((-4, -2)).round().astype(np.uint8)
    return clips.repeat(scale, -3).repeat(scale, -2)


def page(width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """A white sheet."""
    return np.full((height, width, 3), 255, np.uint8)


def write(sheet: UInt8[np.ndarray, "h w 3"], texts: list[tuple[int, int, str, int, bool]]) -> None:
    """Write each (x, y, text, size, bold) into the sheet, in place; y is the top of the line."""
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for x, y, text, size, bold in texts:
        draw.text((x, y), text, fill=GREY if size == SMALL else INK, font=font(size, bold))
    sheet[:] = np.asarray(image)


def _edge(sheet: np.ndarray, top: int, left: int, h: int, w: int) -> None:
    """Draw a line around the place of a picture, in place: a white picture would end nowhere."""
    sheet[top - 1 : top + h + 1, left - 1 : left + w + 1] = EDGE


def frame_at(i: int, n: int, of: int) -> int:
    """Frame `i` of an animation of `n`, in a clip of `of` frames that lasts as long as the animation."""
    return i * of // n


def animation(
    rows: list[Row], scale: int | None = None, columns: int | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Every frame of the page: clips side by side, wrapped to 720 pixels, captions below, headings above.

    `scale`: enlargement; without one, clips become at least 128 pixels wide (about 192 if one or two).
    `columns`: clips per line; without one, as many as fit.
    All clips start and end together: one of 4 frames beside one of 16 holds each frame four times.
    """
    few = sum(len(row.clips) for row in rows) <= 2
    n = max(row.clips.shape[1] for row in rows)
    parts = [
        _animated_row(row, n, scale or _enlarge(row, few), _reduction(row, 320), columns)
        for row in rows
    ]
    width = max(part.shape[2] for part in parts)
    filled = [np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2]), (0, 0)), constant_values=255)
              for part in parts]  # fmt: skip
    return np.concatenate(filled, axis=1)


def _enlarge(row: Row, few: bool) -> int:
    width = row.clips.shape[3]
    return max(1, round(192 / width)) if few else math.ceil(128 / width)


def _reduction(row: Row, widest: int) -> int:
    return max(1, math.ceil(row.clips.shape[3] / widest))


def _animated_row(row: Row, n: int, scale: int, reduce: int, columns: int | None) -> np.ndarray:
    clips = resize(row.clips, scale if reduce == 1 else 1, reduce)
    b, f, h, w, _ = clips.shape
    tile = (max(w, 96) if any(row.captions) else w) + GAP  # room for a few words under a small clip
    columns = min(b, columns or max(1, PAGE // tile))
    lines = [fit(caption, max(w, 96)) for caption in row.captions]
    heading = 26 if row.title else 0
    line_height = FONT_SIZE + 4
    tops, y = [], heading + 1
    for start in range(0, b, columns):
        tops.append(y)
        y += h + 7 + line_height * max(len(text) for text in lines[start : start + columns]) + GAP
    room = max(tile * columns, int(font(FONT_SIZE, True).getlength(row.title)) + GAP)
    sheet = page(room, y)
    texts = [(2, 4, row.title, FONT_SIZE, True)]
    for k, text in enumerate(lines):
        x, top = k % columns * tile, tops[k // columns] + h + 5
        texts += [
            (x + 2, top + i * line_height, line, FONT_SIZE, False) for i, line in enumerate(text)
        ]
    for k in range(b):
        _edge(sheet, tops[k // columns], k % columns * tile + 1, h, w)
    write(sheet, texts)
    frames = np.repeat(sheet[None], n, 0)
    for i in range(n):
        for k in range(b):
            x, top = k % columns * tile + 1, tops[k // columns]
            frames[i, top : top + h, x : x + w] = clips[k, frame_at(i, n, f)]
    return frames


def film_strip(rows: list[Row], frames: int = 8) -> UInt8[np.ndarray, "h w 3"]:
    """A still page: one line per clip with its caption above, evenly spaced frames, their numbers below.

    `frames`: how many of a clip (all, if it has fewer); the first and the last are always among them.
    A frame is at least 64 pixels wide, and at most 120 (larger ones are averaged down).
    """
    parts = []
    for row in rows:
        for k, clip in enumerate(row.clips):
            label = ": ".join(text for text in (row.title, row.captions[k]) if text)
            parts.append(_strip_line(clip, label, frames, _reduction(row, 120)))
    width = max(part.shape[1] for part in parts)
    filled = [
        np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.concatenate(filled)


def strip_indices(f: int, frames: int) -> list[int]:
    """At most `frames` evenly spaced frame numbers out of `f`, the first and the last among them."""
    return [round(i) for i in np.linspace(0, f - 1, min(f, frames))]


def _strip_line(clip: np.ndarray, label: str, frames: int, reduce: int) -> np.ndarray:
    chosen = strip_indices(len(clip), frames)
    pictures = resize(
        clip[chosen], max(1, math.ceil(64 / clip.shape[2])) if reduce == 1 else 1, reduce
    )
    _, h, w, _ = pictures.shape
    width = max(len(chosen) * (w + 4), 200)
    text = fit(label, width)
    top = len(text) * (FONT_SIZE + 5) + 1
    sheet = page(width, top + h + SMALL + 12)
    texts = [(2, 1 + i * (FONT_SIZE + 5), line, FONT_SIZE, False) for i, line in enumerate(text)]
    for k, index in enumerate(chosen):
        number = f"frame {index}" if k == 0 else str(index)
        texts.append((k * (w + 4) + 2, top + h + 3, number, SMALL, False))
        left = k * (w + 4) + 1
        _edge(sheet, top, left, h, w)
        sheet[top : top + h, left : left + w] = pictures[k]
    write(sheet, texts)
    return sheet
