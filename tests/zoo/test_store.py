"""Storing is one step: whatever fails or is killed, the old checkpoint or the new one is there."""

import errno
import io
import json
import multiprocessing
import os
import time

import pytest

from course_lib import files, zoo
from course_lib.zoo import journal

FIRST, SECOND = "the first", "the second"
CALLS = [
    *[(os, name) for name in ("mkdir", "rename", "replace", "open", "fsync", "unlink", "rmdir")],
    *[(os, "scandir"), (os, "listdir"), (io, "open")],
]


def store(root, content, name="model"):
    """A checkpoint of two files, both of which change."""

    def save(folder):
        (folder / "unet").mkdir()
        for file in (folder / "config.json", folder / "unet" / "weights.safetensors"):
            file.write_text(json.dumps(content), encoding="utf-8")

    return zoo.store(name, save, {"evaluation": {"content": content}}, content, root)


def stored(root, name="model"):
    """What is stored, with every file verified and belonging to the same checkpoint."""
    zoo.verify(name, root)
    folder = zoo.path(name, root)
    contents = {
        json.loads(file.read_text(encoding="utf-8"))
        for file in folder.rglob("*.[js]*")
        if file.name != zoo.EVALUATION_FILE
    }
    contents |= {zoo.card(name, root).evaluation["content"], zoo.card(name, root).text}
    (content,) = contents
    return content


def assert_tidy(root, names):
    """No file but those of the checkpoints."""
    folders = {name.split("/")[0] for name in names}
    lists = {zoo.CHECKSUMS_FILE} if names else set()
    assert {path.name for path in root.iterdir()} == folders | lists


