"""Pictures for notebooks: moving clips, images, optical flow, curves and bars.

Everything is stored as `image/png` at its natural size, so it looks the same in JupyterLab, on GitHub and in
an HTML export, and plays wherever a browser shows it. `alt` is a sentence for readers who cannot see the
picture; without one it is made from the captions.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from course_lib.lab import canvas, encode, style
from course_lib.lab.flow import flow_colours
from course_lib.lab.inputs import Array, checked_clips, checked_images, describe, to_numpy

Videos = Array | Mapping[str, Array] | Sequence[Array]
Captions = str | Sequence[str] | Mapping[str, Sequence[str]] | None


class Picture:
    """PNG bytes with a sentence instead: what `display` stores in a notebook."""

    def __init__(self, data: bytes, alt: str):
        self.data, self.alt = data, alt

    def __repr__(self) -> str:
        return f"[picture: {self.alt}]"

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
    colours: int = encode.COLOURS,
    alt: str | None = None,
) -> None:
    """Play clips side by side, with a film strip below for pages on which nothing moves.

    `video`: one clip (c, f, h, w), clips (b, c, f, h, w), or rows of either as a list or as {title: row};
    float in [-1, 1], 1 or 3 channels. Rows of one clip each are put side by side, titles as captions.
    `captions`: one text per clip of a row (the same for every row), or {title: texts}.
    `titles`: headings of a list of rows. `fps`: frames per second. `scale`: whole-number enlargement
    (default: clips at least 128 pixels wide). Rows of different length start and end together.
    `strip_frames`: how many frames the strip shows. `colours`: of the animation, 2 … 255; grainy clips of a
    network take a third less room with 64, and look the same.
    Raises ValueError, stating what it got, for anything else.
    """
    rows = _rows(video, captions, titles)
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1; got {scale}")
    if strip_frames < 1:
        raise ValueError(f"strip_frames must be at least 1; got {strip_frames}")
    names = [
        ": ".join(t for t in (row.title, caption) if t) for row in rows for caption in row.captions
    ]
    sentence = alt or _sentence("animation" if rows[0].clips.shape[1] > 1 else "picture", names)
    display(Picture(encode.encode_apng(canvas.animation(rows, scale), fps, colours), sentence))
    if strip:
        display(
            Picture(
                encode.encode_png(canvas.film_strip(rows, strip_frames)), f"film strip: {sentence}"
            )
        )


def _sentence(kind: str, names: list[str]) -> str:
    told = "; ".join(name for name in names if name)
    return f"{kind} of {len(names)}" + (f": {told}" if told else " without captions")


def _rows(video: Videos, captions: Captions, titles: Sequence[str] | None) -> list[canvas.Row]:
    """The rows that a call of `show_video` means, checked."""
    if isinstance(video, Mapping):
        if titles is not None:
            raise ValueError("titles are the keys of the dict already; got both")
        given, titles = list(video.values()), [str(key) for key in video]
    else:
        given = list(video) if isinstance(video, list | tuple) else [video]
        titles = list(titles) if titles is not None else [""] * len(given)
    if not given:
        raise ValueError("nothing to show: video is empty")
    if len(titles) != len(given):
        raise ValueError(f"expected one title for each of {len(given)} rows; got {len(titles)}")
    names = [
        f"video[{title!r}]" if isinstance(video, Mapping) else f"video[{i}]"
        for i, title in enumerate(titles)
    ]
    clips = [
        checked_clips(row, "video" if len(given) == 1 else name)
        for row, name in zip(given, names, strict=True)
    ]
    singles = (
        len(given) > 1
        and all(row.ndim == 4 for row in given)
        and len({row.shape for row in clips}) == 1
    )
    if singles and not (captions and any(titles)):  # side by side rather than one above the other
        texts = tuple(titles) if any(titles) else _captions(captions, "", len(given))
        return [canvas.Row(np.concatenate(clips), texts)]
    return [
        canvas.Row(row, _captions(captions, title, len(row)), title)
        for row, title in zip(clips, titles, strict=True)
    ]


def _captions(captions: Captions, title: str, count: int) -> tuple[str, ...]:
    if isinstance(captions, Mapping):
        if title not in captions:
            raise ValueError(
                f"captions has no entry for {title!r}; it has {', '.join(map(repr, captions))}"
            )
        captions = captions[title]
    if captions is None:
        return ("",) * count
    texts = (captions,) if isinstance(captions, str) else tuple(str(text) for text in captions)
    if len(texts) != count:
        raise ValueError(
            f"expected one caption for each of {count} clips; got {len(texts)}: {texts}"
        )
    return texts


def show_images(
    images: Array, captions: Captions = None, columns: int | None = None, *, scale: int | None = None,
    alt: str | None = None,
) -> None:  # fmt: skip
    """Show images (b, c, h, w), float in [-1, 1], 1 or 3 channels, with a caption under each.

    `columns`: images per line (default: as many as fit 720 pixels). `scale`: whole-number enlargement.
    Raises ValueError, stating what it got, for anything else.
    """
    clips = checked_images(images)[:, None]
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns}")
    texts = _captions(captions, "", len(clips))
    row = canvas.Row(clips, texts)
    sheet = canvas.animation([row], scale, columns)[0]
    display(Picture(encode.encode_png(sheet), alt or _sentence("picture", list(texts))))


def show_flow(
    flow: Array, captions: Captions = None, *, largest: float | int | None = None, fps: float | int = 8,
    strip: bool = True, alt: str | None = None,
) -> None:  # fmt: skip
    """Show optical flow in colour (hue: direction, strength: speed) with the colour wheel beside it.

    `flow`: (rightward, downward) pixels per frame: one field (2, h, w), one clip (2, f, h, w), or clips
    (b, 2, f, h, w). `largest`: the speed with full colour (default: the largest that occurs).
    Raises ValueError, stating what it got, for anything else.
    """
    array, got = to_numpy(flow, "flow"), describe(flow, "flow")
    if array.ndim not in (3, 4, 5) or array.shape[array.ndim == 5] != 2:
        raise ValueError(
            f"expected (2, h, w), (2, f, h, w) or (b, 2, f, h, w) with the flow's 2 axes first; got {got}"
        )
    if array.size == 0:
        raise ValueError(f"nothing to show; got {got}")
    if array.ndim == 3:
        array = array[:, None]  # a clip of one frame
    field = torch.from_numpy(array if array.ndim == 5 else array[None])  # (b, 2, f, h, w)
    full = float(field.square().sum(1).max().sqrt()) if largest is None else float(largest)
    b, _, f, h, w = field.shape
    colours = flow_colours(field.transpose(1, 2).reshape(b * f, 2, h, w), full)
    clips = colours.reshape(b, f, 3, h, w).movedim(2, -1).numpy()
    rows = [canvas.Row(clips, _captions(captions, "", b))]
    frames = _beside(canvas.animation(rows), _legend(full))
    sentence = (
        alt
        or _sentence("optical flow", list(rows[0].captions))
        + f"; full colour means {full:.3g} pixels"
    )
    display(Picture(encode.encode_apng(frames, fps), sentence))
    if strip and f > 1:
        display(Picture(encode.encode_png(canvas.film_strip(rows)), f"film strip: {sentence}"))


def _legend(full: float, radius: int = 48) -> np.ndarray:
    """The colour wheel with its four directions: a pixel's place is the flow that it stands for."""
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1.0)] * 2, indexing="ij")
    wheel = flow_colours(torch.stack([x, y])[None], radius)[0].movedim(0, -1)
    wheel[x.square() + y.square() > radius**2] = 255
    side = 2 * radius + 1
    sheet = canvas.page(side + 104, side + 66)
    sheet[22 : 22 + side, 44 : 44 + side] = wheel.numpy()
    middle = 22 + radius - 9
    words = [(44 + radius - 9, 2, "up"), (0, middle, "left"), (side + 48, middle, "right")]
    words += [(44 + radius - 21, side + 24, "down"), (8, side + 44, f"rim: {full:.3g} px/frame")]
    canvas.write(sheet, [(x, y, text, canvas.FONT_SIZE, False) for x, y, text in words])
    return sheet


