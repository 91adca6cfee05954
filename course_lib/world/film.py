"""Real video: the clips shipped in `data/clips/`, and any other video file, read with PyAV."""

import io
from collections import namedtuple
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from course_lib.files import read_json, replace_atomically, verify_checksum
from course_lib.runtime import data_dir
from course_lib.validation import (
    check_float,
    check_int,
    check_number,
    check_tensor,
    check_video,
    require,
    to_uint8,
)

CLIP_AXES = "(c, f, h, w)"
MAX_FPS = 1000.0  # the container's clock has a finite resolution
# A shipped clip; `cuts` are the indices of the first frame of every shot but the first
VideoInfo = namedtuple(
    "VideoInfo", "name title licence credit source fps num_frames width height cuts"
)


def list_videos() -> dict[str, VideoInfo]:
    """The shipped clips by name.

    Raises:
        FileNotFoundError: `data/clips/clips.json` or the list of checksums is missing.
        ValueError: one of them is damaged.
    """
    path = data_dir() / "clips" / "clips.json"
    verify_checksum(path, path.parent)
    listing = read_json(path)
    return {
        name: VideoInfo(name, **entry | {"cuts": tuple(entry["cuts"])})
        for name, entry in listing.items()
    }


def load_video(
    source: str | Path,
    *,
    start: float | int = 0,
    num_frames: int | None = None,
    fps: float | int | None = None,
    size: int | tuple[int, int] | None = None,
) -> Float[Tensor, "3 f h w"]:
    """Read part of a video file.

    Args:
        source: the name of a shipped clip ("earth", "bunny", "trailer", "puck"), or a path.
        start: time of the first frame in seconds; the file is not decoded from its beginning.
        num_frames: number of frames; None reads to the end.
        fps: frames per second, by repeating or dropping frames; None keeps the rate of the file.
        size: (height, width) resizes, an integer crops the central square and resizes it; None
            keeps the size of the file.

    Returns:
        RGB in [-1, 1].

    Raises:
        FileNotFoundError: no such file, or a shipped clip is missing.
        ValueError: the file is damaged or not a video, a shipped clip differs from its checksum, it
            has too few frames after `start`, or an argument is out of range. The message names the
            file or the argument.
    """
    check_number("start", start, at_least=0.0)
    if num_frames is not None:
        check_int("num_frames", num_frames, 1)
    if fps is not None:
        check_number("fps", fps, above=0.0)
    if size is not None:
        sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
        require(len(sides) == 2, "size", "an integer or (height, width)", size)
        for side in sides:
            check_int("size", side, 1)
    path = _find(source)
    try:
        images = list(islice(_images_on_screen(path, start, fps, size), num_frames))
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a readable video file, got {error}") from error
    require(images != [], "start", f"a time before the end of {path}", f"{start} s")
    require(
        len(images) >= (num_frames or 0),
        "num_frames",
        f"at most {len(images)} after {start} s of {path}",
        num_frames,
    )
    return from_uint8(np.stack(images))


def save_video(path: str | Path, video: Tensor, fps: float | int = 8) -> None:
    """Write a clip as an mp4 file (H.264); an error leaves an older file as it was.

    Args:
        path: file to write.
        video: one clip (3, f, h, w), RGB in [-1, 1]; height and width even, as the codec requires.
        fps: frames per second, above 0 and at most 1000.

    Raises:
        ValueError: any other video or fps. Nothing is written then.
        OSError: the file cannot be written.
    """
    check_float("video", video, CLIP_AXES)
    check_video("video", video[None])
    file = io.BytesIO()
    encode_h264(file, video, fps=fps, crf=14)
    with replace_atomically(Path(path)) as part:
        part.write_bytes(file.getvalue())


