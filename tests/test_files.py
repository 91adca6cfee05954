"""Files: atomic replacement, locks between processes, UTF-8 under any locale."""

import hashlib
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from course_lib import files

TEXT = "ε ≤ √2, Fréchet, 中文\n"


def test_an_error_in_the_block_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(KeyboardInterrupt), files.replace_atomically(path) as part:
        part.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert files.read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_part_that_cannot_be_deleted_does_not_hide_the_error(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(ZeroDivisionError), files.replace_atomically(tmp_path / "a"):
        raise ZeroDivisionError


def test_a_killed_writer_leaves_the_old_file_and_its_part_is_removed_later(tmp_path):
    path = tmp_path / "weights[1].json"
    files.write_json(path, 1)
    code = """
import os, signal, sys
from pathlib import Path
from course_lib import files
with files.replace_atomically(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(path)])
    assert files.read_json(path) == 1
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / f"weights[1].json.{os.getpid()}.part").write_text(
        "of a running process", encoding="utf-8"
    )
    (tmp_path / "weights[1].json.notes.part").write_text("of somebody else", encoding="utf-8")
    (tmp_path / f"weights[1].json.{'9' * 30}.part").write_text("of no process", encoding="utf-8")
    files.remove_stale_parts(path)
    assert set(os.listdir(tmp_path)) == {
        "weights[1].json",
        f"weights[1].json.{os.getpid()}.part",
        "weights[1].json.notes.part",
    }


def test_texts_are_utf8_with_unix_lines_under_an_ascii_locale(tmp_path):
    code = f"""
import locale, sys
from pathlib import Path
from course_lib import files
assert "utf" not in locale.getpreferredencoding(False).lower()
files.write_json(Path(sys.argv[1]), {TEXT!a})
assert files.read_json(Path(sys.argv[1])) == {TEXT!a}
"""
    path = tmp_path / "a.json"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code, str(path)], env=env, check=True)
    assert path.read_bytes() == (json.dumps(TEXT, ensure_ascii=False) + "\n").encode()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", '{"a": "é"}'.encode("latin-1"), b"[" * 100_000]
)
def test_damaged_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "claims.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"claims\.json: expected JSON in UTF-8"):
        files.read_json(path)


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{\r\n "a": 1\r\n}\r\n')
    assert files.read_json(path) == {"a": 1}


def increment(path: Path, times: int) -> None:
    for _ in range(times):
        with files.locked(path):
            files.write_json(path, files.read_json(path) + 1)


def test_two_processes_that_update_one_file_lose_nothing(tmp_path):
    path = tmp_path / "counter.json"
    files.write_json(path, 0)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=increment, args=(path, 30)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert files.read_json(path) == 60


def test_without_the_lock_updates_are_lost(tmp_path):
    """The test above can fail: two interleaved updates, one of which is lost."""
    path = tmp_path / "counter.json"
    files.write_json(path, 0)
    first, second = files.read_json(path), files.read_json(path)
    files.write_json(path, first + 1)
    files.write_json(path, second + 1)
    assert files.read_json(path) == 1


def test_a_lock_that_does_not_wait_is_refused_and_threads_exclude_each_other(tmp_path):
    path = tmp_path / "state"
    refused = []

    def lock():
        try:
            with files.locked(path, wait=False):
                pass
        except TimeoutError as error:
            refused.append(error)

    with files.locked(path):
        lock()
        thread = threading.Thread(target=lock)
        thread.start()
        thread.join()
    assert len(refused) == 2
    lock()
    assert len(refused) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_symlink_stays_one_and_shares_the_lock_of_its_file(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "link", tmp_path / "disk" / "file"
    link.symlink_to(Path("disk") / "file")
    (tmp_path / "disk" / f"file.{2**22 + 1}.part").write_text("half", encoding="utf-8")
    files.write_text(link, "first")  # the file that it points to need not exist
    files.write_text(link, "second")
    files.remove_stale_parts(link)
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "second"
    with files.locked(link), pytest.raises(TimeoutError), files.locked(target, wait=False):
        pass
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]
    assert sorted(os.listdir(tmp_path / "disk")) == [".file.lock", "file"]


def test_a_folder_that_cannot_be_flushed_does_not_fail_what_is_done(tmp_path, monkeypatch):
    fsync = os.fsync

    def fail_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"


def test_processes_are_running_or_not():
    sleeping = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert files.is_running(str(sleeping.pid)) and files.is_running(str(os.getpid()))
    sleeping.kill()
    while psutil.Process(sleeping.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    assert not files.is_running(str(sleeping.pid))  # a zombie: nobody has waited for it
    sleeping.wait()
    assert not files.is_running(str(2**22 + 1)) and not files.is_running("9" * 30)
    assert files.is_running("notes") and files.is_running("")


def test_a_folder_that_cannot_be_written_is_noticed_at_once(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new" / "state")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError):
        files.check_writable(tmp_path / "file" / "state")


# Checksums


@pytest.fixture
def root(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a b.mp4").write_bytes(b"film")
    (tmp_path / "é.json").write_bytes(b"{}")
    names = ["clips/a b.mp4", "é.json"]
    files.write_checksums({name: files.sha256(tmp_path / name) for name in names}, tmp_path)
    return tmp_path


def test_checksums_are_those_of_hashlib_and_of_the_usual_program(root):
    assert files.sha256(root / "é.json") == hashlib.sha256(b"{}").hexdigest()
    assert list(files.read_checksums(root)) == ["clips/a b.mp4", "é.json"]
    for name in ("clips/a b.mp4", "é.json"):
        files.verify_checksum(root / name, root)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=root, check=True)
    assert files.read_checksums(root / "clips") == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "\n",
        lambda text: "\n \n" + text + "\n\n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("  ", " *"),
        lambda text: text.replace("  ", "  ./"),
        lambda text: "".join(line[:64].upper() + line[64:] for line in text.splitlines(True)),
        lambda text: text.replace("\n", "\r\n"),
    ],
    ids=["empty line", "empty lines", "no end", "binary", "dot", "capitals", "windows"],
)
def test_lists_of_checksums_as_programs_write_them_are_read(root, change):
    expected = files.read_checksums(root)
    list_file = root / "SHA256SUMS"
    list_file.write_bytes(change(list_file.read_text(encoding="utf-8")).encode())
    assert files.read_checksums(root) == expected
    files.verify_checksum(root / "é.json", root)


@pytest.mark.parametrize(
    "content", [b"half a line", b"0" * 64, b"0" * 63 + b"  name", b"g" * 64 + b"  name", b"\xff"]
)
def test_a_damaged_list_of_checksums_is_named(root, content):
    (root / "SHA256SUMS").write_bytes(content)
    for call in (files.read_checksums, lambda root: files.verify_checksum(root / "é.json", root)):
        with pytest.raises(ValueError, match="SHA256SUMS: expected"):
            call(root)


def test_files_that_do_not_fit_the_list_are_named(root):
    path = root / "é.json"
    path.write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"é\.json: damaged .*; restore it from the repository"):
        files.verify_checksum(path, root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"é\.json: missing; restore it"):
        files.verify_checksum(path, root)
    (root / "new.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match=r"new\.json: expected a file in .*SHA256SUMS, got no"):
        files.verify_checksum(root / "new.json", root)
    (root / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS: missing"):
        files.verify_checksum(root / "new.json", root)


def test_a_file_is_read_again_only_after_a_change(root, monkeypatch):
    path = root / "é.json"
    files.verify_checksum(path, root)
    reads, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(1) or digest(*args))
    for _ in range(3):
        files.verify_checksum(path, root)
    assert reads == []
    times = path.stat()
    path.write_bytes(b"[]")  # of the same size, and with the old time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match="damaged"):
        files.verify_checksum(path, root)
    files.write_checksums({"é.json": files.sha256(path)}, root)
    files.verify_checksum(path, root)
    assert len(reads) == 1


@pytest.mark.parametrize("read", [files.read_text, files.read_json])
def test_a_file_in_another_encoding_is_named(tmp_path, read):
    (tmp_path / "card.md").write_bytes('"é"'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"card\.md: expected"):
        read(tmp_path / "card.md")
    with pytest.raises(FileNotFoundError, match="missing"):
        read(tmp_path / "missing.md")
