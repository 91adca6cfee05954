"""Layout: clips and their captions on a white page, as plain pixel arrays that a test can read."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

PAGE_WIDTH = 720  # pixels: what GitHub shows of a notebook without shrinking it
GAP = 12
MAX_LINES = 4
MIN_CAPTION_WIDTH = 96
TITLE_HEIGHT = 26
INK, GREY, EDGE = (34, 34, 34), (95, 95, 95), (200, 200, 200)
FONT_SIZE, SMALL_FONT = 15, 13

Text = tuple[int, int, str, int, bool]


@dataclass(frozen=True)
class ClipRow:
    """Clips shown side by side.

    Attributes:
        clips: (b, f, h, w, 3), 0 to 255.
        captions: one per clip; "" for none.
        title: heading of the row; "" for none.
    """

    clips: UInt8[np.ndarray, "b f h w 3"]
    captions: tuple[str, ...]
    title: str = ""


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as shipped with matplotlib: the same letters on every machine, no download."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def wrap_text(text: str, width: int, size: int = FONT_SIZE) -> list[str]:
    """Break a text into at most four lines; a line that is cut ends in …

    Args:
        text: words.
        width: largest length of a line in pixels.
        size: of the font.
    """
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
    return [_truncate(line, width, letters) for line in lines]


def _truncate(line: str, width: int, letters: ImageFont.FreeTypeFont) -> str:
    if letters.getlength(line) <= width:
        return line
    while line and letters.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def resize(
    clips: UInt8[np.ndarray, "*n h w 3"], scale: int, reduce: int = 1
) -> UInt8[np.ndarray, "*n H W 3"]:
    """Enlarge without smoothing, or average blocks of pixels.

    Args:
        clips: 0 to 255.
        scale: factor of enlargement; pixels stay square.
        reduce: side of the blocks that are averaged.
    """
    if reduce > 1:
        h, w = (size // reduce for size in clips.shape[-3:-1])
        cropped = clips[..., : h * reduce, : w * reduce, :]
        blocks = cropped.reshape(*clips.shape[:-3], h, reduce, w, reduce, 3)
        clips = blocks.astype(np.float32).mean((-4, -2)).round().astype(np.uint8)  # (*n, h, w, 3)
    return clips.repeat(scale, -3).repeat(scale, -2)


def blank_page(width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """A white sheet."""
    return np.full((height, width, 3), 255, np.uint8)


def draw_text(sheet: UInt8[np.ndarray, "h w 3"], texts: list[Text]) -> None:
    """Draw texts on a sheet, in place.

    Args:
        sheet: 0 to 255.
        texts: each is (x, y, text, font size, bold); y is the top of the line.
    """
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    for x, y, text, size, bold in texts:
        draw.text((x, y), text, fill=GREY if size == SMALL_FONT else INK, font=font(size, bold))
    sheet[:] = np.asarray(image)


def _draw_border(sheet: np.ndarray, top: int, left: int, h: int, w: int) -> None:
    """A line around an image, in place: a white image needs an edge."""
    sheet[top - 1 : top + h + 1, left - 1 : left + w + 1] = EDGE


def frame_at(i: int, num_frames: int, clip_frames: int) -> int:
    """Frame of a clip during frame `i` of an animation of the same duration.

    Args:
        i: frame of the animation.
        num_frames: of the animation.
        clip_frames: of the clip.
    """
    return i * clip_frames // num_frames


def animation(
    rows: list[ClipRow], scale: int | None = None, columns: int | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Every frame of a page: clips side by side, captions at the bottom, titles at the top.

    All clips start and end together: one of 4 frames next to one of 16 repeats each frame four
    times.

    Args:
        rows: from top to bottom.
        scale: factor of enlargement; None makes clips at least 128 pixels wide (about 192 if there
            are only one or two).
        columns: clips per line; None means as many as fit in 720 pixels.
    """
    is_small_page = sum(len(row.clips) for row in rows) <= 2
    num_frames = max(row.clips.shape[1] for row in rows)
    parts = [
        _animated_row(row, num_frames, scale or _default_scale(row, is_small_page), columns)
        for row in rows
    ]
    return _stack_left_aligned(parts, axis=1)


