"""Damaged and missing files of data/ are refused, and the message names the file."""

import inspect
import re
import shutil

import pytest

from course_lib.files import read_json, sha256, write_checksums, write_json
from course_lib.runtime import data_dir
from course_lib.world import list_videos, load_video
from course_lib.world.sprites import sprite_atlas

LOADERS = {
    "sprites/emoji.json": inspect.unwrap(sprite_atlas),
    "sprites/emoji.webp": inspect.unwrap(sprite_atlas),
    "clips/clips.json": list_videos,
    "clips/puck.mp4": lambda: load_video("puck"),
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    for folder in ("sprites", "clips"):
        shutil.copytree(data_dir() / folder, tmp_path / folder)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    return tmp_path


def flip_one_bit(content):
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    return bytes(changed)


DAMAGES = {
    "one bit": flip_one_bit,
    "truncated": lambda content: content[: len(content) // 2],
    "one byte fewer": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\n",
    "empty": lambda content: b"",
    "other line ends": lambda content: content.replace(b"\n", b"\r\n"),
    "not UTF-8": lambda content: b"\xff" + content,
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(data, name, damage):
    path = data / name
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: damaged .*sha256"):
        LOADERS[name]()


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_is_named(data, name):
    (data / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{re.escape(str(data / name))}: missing; restore it"
    ):
        LOADERS[name]()


@pytest.mark.parametrize("name", LOADERS)
def test_without_its_list_of_checksums_no_file_is_trusted(data, name):
    sums = (data / name).with_name("SHA256SUMS")
    listed = sums.read_text(encoding="utf-8")
    others = [line for line in listed.splitlines(True) if (data / name).name not in line]
    sums.write_text("".join(others), encoding="utf-8")
    with pytest.raises(ValueError, match=f"{re.escape(str(data / name))}: expected a file in"):
        LOADERS[name]()
    sums.write_text(listed[: len(listed) // 2 + 7], encoding="utf-8")
    with pytest.raises(ValueError, match="SHA256SUMS"):
        LOADERS[name]()
    sums.unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS: missing; restore it"):
        LOADERS[name]()


def test_sound_copies_are_loaded(data):
    assert set(list_videos()) == {"earth", "bunny", "trailer", "puck"}
    assert load_video("puck", num_frames=1).shape[1] == 1


def test_a_file_changed_after_its_first_use_is_refused(data):
    load_video("puck", num_frames=1)
    path = data / "clips" / "puck.mp4"
    path.write_bytes(flip_one_bit(path.read_bytes()))
    with pytest.raises(ValueError, match="puck.mp4: damaged"):
        load_video("puck", num_frames=1)


def test_other_emoji_than_those_of_the_package_are_refused(data):
    path = data / "sprites" / "emoji.json"
    listing = read_json(path)
    listing["emoji"].reverse()
    write_json(path, listing)
    files = [file for file in path.parent.iterdir() if file.name != "SHA256SUMS"]
    write_checksums({file.name: sha256(file) for file in files}, path.parent)
    with pytest.raises(ValueError, match="emoji.json: expected the emoji of subjects.py"):
        LOADERS["sprites/emoji.json"]()
