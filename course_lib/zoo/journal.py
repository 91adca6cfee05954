"""Replacing a checkpoint as one step, and reading while another process replaces one.

A new checkpoint waits in a hidden folder, its stage. `commit` writes the journal, which says what
moves where, and then the old folder, the new one and the list of checksums take their places. The
list decides: whoever finds a journal (the same process after an error, or the next one after a
kill) goes back unless the new list is written, and otherwise finishes.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from course_lib import files
from course_lib.zoo.checksums import files_under

JOURNAL_FILE = ".store.json"
STAGE_NAME = re.compile(r"\.store\.(\d+)\.\w+\.part")
MAX_READS = 100

T = TypeVar("T")
_own_stages: set[str] = set()


def open_stage(root: Path) -> Path:
    """Make a hidden folder in `root` for a new checkpoint, and remove those of killed processes.

    Args:
        root: folder of checkpoints; it is created.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in (JOURNAL_FILE, files.CHECKSUMS_FILE):
        files.remove_stale_parts(root / name)
    for folder in list(root.iterdir()):
        match = STAGE_NAME.fullmatch(folder.name)
        # In containers, a killed process often had the number of this one
        is_others = match and match[1] != str(os.getpid()) and files.is_running(match[1])
        if match and not is_others and folder.name not in _own_stages:
            discard_stage(folder, root)
    stage = Path(tempfile.mkdtemp(prefix=f".store.{os.getpid()}.", suffix=".part", dir=root))
    _own_stages.add(stage.name)
    return stage


def discard_stage(stage: Path, root: Path) -> None:
    """Delete a stage, unless it is in the journal and may have the only good copy."""
    _own_stages.discard(stage.name)
    try:
        has_journal = (root / JOURNAL_FILE).exists()
        is_waiting = has_journal and _read_journal(root)["stage"] == stage.name
    except (OSError, ValueError):
        is_waiting = True  # rather a leftover than a loss
    if not is_waiting:
        _remove_tree(stage)


def commit(
    name: str, stage: Path, checksums: Mapping[str, str], copies: Sequence[str], root: Path
) -> None:
    """Put `stage/new` in the place of a checkpoint, or leave everything as it was.

    Args:
        name: of the checkpoint.
        stage: of `open_stage`.
        checksums: the new list, of all checkpoints.
        copies: files that are to be deleted, relative to `root`.
        root: folder of checkpoints, which the caller has locked.

    Raises:
        OSError: a file cannot be moved or written.
    """
    listed = files_under(name, checksums)
    journal = {"name": name, "stage": stage.name, "copies": list(copies), "sha256": listed}
    try:
        files.write_json(root / JOURNAL_FILE, journal)
        if os.path.lexists(root / name):
            (root / name).rename(stage / "old")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / "new").rename(root / name)
        files.sync_folder((root / name).parent)
        files.write_checksums(checksums, root)
    finally:
        for _ in range(2):
            with suppress(OSError):  # the next reader tries again
                recover(root)


def recover(root: Path) -> None:
    """Undo or finish a replacement that an error or a kill has stopped.

    Args:
        root: folder of checkpoints, which the caller has locked.

    Raises:
        OSError: a file cannot be moved.
        ValueError: the journal is damaged.
    """
    if not (root / JOURNAL_FILE).exists():
        return
    journal = _read_journal(root)
    name, stage = journal["name"], root / journal["stage"]
    folder, new, old = root / name, stage / "new", stage / "old"
    is_listed = files_under(name, files.read_checksums(root)) == journal["sha256"]
    if new.exists() or not is_listed:
        if not new.exists() and folder.exists():
            folder.rename(new)
        if os.path.lexists(old):
            old.rename(folder)
        for parent in folder.relative_to(root).parents[:-1]:
            with suppress(OSError):  # it has other checkpoints
                (root / parent).rmdir()
    else:
        for file in journal["copies"]:
            (root / file).unlink(missing_ok=True)
    (root / JOURNAL_FILE).unlink()
    _remove_tree(stage)


def read_consistently(read: Callable[[], T], root: Path) -> T:
    """The result of `read()`, which is repeated if a checkpoint was replaced meanwhile.

    Args:
        read: reads checkpoints of `root`; its error counts if it comes again.
        root: folder of checkpoints, which may be read-only.
    """
    for number in range(MAX_READS):
        if number or (root / JOURNAL_FILE).exists():
            _wait(root)
        before = _version(root)
        try:
            result = read()
        except (OSError, ValueError):
            # Between two renamings there is nothing to read: one error proves nothing
            if (number and before == _version(root)) or number == MAX_READS - 1:
                raise
            continue
        if before == _version(root):
            break
    return result


def _wait(root: Path) -> None:
    """Wait for the process that replaces a checkpoint, or recover in the place of a killed one."""
    if root.is_dir():
        with suppress(OSError), files.locked(root):  # a read-only folder is read as it is
            recover(root)


def _version(root: Path) -> tuple[int, ...]:
    """Changes whenever the list of checksums is replaced."""
    try:
        stat = (root / files.CHECKSUMS_FILE).stat()
    except OSError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read_journal(root: Path) -> dict[str, Any]:
    """The journal; what it moves and deletes has to be in the folder of checkpoints."""
    journal = files.read_json(root / JOURNAL_FILE)
    try:
        paths = [journal["name"], *journal["copies"]]
        is_sound = STAGE_NAME.fullmatch(journal["stage"]) and "sha256" in journal
        is_sound = is_sound and not (root / journal["stage"]).is_symlink()
        top = root.resolve()
        for path in paths:
            folder = (root / path).parent.resolve()
            is_sound = is_sound and folder.is_relative_to(top) and Path(path).name not in ("", "..")
    except (KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{root / JOURNAL_FILE}: expected a journal of zoo.store, got another")
    return journal


def _remove_tree(folder: Path) -> None:
    for _ in range(2):  # a virus scanner may have had a file open
        shutil.rmtree(folder, ignore_errors=True)
