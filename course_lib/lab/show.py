"""Images for notebooks: moving clips, images, optical flow, curves and bars.

Everything is stored as `image/png` at its natural size: it looks the same in JupyterLab, on GitHub
and in an HTML export, and plays wherever a browser shows it. `alt` is a sentence for readers who
cannot see the image; the default is made from the captions.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from PIL import Image

from course_lib.lab import encode, page_layout, style
from course_lib.lab.flow import flow_to_rgb
from course_lib.lab.pipeline_output import images_to_rgb, is_clip_of_images, videos_to_rgb
from course_lib.validation import Array, check_int, check_number, require, to_numpy

Videos = Any  # forms: see `show_video`
Captions = str | Sequence[str] | Mapping[str, Sequence[str]] | None

MAX_MARKED_POINTS = 12  # curves of more points have no markers
WHEEL_RADIUS = 48  # pixels


class PngImage:
    """PNG bytes with a sentence: what `display` stores in a notebook.

    Args:
        data: content of a PNG file.
        alt: description for readers who cannot see it.
    """

    def __init__(self, data: bytes, alt: str):
        self.data = data
        self.alt = alt

    def __repr__(self) -> str:
        return f"[image: {self.alt}]"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        png = base64.b64encode(self.data).decode()
        return {"image/png": png, "text/plain": repr(self)}, {"image/png": {"alt": self.alt}}


def show_video(
    video: Videos,
    captions: Captions = None,
    *,
    titles: Sequence[str] | None = None,
    fps: float | int = 8,
    scale: int | None = None,
    strip: bool = True,
    strip_frames: int = 8,
    colours: int = encode.MAX_COLOURS,
    alt: str | None = None,
) -> None:
    """Play clips side by side, with a film strip for pages on which nothing moves.

    Args:
        video: one clip (c, f, h, w), clips (b, c, f, h, w), or rows of either as a list or as
            {title: row}; floats in [-1, 1], 1 or 3 channels. Rows of one clip each are put side by
            side with their titles as captions. Rows of different length start and end together.
            Also, in each of these places, what a pipeline of diffusers returns: its output with
            `frames`, or the frames themselves as a list of PIL images for each clip, as one such
            list, or as a NumPy array ([b,] f, h, w, 3) of floats in [0, 1] or of uint8 levels.
        captions: one text per clip of a row (the same for every row), or {title: texts}.
        titles: headings of a list of rows.
        fps: frames per second.
        scale: factor of enlargement; None makes clips at least 128 pixels wide.
        strip: whether to show the film strip.
        strip_frames: number of its frames.
        colours: of the animation, 2 to 255. A network's grainy clips need a third less space with
            64, and look the same.
        alt: description for readers who cannot see it.

    Raises:
        ValueError: anything else.
    """
    rows = _clip_rows(video, captions, titles)
    if scale is not None:
        check_int("scale", scale, 1)
    check_int("strip_frames", strip_frames, 1)
    names = [
        ": ".join(text for text in (row.title, caption) if text)
        for row in rows
        for caption in row.captions
    ]
    alt = alt or _describe("animation" if rows[0].clips.shape[1] > 1 else "image", names)
    frames = page_layout.animation(rows, scale)
    display(PngImage(encode.encode_apng(frames, fps, colours), alt))
    if strip:
        _show_strip(rows, alt, strip_frames)


def _show_strip(rows: list[page_layout.ClipRow], alt: str, num_frames: int = 8) -> None:
    sheet = page_layout.film_strip(rows, num_frames)
    display(PngImage(encode.encode_png(sheet), f"film strip: {alt}"))


def _describe(label: str, names: Sequence[str]) -> str:
    listing = "; ".join(name for name in names if name)
    return f"{label} of {len(names)}" + (f": {listing}" if listing else " without captions")


def _clip_rows(
    video: Videos, captions: Captions, titles: Sequence[str] | None
) -> list[page_layout.ClipRow]:
    """The rows of a call of `show_video`, checked."""
    if hasattr(video, "frames") or is_clip_of_images(video):  # an output is a mapping, too
        video = [video]
    if isinstance(video, Mapping):
        require(titles is None, "titles", "None with a dict, whose keys are the titles", titles)
        titles = [str(key) for key in video]
        names = [f"video[{title!r}]" for title in titles]
        video = list(video.values())
    else:
        video = list(video) if isinstance(video, list | tuple) else [video]
        names = [f"video[{i}]" for i in range(len(video))] if len(video) > 1 else ["video"]
        titles = [""] * len(video) if titles is None else list(titles)
    require(len(video) > 0, "video", "at least one row", "none")
    require(len(titles) == len(video), "titles", f"one for each of {len(video)} rows", len(titles))
    rows = [videos_to_rgb(row, name) for row, name in zip(video, names, strict=True)]
    clips = [row for row, _ in rows]
    is_single = len(video) > 1 and not any(is_batch for _, is_batch in rows)
    if is_single and len({row.shape for row in clips}) == 1 and not (captions and any(titles)):
        # side by side, not one on top of the other
        texts = tuple(titles) if any(titles) else _captions(captions, "", len(video))
        return [page_layout.ClipRow(np.concatenate(clips), texts)]
    return [
        page_layout.ClipRow(row, _captions(captions, title, len(row)), title)
        for row, title in zip(clips, titles, strict=True)
    ]


def _captions(captions: Captions, title: str, num_clips: int) -> tuple[str, ...]:
    """One caption for each clip of a row."""
    if isinstance(captions, Mapping):
        require(title in captions, "captions", f"an entry for {title!r}", ", ".join(captions))
        captions = captions[title]
    if captions is None:
        return ("",) * num_clips
    texts = (captions,) if isinstance(captions, str) else tuple(str(text) for text in captions)
    got = f"{len(texts)}: {texts}"
    require(len(texts) == num_clips, "captions", f"one for each of {num_clips} clips", got)
    return texts


def show_images(
    images: Any,
    captions: Captions = None,
    columns: int | None = None,
    *,
    scale: int | None = None,
    alt: str | None = None,
) -> None:
    """Show images with their captions.

    Args:
        images: (b, c, h, w), floats in [-1, 1], 1 or 3 channels. Also what a pipeline of diffusers
            returns: its output with `images`, or the images themselves as a list of PIL images or
            as a NumPy array (b, h, w, 3) of floats in [0, 1] or of uint8 levels.
        captions: one text per image.
        columns: images per line; None means as many as fit in 720 pixels.
        scale: factor of enlargement; None makes images at least 128 pixels wide.
        alt: description for readers who cannot see it.

    Raises:
        ValueError: anything else.
    """
    clips = images_to_rgb(images, "images")[:, None]  # (b, 1, h, w, 3)
    for name, value in (("columns", columns), ("scale", scale)):
        if value is not None:
            check_int(name, value, 1)
    row = page_layout.ClipRow(clips, _captions(captions, "", len(clips)))
    sheet = page_layout.animation([row], scale, columns)[0]
    display(PngImage(encode.encode_png(sheet), alt or _describe("image", row.captions)))


def show_flow(
    flow: Array,
    captions: Captions = None,
    *,
    max_flow: float | int | None = None,
    fps: float | int = 8,
    strip: bool = True,
    alt: str | None = None,
) -> None:
    """Show optical flow in colour (hue: direction, saturation: speed) with the colour wheel.

    Args:
        flow: (rightward, downward) pixels per frame: one field (2, h, w), one clip (2, f, h, w), or
            clips (b, 2, f, h, w).
        captions: one text per clip.
        max_flow: speed with full saturation; None means the highest.
        fps: frames per second.
        strip: whether to show a film strip as well.
        alt: description for readers who cannot see it.

    Raises:
        ValueError: anything else.
    """
    array = to_numpy(flow, "flow")
    is_flow = array.ndim in (3, 4, 5) and array.shape[array.ndim == 5] == 2
    require(is_flow, "flow", "(2, h, w), (2, f, h, w) or (b, 2, f, h, w)", f"shape {array.shape}")
    if array.ndim == 3:
        array = array[:, None]  # a clip of one frame
    field = torch.from_numpy(array if array.ndim == 5 else array[None])  # (b, 2, f, h, w)
    if max_flow is None:
        max_flow = float(field.square().sum(1).max().sqrt())
    else:
        check_number("max_flow", max_flow, above=0.0)
    rgb = torch.stack([flow_to_rgb(clip.transpose(0, 1), max_flow) for clip in field])
    clips = rgb.movedim(2, -1).numpy()  # (b, f, h, w, 3)
    rows = [page_layout.ClipRow(clips, _captions(captions, "", len(clips)))]
    frames = _hstack(page_layout.animation(rows), _flow_legend(max_flow))
    names = _describe("optical flow", rows[0].captions)
    alt = alt or f"{names}; full colour means {max_flow:.3g} pixels"
    display(PngImage(encode.encode_apng(frames, fps), alt))
    if strip and clips.shape[1] > 1:
        _show_strip(rows, alt)


def _flow_legend(max_flow: float | int) -> np.ndarray:
    """The colour wheel: a pixel has the colour of the flow from the centre to it."""
    side = torch.arange(-WHEEL_RADIUS, WHEEL_RADIUS + 1.0)
    y, x = torch.meshgrid(side, side, indexing="ij")
    wheel = flow_to_rgb(torch.stack([x, y])[None], WHEEL_RADIUS)[0].movedim(0, -1)
    wheel[x.square() + y.square() > WHEEL_RADIUS**2] = 255
    size = len(side)
    sheet = page_layout.blank_page(size + 104, size + 66)
    sheet[22 : 22 + size, 44 : 44 + size] = wheel.numpy()
    centre_x = 44 + WHEEL_RADIUS
    centre_y = 22 + WHEEL_RADIUS
    texts = [
        (centre_x - 9, 2, "up"),
        (0, centre_y - 9, "left"),
        (size + 48, centre_y - 9, "right"),
        (centre_x - 21, size + 24, "down"),
        (8, size + 44, f"rim: {max_flow:.3g} px/frame"),
    ]
    page_layout.draw_text(sheet, [(*text, page_layout.FONT_SIZE, False) for text in texts])
    return sheet


def _hstack(frames: np.ndarray, legend: np.ndarray) -> np.ndarray:
    """`legend` to the right of every frame, both at the top of a white page."""
    n, height, width, _ = frames.shape
    left = width + page_layout.GAP
    sheet = page_layout.blank_page(left + legend.shape[1], max(height, len(legend)))
    sheet[: len(legend), left:] = legend
    out = np.repeat(sheet[None], n, 0)
    out[:, :height, :width] = frames
    return out


def show_curves(
    curves: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    title: str = "",
    *,
    logy: bool = False,
    alt: str | None = None,
) -> None:
    """Plot curves in one figure.

    Args:
        curves: {label: y, (x, y), or (x, y, low, high) with a band between low and high}; each part
            is a sequence, array or tensor of n numbers.
        xlabel: of the x axis.
        ylabel: of the y axis.
        title: of the figure.
        logy: whether the y axis is logarithmic.
        alt: description for readers who cannot see it.

    Raises:
        ValueError: no curve, one with another number of parts, or parts of unequal length.
    """
    require(len(curves) > 0, "curves", "at least one", "none")
    with plt.style.context(style.STYLE_SHEET):
        figure, axes = plt.subplots()
        for label, curve in curves.items():
            x, y, *band = _curve_parts(label, curve)
            marker = "o" if len(x) <= MAX_MARKED_POINTS else None
            (line,) = axes.plot(x, y, label=label, marker=marker)
            if band:
                axes.fill_between(x, *band, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if logy:
            axes.set_yscale("log")
        if len(curves) > 1 or "" not in curves:
            axes.legend()
        labels = ", ".join(curves)
        show_figure(figure, alt or f"{title or 'curves'}: {ylabel} against {xlabel} for {labels}")


def _curve_parts(label: str, curve: Any) -> list[np.ndarray]:
    """x, y and possibly low and high, as arrays of equal length."""
    parts = list(curve) if isinstance(curve, tuple) else [curve]
    name = f"curve {label!r}"
    is_valid = len(parts) in (1, 2, 4)
    require(is_valid, name, "y, (x, y) or (x, y, low, high)", f"{len(parts)} parts")
    arrays = [_to_floats(part) for part in parts]
    if len(arrays) == 1:
        arrays.insert(0, np.arange(len(arrays[0])))
    shapes = [array.shape for array in arrays]
    is_equal = len(set(shapes)) == 1 and len(shapes[0]) == 1 and shapes[0][0] > 0
    require(is_equal, name, "parts of one equal length", f"shapes {shapes}")
    return arrays


def _to_floats(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()
    return np.asarray(values, float)


def show_bars(
    bars: Mapping[str, Any], xlabel: str, title: str = "", *, alt: str | None = None
) -> None:
    """Plot horizontal bars.

    Args:
        bars: {label: number, or (value, low, high) with an interval's two ends}.
        xlabel: of the x axis.
        title: of the figure.
        alt: description for readers who cannot see it.

    Raises:
        ValueError: no bar, or one without low <= value <= high.
    """
    require(len(bars) > 0, "bars", "at least one", "none")
    intervals = {label: _bar_interval(label, bar) for label, bar in bars.items()}
    with plt.style.context(style.STYLE_SHEET):
        figure, axes = plt.subplots(figsize=(7.2, 1.3 + 0.55 * max(2, len(intervals))))
        for i, (value, low, high) in enumerate(intervals.values()):
            axes.barh(i, value, color=style.BLUE, height=0.6)
            if high > low:
                ends = {"linestyle": "-", "marker": "|", "markersize": 12}
                axes.plot([low, high], [i, i], color="black", **ends)
            offset = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"{value:.3g}", (max(high, 0), i), **offset)
        axes.set_yticks(range(len(intervals)), list(intervals))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set(xlabel=xlabel, title=title)
        x_max = max(high for _, _, high in intervals.values())
        axes.set_xlim(right=x_max * 1.15 if x_max > 0 else None)
        values = ", ".join(f"{label} {value:.3g}" for label, (value, _, _) in intervals.items())
        show_figure(figure, alt or f"{title or 'bars'}: {xlabel}: {values}")


def _bar_interval(label: str, bar: Any) -> tuple[float, float, float]:
    numbers = tuple(map(float, bar if isinstance(bar, tuple | list) else (bar,) * 3))
    is_valid = len(numbers) == 3 and numbers[1] <= numbers[0] <= numbers[2]
    is_valid = is_valid and bool(np.isfinite(numbers).all())
    expected = "a number or (value, low, high) with low <= value <= high"
    require(is_valid, f"bar {label!r}", expected, bar)
    return numbers


def show_figure(figure: Figure, alt: str) -> None:
    """Display a matplotlib figure once, as a small PNG of at most 255 colours, and close it.

    Args:
        figure: any. A text between dollar signs that is no formula is shown as it is.
        alt: description for readers who cannot see it.
    """
    buffer = io.BytesIO()
    try:
        _leave_unreadable_formulas(figure)
        figure.savefig(buffer, format="png")
    finally:
        plt.close(figure)
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    display(PngImage(encode.encode_png(pixels), alt))


def _leave_unreadable_formulas(figure: Figure) -> None:
    """Keep matplotlib from reading a text as a formula where it would raise an error."""
    for axes in figure.axes:  # creates the labels of the ticks
        axes.get_xticklabels(), axes.get_yticklabels()
    for text in figure.findobj(Text):
        try:
            if "$" in text.get_text():
                MathTextParser("agg").parse(text.get_text())
        except ValueError:
            text.set_parse_math(False)