class Disk:
    """Counts the calls that touch the disk, and fails at one of them, or from one on."""

    def __init__(self, monkeypatch, failing, forever=False):
        self.count, self.failing, self.forever = 0, failing, forever
        for module, name in CALLS:
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, function):
        def wrapped(*args, **kwargs):
            if "/.pytest" in str(args[:1]) or not isinstance(args[0], int | str | os.PathLike):
                return function(*args, **kwargs)
            self.count += 1
            if self.count == self.failing or (self.forever and self.count > self.failing):
                raise OSError(errno.EIO, f"call {self.failing}: {function.__name__}")
            return function(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize(("name", "has_old"), [("model", True), ("group/model", False)])
@pytest.mark.parametrize("forever", [False, True], ids=["one error", "errors until the end"])
def test_an_error_at_any_call_leaves_the_old_one_or_the_new_one(
    tmp_path, monkeypatch, name, forever, has_old
):
    """Errors until the end are as a kill: nothing can be tidied up until the next call."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow
    seen = set()
    for failing in range(1, 1000):
        root = tmp_path / str(failing)
        store(root, FIRST, "other")
        if has_old:
            store(root, FIRST, name)
        error = None
        with monkeypatch.context() as patched:
            disk = Disk(patched, failing, forever)
            try:
                store(root, SECOND, name)
            except OSError as raised:
                error = raised
        names = zoo.names(root)
        if error is None or name in names:
            content = stored(root, name)
            assert content == (SECOND if error is None else FIRST) or forever, failing
            seen.add(content)
        else:
            assert not has_old
        assert stored(root, "other") == FIRST
        if not forever and error is not None:
            assert_tidy(root, names)
        if forever:  # the next one tidies up
            store(root, SECOND, name)
            assert stored(root, name) == SECOND
            assert_tidy(root, ["other", name])
        if disk.count < failing:
            break
    assert failing > 30
    assert SECOND in seen and (FIRST in seen or not has_old)


# Several processes


def store_often(root, name, times):
    for number in range(times):
        store(root, f"{name} {number}", name)
        store(root, f"of {name} {number}", "same")


def test_processes_that_store_at_once_lose_nothing_even_if_one_is_killed(tmp_path):
    store(tmp_path, "start", "same")
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    if os.name != "nt":  # processes of their own, but torch is imported once
        context.set_forkserver_preload(["course_lib.zoo"])
    times = {"a": 20, "b": 20, "killed": 10**6}
    workers = [
        context.Process(target=store_often, args=(tmp_path, *item)) for item in times.items()
    ]
    for worker in workers:
        worker.start()
    read = set()
    while any(worker.is_alive() for worker in workers[:2]):
        zoo.verify("same", tmp_path)
        read.add(zoo.card("same", tmp_path).text)
        if len(read) > 20:
            workers[2].kill()
        time.sleep(0.01)
    workers[2].kill()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert len(read) > 2
    for name in times:
        number = stored(tmp_path, name).removeprefix(f"{name} ")
        assert number == "19" if times[name] == 20 else number.isdecimal()
    store(tmp_path, SECOND, "same")  # removes what the killed one left
    assert_tidy(tmp_path, [*times, "same"])


def test_a_load_waits_for_a_store_between_two_renamings(tmp_path, monkeypatch):
    """The reader finds nothing, waits for the lock, and reads again."""
    store(tmp_path, FIRST)
    (tmp_path / "model").rename(tmp_path / "gone")

    def put_back(root):
        (tmp_path / "gone").rename(tmp_path / "model")

    monkeypatch.setattr(journal, "recover", put_back)
    assert stored(tmp_path) == FIRST


def test_a_load_that_a_store_overtook_is_repeated(tmp_path):
    """Half of the old checkpoint and half of the new one is never returned."""
    store(tmp_path, FIRST)
    contents = iter([SECOND, "the third"])

    def read():
        half = (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
        for content in contents:
            store(tmp_path, content)
            break
        return half, (tmp_path / "model" / "unet" / "weights.safetensors").read_text(
            encoding="utf-8"
        )

    assert journal.read_consistently(read, tmp_path) == (json.dumps("the third"),) * 2


def test_a_read_only_folder_is_loaded(tmp_path, monkeypatch):
    store(tmp_path, FIRST)

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "FileLock", fail)
    for module, name in CALLS[:6]:
        monkeypatch.setattr(module, name, fail)
    assert stored(tmp_path) == FIRST
    with pytest.raises(OSError, match="Read-only"):
        store(tmp_path, SECOND)


# Names and foreign journals


@pytest.mark.parametrize(
    "name",
    ["", "/", "/abs", "a/", "a//b", ".", "..", "../a", "a/../b", ".hidden", "a.", "a ", " a", "a:b",
     "a\\b", "a*", 'a"', "a\nb", "SHA256SUMS", "SHA256SUMS/a"],
)  # fmt: skip
def test_a_name_that_is_no_folder_everywhere_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name: expected folder names, got"):
        store(tmp_path / "root", FIRST, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["group", "group/model/unet", "Group/model", "GROUP/Model/x"])
def test_a_folder_in_or_around_another_checkpoint_is_refused(tmp_path, name):
    store(tmp_path, FIRST, "group/model")
    with pytest.raises(ValueError, match="name: expected a folder apart from that of group/model"):
        store(tmp_path, SECOND, name)
    assert stored(tmp_path, "group/model") == FIRST


JOURNAL = {"name": "model", "stage": ".store.1.abc.part", "copies": [], "sha256": {}}


@pytest.mark.parametrize(
    "change",
    [{"name": "../outside"}, {"name": ".."}, {"name": "."}, {"name": 3}, {"stage": "model"},
     {"stage": "../outside"}, {"stage": ".."}, {"copies": ["../outside/file"]}, {"copies": 3},
     {"name": "link/file"}],
)  # fmt: skip
def test_a_foreign_journal_moves_and_deletes_nothing(tmp_path, change):
    root, outside = tmp_path / "root", tmp_path / "outside"
    store(root, FIRST)
    outside.mkdir()
    (outside / "file").write_text("precious", encoding="utf-8")
    if change == {"name": "link/file"}:
        if os.name == "nt":
            pytest.skip("links need rights there")
        (root / "link").symlink_to(outside)
    files.write_json(root / ".store.json", JOURNAL | change)
    with pytest.raises(ValueError, match=r"\.store\.json: expected a journal of zoo\.store"):
        zoo.verify("model", root)
    assert (outside / "file").read_text(encoding="utf-8") == "precious"
    assert (root / "model" / "config.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}"])
def test_a_damaged_journal_is_named(tmp_path, content):
    store(tmp_path, FIRST)
    (tmp_path / ".store.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"\.store\.json: expected"):
        zoo.verify("model", tmp_path)


def test_a_stage_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(tmp_path):
    own = tmp_path / f".store.{os.getpid()}.abc.part"
    for stage in (own, tmp_path / f".store.{2**22 + 1}.a.part", tmp_path / ".store.1.a.part"):
        (stage / "new").mkdir(parents=True)
    for name in (".store.json", "SHA256SUMS"):
        (tmp_path / f"{name}.{2**22 + 1}.part").write_text("half", encoding="utf-8")
    store(tmp_path, FIRST)
    assert_tidy(tmp_path, ["model", ".store.1.a.part"])