def _beside(frames: np.ndarray, legend: np.ndarray) -> np.ndarray:
    """`legend` to the right of every frame, both at the top of a white page."""
    n, height, width, _ = frames.shape
    sheet = canvas.page(width + canvas.GAP + legend.shape[1], max(height, legend.shape[0]))
    sheet[: legend.shape[0], width + canvas.GAP :] = legend
    out = np.repeat(sheet[None], n, 0)
    out[:, :height, :width] = frames
    return out


def show_curves(
    curves: Mapping[str, Any], xlabel: str, ylabel: str, title: str = "", *, logy: bool = False,
    alt: str | None = None,
) -> None:  # fmt: skip
    """Draw {label: curve}, each y, (x, y), or (x, y, low, high) with a band between low and high.

    Each part: a sequence, array or tensor of n numbers. `logy`: logarithmic y axis.
    Raises ValueError, naming the curve, for another number of parts or parts of unequal length.
    """
    with plt.style.context(style.SHEET):
        figure, axes = plt.subplots()
        for label, curve in curves.items():
            x, y, *band = _parts(label, curve)
            (line,) = axes.plot(x, y, label=label, marker="o" if len(x) <= 12 else None)
            if band:
                axes.fill_between(x, *band, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if logy:
            axes.set_yscale("log")
        if len(curves) > 1 or "" not in curves:
            axes.legend()
        show_figure(
            figure, alt or f"{title or 'curves'}: {ylabel} against {xlabel} for {', '.join(curves)}"
        )


def _parts(label: str, curve: Any) -> list[np.ndarray]:
    """x, y and perhaps low and high, as arrays of equal length."""
    parts = list(curve) if isinstance(curve, tuple) else [curve]
    if len(parts) not in (1, 2, 4):
        raise ValueError(
            f"curve {label!r} must be y, (x, y) or (x, y, low, high); got {len(parts)} parts"
        )
    arrays = [_numbers(part) for part in parts]
    if len(arrays) == 1:
        arrays = [np.arange(len(arrays[0])), arrays[0]]
    lengths = [array.shape for array in arrays]
    if len(set(lengths)) > 1 or len(lengths[0]) != 1 or lengths[0][0] == 0:
        raise ValueError(f"curve {label!r} needs parts of one equal length; got shapes {lengths}")
    return arrays


def _numbers(values: Any) -> np.ndarray:
    return (
        values.detach().cpu().double().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values, float)
    )