def encode_h264(target: io.BytesIO, video: Tensor, *, fps: float | int, crf: int) -> None:
    """Encode a clip as H.264 in an mp4 container.

    Args:
        target: buffer that receives the container.
        video: one clip (3, f, h, w), RGB in [-1, 1]; height and width even.
        fps: frames per second, above 0 and at most 1000.
        crf: constant rate factor, 0 (best) to 51 (worst).

    Raises:
        ValueError: any other video, fps or crf.
    """
    check_tensor("video", video, CLIP_AXES)
    c, _, h, w = video.shape
    is_encodable = c == 3 and h % 2 == w % 2 == 0
    got = f"c={c}, h={h}, w={w}"
    require(is_encodable, "video", "three channels, even height and width", got)
    check_number("fps", fps, above=0.0, at_most=MAX_FPS)
    check_int("crf", crf, 0, 51)
    images = to_uint8(video).cpu().permute(1, 2, 3, 0).contiguous().numpy()  # f h w 3
    with av.open(target, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # x264's assembly reads memory that it did not write: the bytes would differ from run to run
        stream.options = {"crf": str(crf), "x264-params": "asm=0"}
        for image in images:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def from_uint8(frames: UInt8[np.ndarray, "f h w 3"]) -> Float[Tensor, "3 f h w"]:
    """Convert RGB levels 0 … 255 to a clip in [-1, 1]."""
    require(frames.dtype == np.uint8, "frames", "uint8", frames.dtype)
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div(127.5).sub(1).contiguous()


def _find(source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    names = list_videos()
    if str(source) not in names:
        valid = ", ".join(names)
        raise FileNotFoundError(f"source: expected a file or one of {valid}; got {source}")
    path = data_dir() / "clips" / f"{source}.mp4"
    verify_checksum(path, path.parent)
    return path


def _images_on_screen(
    path: Path, start: float | int, fps: float | int | None, size, *, may_seek: bool = True
) -> Iterator[np.ndarray]:
    """The RGB images at start, start + 1/fps, … until the end of the file.

    A frame stays on screen until the next one; files need not have a constant rate. The last frame
    stays for one period of the average rate.
    """
    with av.open(str(path)) as file:
        require(len(file.streams.video) > 0, str(path), "a video stream", "none")
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        file_fps = float(stream.average_rate or stream.guessed_rate or 0)
        require(file_fps > 0, str(path), "a frame rate", "none")
        origin = float((stream.start_time or 0) * stream.time_base)
        seeks = may_seek and start > 0
        try:
            if seeks:  # leads to the key frame before it
                file.seek(int((start + origin) / stream.time_base), stream=stream)
            frames = file.decode(stream)
            first = next(frames, None)
        except av.error.FFmpegError:  # a raw stream has no index
            if not seeks:
                raise
            first = None
        if seeks and (first is None or first.time is None or first.time - origin > start + 1e-4):
            yield from _images_on_screen(path, start, fps, size, may_seek=False)
            return
        previous = None
        time = 0.0
        num_images = 0
        for i, frame in enumerate(chain([first] if first else [], frames, [None])):
            if frame is None:
                is_complete = seeks or i >= stream.frames
                expected = f"{stream.frames} frames"
                require(is_complete, str(path), expected, f"{i}; the file is damaged")
                time += 1 / file_fps
            else:
                time = i / file_fps if frame.time is None else frame.time - origin
                got = f"a damaged one at {time:.2f} s"
                require(not frame.is_corrupt, str(path), "intact frames", got)
            while previous is not None and start + num_images / (fps or file_fps) < time - 1e-4:
                yield _to_rgb(previous, size, path)
                num_images += 1
            previous = frame


def _to_rgb(frame: av.VideoFrame, size: int | tuple[int, int] | None, path: Path) -> np.ndarray:
    try:
        rgb = frame.to_ndarray(format="rgb24")
    except (ValueError, av.error.FFmpegError) as error:
        valid = "a pixel format that converts to RGB"
        raise ValueError(f"{path}: expected {valid}, got {frame.format.name}") from error
    if size is None:
        return rgb
    if not isinstance(size, tuple | list):
        side = min(rgb.shape[:2])
        top = (rgb.shape[0] - side) // 2
        left = (rgb.shape[1] - side) // 2
        rgb = np.ascontiguousarray(rgb[top : top + side, left : left + side])
        size = (size, size)
    image = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    image = image.reformat(width=size[1], height=size[0], format="rgb24", interpolation="AREA")
    return image.to_ndarray()
