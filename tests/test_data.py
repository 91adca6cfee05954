"""data/README.md and the files of data/: every file has its line, its licence and its checksum."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from course_lib import zoo
from course_lib.files import (
    CHECKSUMS_FILE,
    read_checksums,
    read_json,
    verify_checksum,
    write_json,
)
from tools import build_data

DATA = Path(__file__).resolve().parents[1] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
CLIPS = json.loads((DATA / "clips" / "clips.json").read_text(encoding="utf-8"))
CHECKPOINTS = DATA / "checkpoints"
FILES = sorted(
    path
    for room in ("sprites", "clips")
    for path in (DATA / room).iterdir()
    if path.name not in ("LICENSE", CHECKSUMS_FILE)
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_has_its_line(path):
    assert f"`{path.relative_to(DATA).as_posix()}`" in README


@pytest.mark.parametrize("room", ["sprites", "clips"])
def test_the_list_of_checksums_has_every_file(room):
    folder = DATA / room
    files = [path for path in folder.iterdir() if path.name != CHECKSUMS_FILE]
    assert sorted(read_checksums(folder)) == sorted(path.name for path in files)
    for path in files:
        verify_checksum(path, folder)


@pytest.mark.parametrize("room", ["sprites", "clips"])
def test_building_the_data_lists_the_same_checksums(room, tmp_path):
    shutil.copytree(DATA / room, tmp_path / room)
    (tmp_path / room / CHECKSUMS_FILE).unlink()
    build_data.write_list_of_checksums(tmp_path / room)
    expected = (DATA / room / CHECKSUMS_FILE).read_bytes()
    assert (tmp_path / room / CHECKSUMS_FILE).read_bytes() == expected


@pytest.mark.parametrize("path", [DATA / "sprites" / "emoji.json", DATA / "clips" / "clips.json"])
def test_building_the_data_writes_the_same_json(path, tmp_path):
    write_json(tmp_path / path.name, read_json(path))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_git_changes_no_byte_of_a_listed_file():
    """Checked out on any system: text files keep their line ends, others are binary."""
    rooms = ("sprites", "clips")
    listed = [f"data/{room}/{name}" for room in rooms for name in read_checksums(DATA / room)]
    listed += [f"data/checkpoints/{line[66:]}" for line in checksum_lines()]
    command = ["git", "check-attr", "text", "eol", "--stdin"]
    out = subprocess.run(
        command, cwd=DATA.parent, input="\n".join(listed), text=True, check=True, stdout=-1
    ).stdout
    attributes = {
        tuple(line.rsplit(": ", 2)[:2]): line.rsplit(": ", 1)[1] for line in out.splitlines()
    }
    for name in listed:
        is_binary = attributes[name, "text"] == "unset"
        assert is_binary or attributes[name, "eol"] == "lf", name
        assert is_binary or b"\r" not in (DATA.parent / name).read_bytes(), name


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_is_credited_as_its_card_says(name):
    words = " ".join(README.split())
    assert CLIPS[name]["credit"] in words
    row = next(
        line
        for line in README.splitlines()
        if line.startswith("|") and f"`clips/{name}.mp4`" in line
    )
    assert CLIPS[name]["licence"] in row


def test_the_sprites_keep_their_notice():
    notice = (DATA / "sprites" / "LICENSE").read_text(encoding="utf-8")
    assert notice.startswith("MIT License\n\nCopyright (c) Microsoft Corporation.\n")
    assert "The above copyright notice and this permission notice shall be included" in notice


def test_all_of_it_stays_small():
    assert sum(path.stat().st_size for path in FILES if path.parent.name == "sprites") <= 4e6


# Checkpoints have a list of checksums of their own


@pytest.mark.parametrize("name", zoo.names(CHECKPOINTS))
def test_a_checkpoint_is_complete_listed_and_has_a_card(name):
    zoo.verify(name, CHECKPOINTS)
    card = zoo.card(name, CHECKPOINTS)
    assert f"`checkpoints/{name}/`" in README
    assert card.metadata["name"] == name and f"# {name}\n" in card.text
    assert f"python -m course_lib.recipes {name} --profile " in card.text
    assert "## Use and limits" in card.text


def test_no_file_lies_among_the_checkpoints_unlisted():
    listed = [CHECKPOINTS / line[66:] for line in checksum_lines()]
    cards = [CHECKPOINTS / name / "README.md" for name in zoo.names(CHECKPOINTS)]
    files = [path for path in CHECKPOINTS.rglob("*") if path.is_file()]
    hidden = [
        path
        for path in files
        if any(part.startswith(".") for part in path.relative_to(CHECKPOINTS).parts)
    ]
    assert sorted(set(files) - set(hidden)) == sorted(
        [*listed, *cards, *[CHECKPOINTS / zoo.CHECKSUMS_FILE] * bool(listed)]
    )


def checksum_lines():
    sums = CHECKPOINTS / zoo.CHECKSUMS_FILE
    return sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []


def test_the_checkpoints_stay_small_together():
    sizes = [path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(sizes) <= 60e6