def _stack_left_aligned(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Sheets on top of each other, white on the right."""
    width = max(part.shape[axis + 1] for part in parts)
    padding = [(0, 0)] * parts[0].ndim
    padded = []
    for part in parts:
        padding[axis + 1] = (0, width - part.shape[axis + 1])
        padded.append(np.pad(part, padding, constant_values=255))
    return np.concatenate(padded, axis)


def _default_scale(row: ClipRow, is_small_page: bool) -> int:
    width = row.clips.shape[3]
    return max(1, round(192 / width)) if is_small_page else math.ceil(128 / width)


def _fit_width(
    clips: UInt8[np.ndarray, "*n h w 3"], scale: int, max_width: int
) -> UInt8[np.ndarray, "*n H W 3"]:
    """Clips enlarged, or averaged down if they are wider than `max_width` pixels."""
    reduce = max(1, math.ceil(clips.shape[-2] / max_width))
    return resize(clips, scale if reduce == 1 else 1, reduce)


def _animated_row(row: ClipRow, num_frames: int, scale: int, columns: int | None) -> np.ndarray:
    """Frames (n, h, w, 3) of one row, wrapped to lines of `columns` clips."""
    clips = _fit_width(row.clips, scale, max_width=320)
    b, f, h, w, _ = clips.shape
    caption_width = max(w, MIN_CAPTION_WIDTH)
    tile = (caption_width if any(row.captions) else w) + GAP
    columns = min(b, columns or max(1, PAGE_WIDTH // tile))
    captions = [wrap_text(caption, caption_width) for caption in row.captions]
    line_height = FONT_SIZE + 4
    tops = []
    y = (TITLE_HEIGHT if row.title else 0) + 1
    for start in range(0, b, columns):
        tops += [y] * columns
        num_lines = max(len(lines) for lines in captions[start : start + columns])
        y += h + 7 + line_height * num_lines + GAP
    title_width = int(font(FONT_SIZE, True).getlength(row.title)) + GAP
    sheet = blank_page(max(tile * columns, title_width), y)
    corners = [(tops[k], k % columns * tile + 1) for k in range(b)]
    texts: list[Text] = [(2, 4, row.title, FONT_SIZE, True)]
    for (top, left), lines in zip(corners, captions, strict=True):
        _draw_border(sheet, top, left, h, w)
        for i, line in enumerate(lines):
            texts.append((left + 1, top + h + 5 + i * line_height, line, FONT_SIZE, False))
    draw_text(sheet, texts)
    frames = np.repeat(sheet[None], num_frames, 0)
    for clip, (top, left) in zip(clips, corners, strict=True):
        for i in range(num_frames):
            frames[i, top : top + h, left : left + w] = clip[frame_at(i, num_frames, f)]
    return frames


def film_strip(rows: list[ClipRow], num_frames: int = 8) -> UInt8[np.ndarray, "h w 3"]:
    """A still page: one line per clip with its caption, evenly spaced frames and their indices.

    A frame is at least 64 pixels wide, and at most 120 (larger ones are averaged down).

    Args:
        rows: from top to bottom.
        num_frames: per clip, the first and the last among them; all if it has fewer.
    """
    parts = []
    for row in rows:
        for caption, clip in zip(row.captions, row.clips, strict=True):
            label = ": ".join(text for text in (row.title, caption) if text)
            parts.append(_strip_line(clip, label, num_frames))
    return _stack_left_aligned(parts, axis=0)


def strip_indices(clip_frames: int, num_frames: int) -> list[int]:
    """Evenly spaced frame indices, the first and the last among them.

    Args:
        clip_frames: number of frames of the clip.
        num_frames: largest number of indices.
    """
    return [round(i) for i in np.linspace(0, clip_frames - 1, min(clip_frames, num_frames))]


def _strip_line(clip: np.ndarray, label: str, num_frames: int) -> np.ndarray:
    indices = strip_indices(len(clip), num_frames)
    frames = _fit_width(clip[indices], max(1, math.ceil(64 / clip.shape[2])), max_width=120)
    _, h, w, _ = frames.shape
    width = max(len(indices) * (w + 4), 200)
    lines = wrap_text(label, width)
    line_height = FONT_SIZE + 5
    top = len(lines) * line_height + 1
    sheet = blank_page(width, top + h + SMALL_FONT + 12)
    texts: list[Text] = [
        (2, 1 + i * line_height, line, FONT_SIZE, False) for i, line in enumerate(lines)
    ]
    for k, index in enumerate(indices):
        left = k * (w + 4) + 1
        number = f"frame {index}" if k == 0 else str(index)
        texts.append((left + 1, top + h + 3, number, SMALL_FONT, False))
        _draw_border(sheet, top, left, h, w)
        sheet[top : top + h, left : left + w] = frames[k]
    draw_text(sheet, texts)
    return sheet
