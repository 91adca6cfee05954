"""Real film: seeking, resizing and frame rates against a naive reading, and damaged files."""

import av
import numpy as np
import pytest
import torch

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
        jump = (video[:, 1:] - video[:, :-1]).abs().mean((0, 2, 3))  # entry i: from frame i to i + 1
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
        ({"start": -1.0}, "start must not be negative, got -1.0"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"fps": 0.0}, "fps must be positive, got 0.0"),
        ({"start": 99.0}, "counting.mp4 has no frame at or after 99.0 s"),
        ({"frames": 31}, "counting.mp4 has only 30 of the 31 frames asked for"),
    ],
)
def test_bad_requests_are_refused(counting, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_film(counting, **arguments)


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.mp4 does not exist; shipped clips are: earth, bunny"):
        load_film("nowhere.mp4")


def test_damaged_files_are_named(tmp_path, counting):
    (tmp_path / "text.mp4").write_text("this is not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes(counting.read_bytes()[: counting.stat().st_size // 3])
    for name in ("text.mp4", "empty.mp4", "half.mp4"):
        with pytest.raises(ValueError, match=f"{name}.*(cannot be read|no frame)"):
            load_film(tmp_path / name)


def test_a_file_without_pictures_is_named(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
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
