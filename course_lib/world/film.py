"""Real film: the clips shipped in `data/clips/`, and any video file of your own, read through PyAV."""

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.runtime import data_dir


@dataclass(frozen=True)
class FilmCard:
    """What is known about a shipped clip."""

    name: str
    title: str
    licence: str
    credit: str
    source: str
    fps: float | int
    frames: int
    width: int
    height: int
    cuts: tuple[int, ...]
    """the first frame of every shot but the first"""


def films() -> dict[str, FilmCard]:
    """List the shipped clips by name.

    Raises:
        FileNotFoundError: `data/clips/clips.json` is missing.
    """
    listing = json.loads((data_dir() / "clips" / "clips.json").read_text())
    return {
        name: FilmCard(name, **card | {"cuts": tuple(card["cuts"])})
        for name, card in listing.items()
    }


def load_film(
    source: str | Path,
    *,
    start: float | int = 0,
    frames: int | None = None,
    fps: float | int | None = None,
    size: int | tuple[int, int] | None = None,
) -> Float[Tensor, "3 f h w"]:
    """Read part of a video file.

    Args:
        source: the name of a shipped clip ("earth", "bunny", "trailer", "puck"), or a path.
        start: where to begin, in seconds; the file is sought, not read from its beginning.
        frames: how many frames; None means all until the end.
        fps: frames per second to keep, by taking the nearest earlier frame; None keeps the file's own rate.
        size: None keeps the file's; (height, width) resizes; one integer crops the central square and resizes it.

    Returns:
        red, green, blue in [-1, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or no video, holds no picture in the asked-for range, or an argument is out
            of range. The message names the file or the argument.
    """
    _check_request(start, frames, fps, size)
    path = _find(source)
    try:
        # seeking is quick, but not every container can do it; the second try reads from the beginning
        pictures = _read(path, start, frames, fps, size, seek=True) if start > 0 else None
        if pictures is None:
            pictures = _read(path, start, frames, fps, size, seek=False)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as a video (damaged, or not a video at all?): {error}"
        ) from error
    if not pictures:
        raise ValueError(f"{path} has no frame at or after {start} s")
    if frames is not None and len(pictures) < frames:
        raise ValueError(
            f"{path} has only {len(pictures)} of the {frames} frames asked for after {start} s"
        )
    video = torch.from_numpy(np.stack(pictures))  # (f, h, w, 3) uint8
    return video.permute(3, 0, 1, 2).float().div(127.5).sub(1).contiguous()


def _check_request(start: float | int, frames: int | None, fps: float | int | None, size) -> None:
    if not 0 <= start < math.inf:
        raise ValueError(f"start must not be negative or infinite, got {start}")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be positive and finite, got {fps}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise ValueError(f"size must be a positive integer, or (height, width) of them, got {size}")


def _find(source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    shipped = films()
    if str(source) not in shipped:
        raise FileNotFoundError(f"{source} is not a file; shipped clips are: {', '.join(shipped)}")
    return data_dir() / "clips" / f"{source}.mp4"


def _read(
    path: Path, start: float | int, frames: int | None, fps: float | int | None, size, seek: bool
) -> list[np.ndarray] | None:
    """The pictures on screen at start, start + 1/fps, …; None if seeking did not land at or before `start`.

    A frame stays on screen until the next one comes, however long that takes: files need not have a steady rate.
    """
    pictures: list[np.ndarray] = []
    with av.open(str(path)) as file:
        if not file.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        own = float(stream.average_rate or stream.guessed_rate or 0)
        if own <= 0:
            raise ValueError(f"{path} does not state its frame rate")
        origin, rate = float((stream.start_time or 0) * stream.time_base), fps or own
        if seek:  # to the key frame before it
            try:
                file.seek(int((start + origin) / stream.time_base), stream=stream)
            except av.error.FFmpegError:  # a bare stream has no index
                return None
        previous, number, now = None, -1, 0.0
        for number, frame in enumerate(file.decode(stream)):  # noqa: B007
            now = number / own if frame.time is None else frame.time - origin
            if seek and number == 0 and (frame.time is None or now > start + 1e-4):
                return None
            if frame.is_corrupt:
                raise ValueError(
                    f"{path} is damaged: its picture at {now:.2f} s cannot be decoded whole"
                )
            while (
                previous is not None
                and len(pictures) != frames
                and start + len(pictures) / rate < now - 1e-4
            ):
                pictures.append(_to_rgb(previous, size, path))
            if len(pictures) == frames:
                return pictures
            previous = frame
        if previous is None and seek:
            return None
        if not seek and number + 1 < stream.frames:
            raise ValueError(
                f"{path} is damaged: it ends after {number + 1} of {stream.frames} frames"
            )
        end = now + 1 / own  # the last frame stays for one frame's time
        while (
            previous is not None
            and len(pictures) != frames
            and start + len(pictures) / rate < end - 1e-4
        ):
            pictures.append(_to_rgb(previous, size, path))
    return pictures


def _to_rgb(frame: av.VideoFrame, size: int | tuple[int, int] | None, path: Path) -> np.ndarray:
    try:
        rgb = frame.to_ndarray(format="rgb24")
    except (ValueError, av.error.FFmpegError) as error:
        raise ValueError(
            f"{path} has pixel format {frame.format.name}, which cannot be turned into rgb"
        ) from error
    if size is None:
        return rgb
    if isinstance(size, int):
        side = min(rgb.shape[:2])
        top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        rgb, size = np.ascontiguousarray(rgb[top : top + side, left : left + side]), (size, size)
    whole = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    small = whole.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA")
    return small.to_ndarray()


def save_film(path: str | Path, video: Float[Tensor, "3 f h w"], fps: float | int = 8) -> None:
    """Write a clip as an mp4 file (H.264).

    Args:
        path: where to write.
        video: red, green, blue in [-1, 1]; height and width even, as the codec wants.
        fps: frames per second, positive.

    Raises:
        ValueError: odd height or width, no frames, or fps not positive.
    """
    c, f, h, w = video.shape
    if f < 1 or h % 2 or w % 2:
        raise ValueError(
            f"video must have at least one frame and even height and width, got f={f}, h={h}, w={w}"
        )
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pixels = video.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt, stream.options = w, h, "yuv420p", {"crf": "14"}
        for picture in pixels.permute(1, 2, 3, 0).numpy():
            file.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                )
            )
        file.mux(stream.encode())
