"""Layout: positions of the pixels of clips, frames and captions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.lab import page_layout


def clips(b=2, f=5, h=8, w=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (b, f, h, w, 3), np.uint8)  # never white


def test_animation_places_enlarged_clips_side_by_side():
    given_clips = clips(b=2, w=8)
    frames = page_layout.animation([page_layout.ClipRow(given_clips, ("", ""))], scale=3)
    for i in range(5):
        np.testing.assert_array_equal(
            frames[i, 1:25, 1:25], given_clips[0, i].repeat(3, 0).repeat(3, 1)
        )
        left = 25 + page_layout.GAP
        np.testing.assert_array_equal(frames[i, 1:25, left : left + 24 : 3][::3], given_clips[1, i])
    assert (frames[:, :24, 26 : left - 1] == 255).all()
    assert (frames[:, :26, [0, 25]] == page_layout.EDGE).all()


def test_clips_wrap_at_the_page_and_at_a_number_of_columns():
    row = page_layout.ClipRow(clips(b=12, h=16, w=16), ("",) * 12)
    assert page_layout.animation([row]).shape[2] <= page_layout.PAGE_WIDTH
    narrow = page_layout.animation([row], 1, columns=5)
    assert (narrow[0, 2 * (16 + 6 + page_layout.GAP) :, :16] != 255).any()  # a third line


@pytest.mark.parametrize(
    ("w", "expected"), [(8, 192), (32, 192), (64, 192), (100, 200), (256, 256), (640, 320)]
)
def test_one_clip_is_shown_large_enough(w, expected):
    frames = page_layout.animation([page_layout.ClipRow(clips(1, 1, 4, w), ("",))])
    assert frames.shape[2] == expected + page_layout.GAP


@pytest.mark.parametrize("w", [16, 32, 48, 64, 100])
def test_four_clips_are_at_least_128_wide_each(w):
    frames = page_layout.animation([page_layout.ClipRow(clips(4, 1, 4, w), ("",) * 4)])
    assert frames.shape[2] >= 3 * (128 + page_layout.GAP)


def test_rows_of_different_length_end_together():
    slow, fast = clips(1, 2, 8, 8, 1), clips(1, 8, 8, 8, 2)
    frames = page_layout.animation(
        [page_layout.ClipRow(slow, ("",)), page_layout.ClipRow(fast, ("",))], scale=1
    )
    assert len(frames) == 8
    for i in range(8):
        np.testing.assert_array_equal(frames[i, 1:9, 1:9], slow[0, i // 4])


def test_captions_are_at_the_bottom_and_titles_at_the_top():
    plain = page_layout.animation([page_layout.ClipRow(clips(1), ("",))], scale=16)
    captioned = page_layout.animation(
        [page_layout.ClipRow(clips(1), ("a fox",), "truth")], scale=16
    )
    assert captioned.shape[1] > plain.shape[1] + 20
    assert (captioned[:, :20] < 100).any() and (captioned[:, 26 + 128 :] < 100).any()  # ink


def test_resize_averages_whole_blocks():
    small = page_layout.resize(
        np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, -1), 1, 2
    )
    np.testing.assert_array_equal(small[0, ..., 0], [[2, 4], [10, 12]])


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=80),
    width=st.integers(60, 300),
)
def test_text_fits(text, width):
    lines = page_layout.wrap_text(text, width)
    assert len(lines) <= page_layout.MAX_LINES
    assert all(page_layout.font(page_layout.FONT_SIZE).getlength(line) <= width for line in lines)


def test_short_text_is_kept_and_long_text_is_marked_as_cut():
    assert " ".join(page_layout.wrap_text("a fox moving right", 100)) == "a fox moving right"
    assert page_layout.wrap_text("word " * 60, 100)[-1].endswith("…")


@given(f=st.integers(1, 99), num_frames=st.integers(2, 20))
def test_strip_takes_both_ends_and_spaces_evenly(f, num_frames):
    indices = page_layout.strip_indices(f, num_frames)
    assert indices[0] == 0 and indices[-1] == f - 1 and len(indices) == min(f, num_frames)
    steps = np.diff(indices)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_film_strip_shows_the_frames_that_it_numbers():
    clip = clips(1, 16, 64, 64)
    strip = page_layout.film_strip([page_layout.ClipRow(clip, ("a fox",))])
    top = page_layout.FONT_SIZE + 6
    for k, index in enumerate(page_layout.strip_indices(16, 8)):
        np.testing.assert_array_equal(
            strip[top : top + 64, k * 68 + 1 : k * 68 + 65], clip[0, index]
        )
    assert strip.shape[1] == 8 * 68


@pytest.mark.parametrize(("w", "expected"), [(8, 64), (48, 96), (64, 64), (120, 120), (256, 85)])
def test_a_strip_frame_is_legible(w, expected):
    strip = page_layout.film_strip([page_layout.ClipRow(clips(1, 8, 4, w), ("",))])
    assert strip.shape[1] == 8 * (expected + 4)


def test_captions_under_small_clips_do_not_run_into_each_other():
    row = page_layout.ClipRow(
        np.zeros((3, 1, 32, 32, 3), np.uint8), ("a first caption", "a second", "a third")
    )
    sheet = page_layout.animation([row], scale=1)[0]
    black = (sheet[1:33] == 0).all(axis=(0, 2))  # the columns in which a clip stands
    starts = np.flatnonzero(black[1:] & ~black[:-1]) + 1
    assert len(starts) == 3 and (np.diff(starts) >= 96).all()
