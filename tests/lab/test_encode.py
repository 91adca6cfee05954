"""PNG and APNG bytes: Pillow decodes them to the same frames."""

import inspect
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from course_lib.lab.encode import encode_apng, encode_png


def decoded(data: bytes, fps: int = 8) -> np.ndarray:
    """(n, h, w, 3), as Pillow reads it; a frame of a longer duration is repeated."""
    image = Image.open(io.BytesIO(data))
    frames = []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        repeats = round(image.info.get("duration", 1000 / fps) * fps / 1000)
        frames += [np.asarray(image.convert("RGB"))] * repeats
    return np.stack(frames)


def few_colours(shape: tuple[int, ...], colours: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (colours, 3), np.uint8)[generator.integers(0, colours, shape)]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 5),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    colours=st.integers(1, 255),
    seed=st.integers(0, 99),
)
def test_round_trip_is_exact_up_to_255_colours(n, h, w, colours, seed):
    frames = few_colours((n, h, w), colours, seed)
    frames[n // 2 :, : h // 2] = frames[0, : h // 2]  # some of it stands still
    result = decoded(encode_apng(frames, 8))
    if (frames == frames[:1]).all():  # a still image may have lost its duration
        result = result[:1].repeat(n, 0)
    np.testing.assert_array_equal(result, frames)


def test_still_frames_keep_their_time():
    frames = np.repeat(few_colours((2, 6, 5), 9, 0), 4, 0)
    np.testing.assert_array_equal(decoded(encode_apng(frames, 8)), frames)


def test_many_colours_come_close():
    y, x, t = np.mgrid[:64, :64, :6].transpose(0, 3, 1, 2).astype(float)
    frames = np.stack([2 * x + 5 * t, 3 * y, 128 + 40 * np.sin(x / 9 + t)], -1)[..., :].clip(0, 255)
    frames = np.moveaxis(frames, 0, 0).astype(np.uint8)
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) > 5000
    error = decoded(encode_apng(frames, 8)).astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30  # dB


@pytest.mark.parametrize("colours", [2, 64])
def test_fewer_colours_take_less_room(colours):
    noise = np.random.default_rng(0).normal(120, 20, (8, 48, 48, 3)).clip(0, 255).astype(np.uint8)
    data, full = encode_apng(noise, 8, colours), encode_apng(noise, 8)
    frames = decoded(data)
    assert len({tuple(pixel) for pixel in frames.reshape(-1, 3)}) <= colours
    assert len(data) < 0.8 * len(full)
    assert np.abs(frames.astype(int) - noise).mean() < (30 if colours == 2 else 10)


@pytest.mark.parametrize("colours", [1, 256])
def test_impossible_numbers_of_colours_are_refused(colours):
    with pytest.raises(
        ValueError, match=rf"colours: expected an integer from 2 to 255, got {colours}"
    ):
        encode_apng(np.zeros((2, 4, 4, 3), np.uint8), 8, colours)


def test_a_page_stays_exactly_white_whatever_is_on_it():
    frames = np.full((3, 60, 60, 3), 255, np.uint8)
    frames[:, :58] = np.random.default_rng(0).integers(0, 256, (3, 58, 60, 3))
    assert (decoded(encode_apng(frames, 8))[:, 58:] == 255).all()


def test_it_loops_at_the_right_speed_and_is_opaque():
    image = Image.open(io.BytesIO(encode_apng(few_colours((3, 4, 4), 30, 1), 8)))
    assert image.format == "PNG" and image.n_frames == 3
    assert image.info["loop"] == 0 and image.info["duration"] == pytest.approx(125)
    for i in range(3):
        image.seek(i)
        assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255


def test_one_frame_is_a_plain_png():
    data = encode_png(few_colours((7, 5), 20, 2))
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and b"acTL" not in data
    np.testing.assert_array_equal(decoded(data)[0], few_colours((7, 5), 20, 2))


def test_palette_and_changes_make_it_smaller_than_rgb_frames():
    sprite = few_colours((20, 20), 200, 3)
    frames = np.repeat(few_colours((1, 64, 64), 255, 4), 12, 0)
    for i in range(12):
        frames[i, 20:40, 3 * i : 3 * i + 20] = sprite
    pillow = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(pillow, "PNG", save_all=True, append_images=rest, optimize=True)
    assert len(encode_apng(frames, 8)) < 0.5 * len(pillow.getvalue())


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 0, 4, 3)])
def test_nothing_to_show_is_refused(shape):
    with pytest.raises(ValueError, match="frames: expected no empty axis, got shape"):
        encode_apng(np.zeros(shape, np.uint8), 8)


@pytest.mark.parametrize("fps", [0, -1, 101])
def test_impossible_speed_is_refused(fps):
    with pytest.raises(
        ValueError, match=rf"fps: expected a finite number at least 0.1 and at most 100, got {fps}"
    ):
        encode_apng(np.zeros((2, 4, 4, 3), np.uint8), fps)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_values_that_are_no_levels_are_refused(value):
    frames = np.full((2, 4, 4, 3), value, np.float32)
    with pytest.raises(ValueError, match="frames: expected levels 0 to 255 as uint8, got float32"):
        inspect.unwrap(encode_apng)(frames, fps=8)


def test_other_axes_are_refused():
    with pytest.raises(ValueError, match=r"frames: expected \(n, h, w, 3\), got shape"):
        inspect.unwrap(encode_apng)(np.zeros((2, 3, 4, 4), np.uint8), fps=8)
