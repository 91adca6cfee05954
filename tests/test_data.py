"""data/README.md and what lies in data/: every file has its line, its licence and its checksum."""

import hashlib
import json
import re
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
CLIPS = json.loads((DATA / "clips" / "clips.json").read_text(encoding="utf-8"))
FILES = sorted(path for room in ("sprites", "clips") for path in (DATA / room).iterdir() if path.name != "LICENSE")


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
    row = next(line for line in README.splitlines() if line.startswith("|") and f"`clips/{name}.mp4`" in line)
    assert CLIPS[name]["licence"] in row


def test_the_sprites_keep_their_notice():
    notice = (DATA / "sprites" / "LICENSE").read_text(encoding="utf-8")
    assert notice.startswith("MIT License\n\nCopyright (c) Microsoft Corporation.\n")
    assert "The above copyright notice and this permission notice shall be included" in notice


def test_all_of_it_stays_small():
    assert sum(path.stat().st_size for path in FILES if path.parent.name == "sprites") <= 4e6
