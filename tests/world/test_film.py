"""Real video: seeking, resizing and frame rates against a naive reading, and damaged files."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from course_lib.runtime import data_dir
from course_lib.world import list_videos, load_video, save_video


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """30 frames at 10 fps; frame i has brightness 8 i. Key frames are rare."""
    path = tmp_path_factory.mktemp("film") / "counting.mp4"
    shades = (torch.arange(30.0) * 8 / 127.5 - 1).view(1, 30, 1, 1).expand(3, 30, 32, 48)
    save_video(path, shades.contiguous(), fps=10)
    return path


def numbers(video):
    return [round(x) for x in ((video.mean((0, 2, 3)) + 1) * 127.5 / 8).tolist()]


@pytest.mark.parametrize("name", ["earth", "bunny", "trailer", "puck"])
def test_shipped_clips_match_their_description(name):
    info = list_videos()[name]
    video = load_video(name)
    assert video.shape == (3, info.num_frames, info.height, info.width)
    assert video.dtype == torch.float32 and -1 <= video.min() and video.max() <= 1
    assert info.credit and info.licence and video.std() > 0.05


def test_cuts_are_at_the_listed_frames():
    """Every listed frame differs from the previous one far more than any other frame does."""
    for name, info in list_videos().items():
        video = load_video(name, size=(32, 48))
        jump = video.diff(dim=1).abs().mean((0, 2, 3))  # entry i: from frame i to i + 1
        listed = [cut - 1 for cut in info.cuts]
        rest = np.delete(jump.numpy(), listed)
        assert all(jump[i] > 1.3 * rest.max() for i in listed), name
        assert rest.max() < 0.35, name


def test_full_file(counting):
    video = load_video(counting)
    assert video.shape == (3, 30, 32, 48) and numbers(video) == list(range(30))


@pytest.mark.parametrize("start", [0.0, 0.1, 0.7, 1.25, 2.9])
def test_seeking_lands_on_the_frame_on_screen(counting, start):
    assert numbers(load_video(counting, start=start, num_frames=1)) == [int(start * 10 + 1e-6)]


def test_frame_rates(counting):
    assert numbers(load_video(counting, fps=5)) == list(range(0, 30, 2))
    assert numbers(load_video(counting, fps=20, num_frames=6)) == [0, 0, 1, 1, 2, 2]
    assert numbers(load_video(counting, fps=4, start=1.0, num_frames=4)) == [10, 12, 15, 17]


def test_resizing(counting):
    assert load_video(counting, size=16).shape == (3, 30, 16, 16)
    assert load_video(counting, size=(20, 10), num_frames=2).shape == (3, 2, 20, 10)
    square, full = load_video("bunny", size=54, num_frames=1), load_video("bunny", num_frames=1)
    h, w = full.shape[-2:]
    cropped = full[:, :, :, (w - h) // 2 : (w - h) // 2 + h]
    averaged = torch.nn.functional.avg_pool3d(cropped[None], (1, 2, 2))[0]
    assert (square - averaged).abs().mean() < 0.02


def test_save_and_load_round_trip(tmp_path):
    video = load_video("bunny", num_frames=6, size=64)
    save_video(tmp_path / "again.mp4", video, fps=7.5)
    again = load_video(tmp_path / "again.mp4")
    assert again.shape == video.shape and (again - video).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "start: expected a finite number at least 0, got -1.0"),
        ({"size": 0}, "size: expected an integer of at least 1, got 0"),
        ({"size": (0, 10)}, "size: expected an integer of at least 1, got 0"),
        ({"fps": float("nan")}, "fps: expected a finite number above 0, got nan"),
        ({"num_frames": 0}, "num_frames: expected an integer of at least 1, got 0"),
        ({"fps": 0.0}, "fps: expected a finite number above 0, got 0.0"),
        ({"start": 99.0}, "start: expected a time before the end of .*counting.mp4, got 99.0 s"),
        ({"num_frames": 31}, "num_frames: expected at most 30 after 0 s of .*counting.mp4, got 31"),
    ],
)
def test_bad_arguments_raise(counting, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_video(counting, **arguments)


def test_error_names_a_missing_file():
    with pytest.raises(
        FileNotFoundError,
        match="source: expected a file or one of earth, bunny, .*; got nowhere.mp4",
    ):
        load_video("nowhere.mp4")


def test_error_names_a_damaged_file(tmp_path, counting):
    (tmp_path / "text.mp4").write_text("this is not a video", encoding="utf-8")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes(counting.read_bytes()[: counting.stat().st_size // 3])
    for name in ("text.mp4", "empty.mp4", "half.mp4"):
        with pytest.raises(
            ValueError, match=f"{name}: expected (a readable|intact|a video|66)|start: .*{name}"
        ):
            load_video(tmp_path / name)


def test_corrupted_bytes_raise(tmp_path):
    """The file opens and decodes, but its frames are corrupt."""
    data = bytearray((data_dir() / "clips" / "bunny.mp4").read_bytes())
    rng = np.random.default_rng(0)
    for i in rng.integers(3000, len(data) - 5000, 200):
        data[i] ^= int(rng.integers(1, 255))
    (tmp_path / "corrupt.mp4").write_bytes(data)
    with pytest.raises(
        ValueError, match="corrupt.mp4: expected intact frames, got a damaged one at"
    ):
        load_video(tmp_path / "corrupt.mp4")


def test_a_truncated_file_raises(tmp_path):
    """With its index in front, half a file still plays."""
    full = tmp_path / "full.mp4"
    with (
        av.open(str(data_dir() / "clips" / "bunny.mp4")) as reader,
        av.open(str(full), "w", options={"movflags": "faststart"}) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    assert load_video(full).shape[1] == 66
    (tmp_path / "half.mp4").write_bytes(full.read_bytes()[: full.stat().st_size // 2])
    with pytest.raises(
        ValueError, match="half.mp4: expected 66 frames, got [0-9]+; the file is damaged"
    ):
        load_video(tmp_path / "half.mp4")
    assert load_video(tmp_path / "half.mp4", num_frames=5).shape[1] == 5, (
        "intact frames can be read"
    )


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("bare.h264", "libx264", "h264"),
        ("a.ts", "libx264", "mpegts"),
        ("b.ts", "mpeg2video", "mpegts"),
    ],
)
def test_containers_without_seeking(tmp_path, name, codec, container):
    """No index, perhaps no time stamps: the frames must still be right."""
    path = tmp_path / name
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(30):
            image = np.full((32, 48, 3), i * 8, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    assert numbers(load_video(path)) == list(range(30))
    assert numbers(load_video(path, start=0.6, num_frames=3)) == [15, 16, 17]
    assert numbers(load_video(path, start=1.0, num_frames=3)) == [25, 26, 27]


def test_a_frame_stays_on_screen_until_the_next_one(tmp_path):
    """Files need not have a constant rate: here a pause of three seconds follows frame 2."""
    path = tmp_path / "pause.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = (
            48,
            32,
            "bgr0",
            Fraction(1, 1000),
        )
        for i, time in enumerate((0, 100, 200, 3000, 3100, 3200)):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 48, 3), i * 8, dtype=np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert numbers(load_video(path, start=2.0, num_frames=4, fps=10)) == [2, 2, 2, 2]
    assert numbers(load_video(path, fps=2)) == [0, 2, 2, 2, 2, 2, 3]


def test_error_names_a_file_without_video(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono"
        )
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mkv: expected a video stream, got none"):
        load_video(path)


@pytest.mark.parametrize("pixels", ["gray", "yuv444p", "yuv422p10le", "rgb24"])
def test_odd_pixel_formats_are_read(tmp_path, pixels):
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, {"rgb24": "bgr0"}.get(pixels, pixels)
        for shade in (0, 100, 250):
            image = np.full((24, 32, 3), shade, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    means = ((load_video(path).mean((0, 2, 3)) + 1) * 127.5).tolist()
    assert np.allclose(means, [0, 100, 250], atol=3)


def test_save_video_raises_for_odd_sizes(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got c=3, h=15, w=16"):
        save_video(tmp_path / "x.mp4", torch.zeros(3, 2, 15, 16))
    with pytest.raises(
        ValueError, match="fps: expected a finite number above 0 and at most 1000, got 0.0"
    ):
        save_video(tmp_path / "x.mp4", torch.zeros(3, 2, 16, 16), fps=0.0)
