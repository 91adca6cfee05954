"""Files that survive a kill, a second process and a system with another text encoding.

Every file that the package replaces (checkpoints, training states, results) is written here: first
a part file in the same folder, flushed to disk, then one renaming. Texts are UTF-8 with the same
bytes on every system. A list of checksums tells a damaged file from a sound one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

CHECKSUMS_FILE = "SHA256SUMS"


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Replace a file in one step; until the block ends, or if it raises, the old one stays.

    Args:
        path: of the file, which need not exist; its folder is created. A symlink stays one: the
            file that it points to is replaced.

    Yields:
        Path of the part file to write; it has to exist at the end of the block.

    Raises:
        OSError: the file cannot be written.
    """
    path = link_target(path)
    part = _part(path)
    try:
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:  # an interrupt, too
        discard(part)
        raise
    sync_folder(path.parent)


def _part(path: Path) -> Path:
    """Path of this process's part file, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def check_writable(path: Path) -> None:
    """Raise OSError now, and not after hours of work, unless `path` can be replaced."""
    part = _part(link_target(path))
    part.touch()
    part.unlink()


def link_target(path: Path) -> Path:
    """The file that a symlink points to, which need not exist; any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def discard(path: Path) -> None:
    """Delete a file if that is possible; on a read-only disk it stays, and no error is raised."""
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the error that led here says more
        pass


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, if the system can: a power failure keeps a renaming."""
    if os.name == "nt":  # a folder has no handle to flush
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # some file systems cannot; the renaming is done
        pass


def remove_stale_parts(path: Path) -> None:
    """Delete the part files of killed writers of `path`; those of running processes stay."""
    path = link_target(path)
    for part in path.parent.iterdir() if path.parent.is_dir() else ():
        pid = part.name.removeprefix(f"{path.name}.").removesuffix(".part")
        if part.name == f"{path.name}.{pid}.part" and not is_running(pid):
            discard(part)


def is_running(pid: str) -> bool:
    """Whether a process has this number; True for text that is no such number."""
    try:
        # A zombie was killed, and its parent does not know yet
        return not pid.isdecimal() or psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, OverflowError):  # no system counts as far as a text may
        return False


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time, and one thread, into the block; a kill opens the lock.

    Args:
        path: file or folder that the block reads and replaces; the lock is a hidden file in the
            same folder, which stays there.
        wait: until the others have left it.

    Raises:
        TimeoutError: another one is in the block, and this one is not to wait.
        OSError: the lock cannot be written.
    """
    path = link_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not one per thread: a generator may be closed in another thread than it was opened in
    with FileLock(path.with_name(f".{path.name}.lock"), blocking=wait, thread_local=False):
        yield


def read_text(path: Path) -> str:
    """Read a text file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not in UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got a damaged file ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, with the same bytes, and checksum, on every system."""
    with replace_atomically(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Replace a JSON file atomically; letters beyond ASCII stay readable."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no JSON in UTF-8; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    # JSONDecodeError and UnicodeDecodeError are ValueErrors; a thousand brackets recurse too deep
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON in UTF-8, got a damaged file ({error})") from error


def read_checksums(root: Path) -> dict[str, str]:
    """Read the list of checksums of a folder, in any form that `sha256sum -c` accepts.

    Args:
        root: the folder, with a `SHA256SUMS`.

    Returns:
        Path relative to `root` → sha256; empty if there is no list.

    Raises:
        ValueError: a line is damaged; the message names the file.
    """
    file = root / CHECKSUMS_FILE
    checksums = {}
    try:
        text = read_text(file)
    except FileNotFoundError:
        return checksums
    for line in filter(str.strip, text.split("\n")):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line)
        if match is None:
            raise ValueError(f"{file}: expected lines 'sha256  name', got {line!r}")
        checksums[match[2]] = match[1].lower()
    return checksums


def write_checksums(checksums: Mapping[str, str], root: Path) -> None:
    """Replace the list of checksums of a folder atomically.

    Args:
        checksums: path relative to `root` → sha256.
        root: the folder.
    """
    lines = [f"{checksums[name]}  {name}\n" for name in sorted(checksums)]
    write_text(root / CHECKSUMS_FILE, "".join(lines))


def sha256(path: Path) -> str:
    """Checksum of a file, read once in a process unless the file changes."""
    stat = path.stat()
    # The inode and its time differ, too, where a copy kept size and time of modification
    return _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@cache
def _sha256(path: Path, *_state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checksum(path: Path, root: Path) -> None:
    """Compare a file with its entry in the list of checksums of `root`; cheap if repeated.

    Args:
        path: of the file, under `root`.
        root: folder with a `SHA256SUMS`.

    Raises:
        FileNotFoundError: no such file, or no list.
        ValueError: the file or the list is damaged, or the file is not listed.
    """
    for file in (path, root / CHECKSUMS_FILE):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing; restore it from the repository")
    expected = read_checksums(root).get(path.relative_to(root).as_posix())
    if expected is None:
        raise ValueError(f"{path}: expected a file in {root / CHECKSUMS_FILE}, got no entry")
    if sha256(path) != expected:
        raise ValueError(
            f"{path}: damaged (its sha256 differs from {CHECKSUMS_FILE}); restore it from the "
            "repository"
        )
