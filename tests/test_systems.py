"""Other systems: text encodings, line ends, names of folders, read-only files.

Windows opens text in its own code page, checks out CRLF where git is told so, and has paths with
spaces; what of this can be had on any machine is tried here: an ASCII locale and a strange folder.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    ROOT / "install.py",
    *(ROOT / "course_lib").rglob("*.py"),
    *(ROOT / "tools").rglob("*.py"),
    *(ROOT / "tests").rglob("*.py"),
]
FOLDER = "My Gerät 视频"  # a space, a letter of cp1252, two that no Western code page has


def opens_text_by_locale(call):
    """Whether a call reads or writes text in the encoding of the system's locale."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    keywords = {keyword.arg for keyword in call.keywords}
    if "encoding" in keywords or None in keywords:
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    owner = function.value if isinstance(function, ast.Attribute) else None
    is_library = isinstance(owner, ast.Name) and owner.id in ("Image", "av", "tarfile", "os")
    if name != "open" or is_library:
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes += call.args[0 if owner is not None and getattr(owner, "id", "") != "io" else 1 :][:1]
    return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


def lines_by_locale(source):
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    # files.write_text(path, text) is the course's own, in UTF-8
    calls = [call for call in calls if not ast.unparse(call.func).startswith(("files.", "write_"))]
    return sorted(call.lineno for call in calls if opens_text_by_locale(call))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_in_utf8(path):
    assert lines_by_locale(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "is_bad"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("io.open(path)", True),
        ("path.open('w')", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("open(path, 'rb')", False),
        ("path.open('wb')", False),
        ("open(path, mode='rb')", False),
        ("io.open(path, encoding='utf-8')", False),
        ("files.write_text(path, text)", False),
        ("Image.open(path)", False),
    ],
)
def test_the_encoding_checker_can_fail(source, is_bad):
    assert lines_by_locale(source) == [1] * is_bad


def run_in_ascii_locale(code, *arguments):
    """Run Python code whose default text encoding is ASCII; a failure shows its traceback."""
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env |= {"PYTHONIOENCODING": "utf-8", "COURSE_PROFILE": "ci"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, *arguments]
    return subprocess.run(command, env=env, capture_output=True, cwd=ROOT)


RESULTS = """
import json, os, sys
from pathlib import Path
from course_lib.claims import load_ledger, save_ledger
from course_lib.runtime import data_dir

root = Path(os.fsdecode(os.fsencode(sys.argv[1])))
original = (data_dir() / "claims.json").read_bytes()
ledger = load_ledger()
save_ledger(ledger, root / "claims.json")
assert (root / "claims.json").read_bytes() == original
assert load_ledger(root / "claims.json") == ledger
"""

CHECKPOINTS = """
import os, sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL
from course_lib import zoo

root = Path(os.fsdecode(os.fsencode(sys.argv[1])))
vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8)
metadata = {"evaluation": {"psnr": 31.5}, "summary": "\\u03b5 \\u2264 \\u221a2"}
save = lambda folder: vae.half().save_pretrained(folder)
zoo.store("mini-vae", save, metadata, "# \\u4e2d\\n", root)
assert zoo.card("mini-vae", root).text == "# \\u4e2d\\n"
assert zoo.card("mini-vae", root).metadata["summary"] == metadata["summary"]
for tensor, stored in zip(zoo.load("mini-vae", root=root).parameters(), vae.parameters()):
    assert torch.equal(tensor, stored.float())
"""

STATES = """
import os, sys
from pathlib import Path
import torch
from course_lib.training.state import read_state, write_state

path = Path(os.fsdecode(os.fsencode(sys.argv[1]))) / "state [1].safetensors"
write_state(path, {"x": torch.arange(3.0)}, {"name": "\\u00e9\\u4e2d"})
tensors, metadata = read_state(path)
assert torch.equal(tensors["x"], torch.arange(3.0)) and metadata == {"name": "\\u00e9\\u4e2d"}
"""

VIDEOS = """
import os, sys
from pathlib import Path
import torch
from course_lib.world import list_videos, load_video, save_video

path = Path(os.fsdecode(os.fsencode(sys.argv[1]))) / "clip.mp4"
load_video(next(iter(list_videos())), num_frames=2, size=16)
save_video(path, torch.zeros(3, 4, 16, 16))
assert load_video(path, num_frames=2, size=16).shape == (3, 2, 16, 16)
"""


@pytest.mark.parametrize(
    "code",
    [RESULTS, CHECKPOINTS, STATES, VIDEOS],
    ids=["results", "checkpoints", "states", "videos"],
)
def test_files_travel_through_any_folder_and_locale(code, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    result = run_in_ascii_locale(code, str(folder))
    assert result.returncode == 0, result.stderr.decode(errors="replace")
