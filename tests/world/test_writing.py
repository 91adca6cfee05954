"""A clip is written completely or not at all, and only if it can be shown as it is."""

import inspect
import math
import os
from pathlib import Path

import pytest
import torch

from course_lib.world import film, load_video, save_video


@pytest.fixture
def clip():
    return torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_value(clip, value):
    clip = clip.clone()
    clip[1, 1, 2, 3] = value
    return clip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: with_value(c, math.nan), "finite values, got 1 of 1536 NaN or infinite"),
        (lambda c: with_value(c, math.inf), "finite values, got 1 of"),
        (lambda c: with_value(c, -math.inf).half(), "finite values, got 1 of"),
        (lambda c: with_value(c, math.nan).bfloat16(), "finite values, got 1 of"),
        (lambda c: torch.full_like(c, 100).to(torch.uint8), "floating point, got torch.uint8"),
        (lambda c: c.long(), "floating point, got torch.int64"),
        (lambda c: c > 0, "floating point, got torch.bool"),
        (lambda c: c * 127.5 + 127.5, r"values in \[-1, 1\], got .* / 127.5 - 1"),
        (lambda c: c * 1.1, r"values in \[-1, 1\], got .*clamp\(-1, 1\)"),
        (lambda c: c[None], r"\(c, f, h, w\), got shape \(1, 3, 2, 16, 16\)"),
        (lambda c: c[:, 0], r"\(c, f, h, w\), got shape \(3, 16, 16\)"),
        (lambda c: c[:1], "three channels, even height and width, got c=1"),
        (lambda c: c.transpose(0, 1), "three channels, even height and width, got c=2"),
        (lambda c: c[:, :0], "no empty axis, got shape"),
        (lambda c: c[..., 1:], "three channels, even height and width, got c=3, h=16, w=15"),
    ],
)
def test_a_video_that_cannot_be_shown_is_not_written(tmp_path, clip, change, message):
    old = tmp_path / "old.mp4"
    old.write_bytes(b"old")
    for path in (tmp_path / "folder" / "new.mp4", old):
        with pytest.raises(ValueError, match=f"video: expected {message}"):
            save_video(path, change(clip))
    assert [path.name for path in tmp_path.rglob("*")] == ["old.mp4"]
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("fps", [0, -1, 0.0, math.nan, math.inf, 1001, 1e9, "8", None, True])
def test_a_frame_rate_is_one_that_the_container_can_hold(tmp_path, clip, fps):
    with pytest.raises(ValueError, match="fps: expected a finite number above 0 and at most 1000"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(film, "encode_h264", inspect.unwrap(film.encode_h264))
            inspect.unwrap(save_video)(tmp_path / "x.mp4", clip, fps=fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0.01, 1, 7.5, 29.97, 1000])
def test_frame_rates_at_both_ends_are_read_back(tmp_path, clip, fps):
    save_video(tmp_path / "x.mp4", clip, fps=fps)
    assert load_video(tmp_path / "x.mp4").shape == clip.shape


@pytest.mark.parametrize("crf", [-1, 52, 10**9, "3", 20.5, None, True])
def test_a_quality_that_the_codec_lacks_is_refused(clip, crf):
    with pytest.raises(ValueError, match="crf: expected an integer from 0 to 51, got"):
        inspect.unwrap(film.encode_h264)(film.io.BytesIO(), clip, fps=8, crf=crf)


def test_a_video_in_0_to_1_is_written_with_a_warning(tmp_path, clip):
    with pytest.warns(UserWarning, match=r"video: all values lie in \[0, 1\].*video \* 2 - 1"):
        save_video(tmp_path / "x.mp4", clip / 2 + 0.5)


def test_rounding_beyond_the_range_is_no_error(tmp_path, clip):
    save_video(tmp_path / "x.mp4", clip / clip.abs().max() * (1 + 1e-5))


@pytest.mark.parametrize("step", ["write", "flush", "rename", "encode"])
def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch, clip, step):
    path = tmp_path / "x.mp4"
    save_video(path, clip)
    old = path.read_bytes()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    def write_half(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        fail()

    def encode_half(target, *_args, **_options):
        target.write(b"half")
        fail()

    target, name, broken = {
        "write": (Path, "write_bytes", write_half),
        "flush": (os, "fsync", fail),
        "rename": (os, "replace", fail),
        "encode": (film, "encode_h264", encode_half),
    }[step]
    monkeypatch.setattr(target, name, broken)
    with pytest.raises(OSError, match="No space left"):
        save_video(path, -clip)
    with pytest.raises(OSError, match="No space left"):
        save_video(tmp_path / "new.mp4", clip)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["x.mp4"]
    assert path.read_bytes() == old


def test_the_same_clip_gives_the_same_bytes(tmp_path, clip):
    contents = set()
    for name in ("a.mp4", "b.mp4", "folder/c.mp4"):
        save_video(tmp_path / name, clip)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1
    save_video(str(tmp_path / "a.mp4"), -clip)
    assert (tmp_path / "a.mp4").read_bytes() not in contents


@pytest.mark.parametrize(
    "arguments",
    [
        *({"num_frames": value} for value in (1.5, 2.0, math.nan, 0, -1, "3", True)),
        *({"start": value} for value in (-0.1, math.nan, math.inf, "0", None)),
        *({"fps": value} for value in (0, -1, math.nan, math.inf, "8", True)),
        *({"size": value} for value in (1.5, 16.0, 0, -1, math.nan, "16", True, (), (16,))),
        *({"size": value} for value in ((16, 0), (16, 1.5), (16, 16, 3), [16, -1], (True, 16))),
    ],
    ids=str,
)
def test_load_video_refuses_what_is_no_count_time_or_size(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        inspect.unwrap(load_video)("puck", **arguments)