def show_bars(
    bars: Mapping[str, Any], xlabel: str, title: str = "", *, alt: str | None = None
) -> None:  # fmt: skip
    """Draw {label: bar} as horizontal bars, each a number or (value, low, high): an interval's two ends.

    Raises ValueError, naming the bar, unless low <= value <= high.
    """
    triples = {label: _bar(label, bar) for label, bar in bars.items()}
    with plt.style.context(style.SHEET):
        figure, axes = plt.subplots(figsize=(7.2, 1.3 + 0.55 * max(2, len(triples))))
        reach = max(high for _, _, high in triples.values())
        for i, (value, low, high) in enumerate(triples.values()):
            axes.barh(i, value, color=style.BLUE, height=0.6)
            if high > low:
                axes.plot(
                    [low, high], [i, i], color="black", linestyle="-", marker="|", markersize=12
                )
            axes.annotate(
                f"{value:.3g}", (max(high, 0), i), (8, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(triples)), list(triples))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set(xlabel=xlabel, title=title)
        axes.set_xlim(right=reach * 1.15 if reach > 0 else None)
        told = ", ".join(f"{label} {value:.3g}" for label, (value, _, _) in triples.items())
        show_figure(figure, alt or f"{title or 'bars'}: {xlabel}: {told}")


def _bar(label: str, bar: Any) -> tuple[float, float, float]:
    numbers = [float(number) for number in (bar if isinstance(bar, tuple | list) else (bar,) * 3)]
    if (
        len(numbers) != 3
        or not numbers[1] <= numbers[0] <= numbers[2]
        or not math.isfinite(sum(numbers))
    ):
        raise ValueError(
            f"bar {label!r} must be a number or (value, low, high) with low <= value <= high; got {bar}"
        )
    return numbers[0], numbers[1], numbers[2]


def show_figure(figure: Figure, alt: str) -> None:
    """Display a matplotlib figure as a small PNG (at most 255 colours), and close it: it is shown once.

    `alt`: a sentence for readers who cannot see it.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    display(Picture(encode.encode_png(pixels), alt))
