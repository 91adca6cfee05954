"""data/README.md and the files of data/: every file has its line, its licence and its checksum."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from course_lib import zoo

DATA = Path(__file__).resolve().parents[1] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
CLIPS = json.loads((DATA / "clips" / "clips.json").read_text(encoding="utf-8"))
CHECKPOINTS = DATA / "checkpoints"
FILES = sorted(
    path
    for room in ("sprites", "clips")
    for path in (DATA / room).iterdir()
    if path.name != "LICENSE"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_listed_with_its_checksum(path):
    name = path.relative_to(DATA).as_posix()
    content = path.read_bytes()
    assert f"`{name}`" in README
    assert f"{hashlib.sha256(content).hexdigest()}  {name}\n" in README


def test_no_checksum_of_a_file_that_is_gone():
    listed = re.findall(r"^[0-9a-f]{64}  (\S+)$", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DATA).as_posix() for path in FILES)


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
