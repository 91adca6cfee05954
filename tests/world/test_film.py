"""Real film: seeking, resizing and frame rates against a naive reading, and damaged files."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from course_lib.runtime import data_dir
from course_lib.world import films, load_film, save_film


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """30 frames at 10 fps; frame i has brightness 8 i, so a picture tells its own number. Key frames are rare."""
    path = tmp_path_factory.mktemp("film") / "counting.mp4"
    shades = (torch.arange(30.0) * 8 / 127.5 - 1).view(1, 30, 1, 1).expand(3, 30, 32, 48)
    save_film(path, shades.contiguous(), fps=10)
    return path


def numbers(video):
    return [round(x) for x in ((video.mean((0, 2, 3)) + 1) * 127.5 / 8).tolist()]


@pytest.mark.parametrize("name", ["earth", "bunny", "trailer", "puck"])
def test_shipped_clips_are_what_their_card_says(name):
    card = films()[name]
    video = load_film(name)
    assert video.shape == (3, card.frames, card.height, card.width)
    assert video.dtype == torch.float32 and -1 <= video.min() and video.max() <= 1
    assert card.credit and card.licence and video.std() > 0.05


def test_cuts_are_where_the_card_says():
    """A cut is a jump: every listed frame differs from the one before far more than any other does."""
    for name, card in films().items():
        video = load_film(name, size=(32, 48))
        jump = (
            (video[:, 1:] - video[:, :-1]).abs().mean((0, 2, 3))
        )  # entry i: from frame i to i + 1
        listed = [cut - 1 for cut in card.cuts]
        rest = np.delete(jump.numpy(), listed)
        assert all(jump[i] > 1.3 * rest.max() for i in listed), name
        assert rest.max() < 0.35, name


def test_whole_file(counting):
    video = load_film(counting)
    assert video.shape == (3, 30, 32, 48) and numbers(video) == list(range(30))


@pytest.mark.parametrize("start", [0.0, 0.1, 0.7, 1.25, 2.9])
def test_seeking_lands_on_the_frame_on_screen(counting, start):
    assert numbers(load_film(counting, start=start, frames=1)) == [int(start * 10 + 1e-6)]


def test_frame_rates(counting):
    assert numbers(load_film(counting, fps=5)) == list(range(0, 30, 2))
    assert numbers(load_film(counting, fps=20, frames=6)) == [0, 0, 1, 1, 2, 2]
    assert numbers(load_film(counting, fps=4, start=1.0, frames=4)) == [10, 12, 15, 17]


def test_resizing(counting):
    assert load_film(counting, size=16).shape == (3, 30, 16, 16)
    assert load_film(counting, size=(20, 10), frames=2).shape == (3, 2, 20, 10)
    square, whole = load_film("bunny", size=54, frames=1), load_film("bunny", frames=1)
    h, w = whole.shape[-2:]
    cropped = whole[:, :, :, (w - h) // 2 : (w - h) // 2 + h]
    averaged = torch.nn.functional.avg_pool3d(cropped[None], (1, 2, 2))[0]
    assert (square - averaged).abs().mean() < 0.02


def test_save_and_load_round_trip(tmp_path):
    video = load_film("bunny", frames=6, size=64)
    save_film(tmp_path / "again.mp4", video, fps=7.5)
    again = load_film(tmp_path / "again.mp4")
    assert again.shape == video.shape and (again - video).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "start must not be negative or infinite, got -1.0"),
        ({"size": 0}, "size must be a positive integer, or .height, width. of them, got 0"),
        ({"size": (0, 10)}, "size must be a positive integer"),
        ({"fps": float("nan")}, "fps must be positive and finite, got nan"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"fps": 0.0}, "fps must be positive and finite, got 0.0"),
        ({"start": 99.0}, "counting.mp4 has no frame at or after 99.0 s"),
        ({"frames": 31}, "counting.mp4 has only 30 of the 31 frames asked for"),
    ],
)
def test_bad_requests_are_refused(counting, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_film(counting, **arguments)


def test_missing_file_is_named():
    with pytest.raises(
        FileNotFoundError, match="nowhere.mp4 is not a file; shipped clips are: earth, bunny"
    ):
        load_film("nowhere.mp4")


def test_damaged_files_are_named(tmp_path, counting):
    (tmp_path / "text.mp4").write_text("this is not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes(counting.read_bytes()[: counting.stat().st_size // 3])
    for name in ("text.mp4", "empty.mp4", "half.mp4"):
        with pytest.raises(ValueError, match=f"{name}.*(cannot be read|no frame)"):
            load_film(tmp_path / name)


def test_spoilt_bytes_are_noticed(tmp_path):
    """The file opens and decodes, but its pictures are rubbish: nobody should train on them."""
    data = bytearray((data_dir() / "clips" / "bunny.mp4").read_bytes())
    dice = np.random.default_rng(0)
    for i in dice.integers(3000, len(data) - 5000, 200):
        data[i] ^= int(dice.integers(1, 255))
    (tmp_path / "spoilt.mp4").write_bytes(data)
    with pytest.raises(
        ValueError, match="spoilt.mp4 is damaged: its picture at .* cannot be decoded whole"
    ):
        load_film(tmp_path / "spoilt.mp4")


def test_a_file_cut_short_is_noticed(tmp_path):
    """With its index in front, half a file still plays; that half of it is missing must not go unsaid."""
    whole = tmp_path / "whole.mp4"
    with (
        av.open(str(data_dir() / "clips" / "bunny.mp4")) as reader,
        av.open(str(whole), "w", options={"movflags": "faststart"}) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    assert load_film(whole).shape[1] == 66
    (tmp_path / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match="half.mp4 is damaged: it ends after [0-9]+ of 66 frames"):
        load_film(tmp_path / "half.mp4")
    assert load_film(tmp_path / "half.mp4", frames=5).shape[1] == 5, "what is there can be read"


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("bare.h264", "libx264", "h264"),
        ("a.ts", "libx264", "mpegts"),
        ("b.ts", "mpeg2video", "mpegts"),
    ],
)
def test_containers_that_cannot_seek(tmp_path, name, codec, container):
    """No index, perhaps no time stamps: the frames must be right all the same."""
    path = tmp_path / name
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(30):
            picture = np.full((32, 48, 3), i * 8, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    assert numbers(load_film(path)) == list(range(30))
    assert numbers(load_film(path, start=0.6, frames=3)) == [15, 16, 17]
    assert numbers(load_film(path, start=1.0, frames=3)) == [25, 26, 27]


def test_a_frame_stays_on_screen_until_the_next_one(tmp_path):
    """Files need not have a steady rate: here a pause of three seconds follows frame 2."""
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
    assert numbers(load_film(path, start=2.0, frames=4, fps=10)) == [2, 2, 2, 2]
    assert numbers(load_film(path, fps=2)) == [0, 2, 2, 2, 2, 2, 3]


def test_a_file_without_pictures_is_named(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono"
        )
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mkv holds no video stream"):
        load_film(path)


@pytest.mark.parametrize("pixels", ["gray", "yuv444p", "yuv422p10le", "rgb24"])
def test_odd_pixel_formats_are_read(tmp_path, pixels):
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, {"rgb24": "bgr0"}.get(pixels, pixels)
        for shade in (0, 100, 250):
            picture = np.full((24, 32, 3), shade, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    means = ((load_film(path).mean((0, 2, 3)) + 1) * 127.5).tolist()
    assert np.allclose(means, [0, 100, 250], atol=3)


def test_save_refuses_odd_sizes(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got f=2, h=15, w=16"):
        save_film(tmp_path / "x.mp4", torch.zeros(3, 2, 15, 16))
    with pytest.raises(ValueError, match="fps must be positive"):
        save_film(tmp_path / "x.mp4", torch.zeros(3, 2, 16, 16), fps=0.0)
