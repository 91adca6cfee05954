"""The file of a state: locked, on a disk that may be read-only, at any path a user may give."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_lib import files
from course_lib.training import train
from course_lib.training.state import StateError, read_state, write_state
from tests.training.resumable import OPTIONS, batch, loss, net, run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")


def start(path, **changes):
    return train(net(), batch, loss, state_path=path, **{**OPTIONS, **changes})


# One run at a time


def test_a_second_process_is_refused_until_the_first_one_is_killed(tmp_path):
    path = tmp_path / "state"
    run(path, 2)
    code = """
import sys, time
from pathlib import Path
from course_lib import files
with files.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(StateError, match=r"state: .*state is in use by another run; stop that"):
            start(path)
        first.kill()
    assert next(start(path)).step == 2


def test_in_one_process_too(tmp_path):
    steps = start(tmp_path / "state")
    next(steps)
    with pytest.raises(StateError, match="in use by another run"):
        start(tmp_path / "state")
    start(tmp_path / "another").close()
    steps.close()
    assert next(start(tmp_path / "state")).step == 1


def refuse_the_settings(path):
    run(path, 2)
    start(path, seed=4)


def miss_tensorboard(path):
    start(path, log_dir=path.parent / "a file")


def lose_the_run(path):
    steps = start(path)
    del steps


def break_the_loss(path):
    list(train(net(), batch, lambda *_: loss(*_) * math.nan, state_path=path, **OPTIONS))


ENDS = [refuse_the_settings, miss_tensorboard, lose_the_run, break_the_loss]


@pytest.mark.parametrize("end", ENDS)
def test_however_a_run_ends_the_lock_is_open_again(tmp_path, end):
    (tmp_path / "a file").write_text("", encoding="utf-8")
    try:
        end(tmp_path / "state")
    except Exception as error:  # kept, and with it all that its frames refer to
        kept = error
    else:
        kept = None
    with files.locked(tmp_path / "state", wait=False):
        assert (kept is None) == (end is lose_the_run)


def test_an_older_state_never_replaces_a_newer_one(tmp_path):
    """On a file system without locks, the slower of two runs has to notice."""
    path = tmp_path / "state"
    run(path, 9)
    newer = path.read_bytes()
    path.unlink()
    steps = start(path)
    [next(steps) for _ in range(3)]
    path.write_bytes(newer)
    with pytest.raises(StateError, match="which is at step 9; step 3 of this one is not saved"):
        steps.close()
    assert path.read_bytes() == newer


def test_a_later_state_and_a_state_after_a_deleted_one_are_written(tmp_path):
    path = tmp_path / "state"
    run(path, 2)
    earlier = path.read_bytes()
    steps = start(path)
    [next(steps) for _ in range(3)]
    path.write_bytes(earlier)  # somebody restored a copy
    steps.close()
    assert read_state(path)[1]["step"] == 4
    steps = start(path)
    [next(steps) for _ in range(3)]
    path.unlink()
    steps.close()
    assert read_state(path)[1]["step"] == 6


# Paths


def test_a_str_is_a_path(tmp_path):
    [*_, last] = start(str(tmp_path / "state"), num_steps=4)
    assert last.step == read_state(tmp_path / "state")[1]["step"] == 4


def test_a_folder_is_refused(tmp_path):
    for path in (tmp_path, str(tmp_path)):
        with pytest.raises(StateError, match=f"state: {tmp_path} is not a file"):
            start(path)
    with pytest.raises(StateError, match="is not a file"):
        read_state(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_symlink_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "state", tmp_path / "disk" / "real"
    link.symlink_to(target)
    for step in (3, 6):
        run(link, step)
        assert link.is_symlink() and read_state(target)[1]["step"] == step
    with files.locked(target, wait=False):  # one lock for both names
        with pytest.raises(StateError, match="in use"):
            start(link)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "state"]


def test_what_a_killed_writer_left_is_removed_for_any_name(tmp_path):
    path = tmp_path / "x[1].safetensors"
    part = tmp_path / f"x[1].safetensors.{2**22 + 1}.part"
    part.write_bytes(b"half")
    run(path, 2)
    assert not part.exists() and read_state(path)[1]["step"] == 2


# Disks


def fail_with(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code), "another name")

    return fail


@pytest.mark.parametrize("function", ["mkdir", "touch", "unlink"])
def test_a_read_only_disk_is_noticed_at_the_start(tmp_path, monkeypatch, function):
    path = tmp_path / "folder" / "state"
    with monkeypatch.context() as patched:
        patched.setattr(Path, function, fail_with(errno.EROFS))
        with pytest.raises(
            OSError, match="Read-only file system: cannot write the state"
        ) as caught:
            start(path)
    assert caught.value.errno == errno.EROFS and caught.value.filename == str(path)
    assert run(path, 2)[1].step == 2


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that is read-only")
def test_a_really_read_only_folder_too():
    with pytest.raises(OSError, match="cannot write the state: '/proc/state'"):
        start("/proc/state")


def test_a_folder_that_is_a_file_is_refused_by_the_states_name(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="cannot write the state: .*file/state'"):
        start(tmp_path / "file" / "state")


def test_a_disk_that_becomes_read_only_keeps_the_old_state_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "state"
    run(path, 2)
    monkeypatch.setattr(os, "replace", fail_with(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", fail_with(errno.EROFS))
    message = "Read-only file system: .*; the old file is unchanged: '.*state'"
    with pytest.raises(OSError, match=message) as caught:
        write_state(path, {}, {})
    assert caught.value.filename == str(path)
    assert read_state(path)[1]["step"] == 2


@pytest.mark.parametrize("content", [math.nan, object(), {1, 2}])
def test_what_json_cannot_hold_is_refused_before_the_training(tmp_path, content):
    with pytest.raises(ValueError, match="run_fingerprint: expected what JSON can hold, got"):
        start(tmp_path / "state", run_fingerprint={"data": content})
    assert run(tmp_path / "state", 2, run_fingerprint={"data": (1, 2)})[1].step == 2
    assert run(tmp_path / "state", 3, run_fingerprint={"data": [1, 2]})[1].step == 3
