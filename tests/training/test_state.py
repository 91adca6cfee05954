"""The file that holds a training run: read as it was written, refused if damaged, never lost."""

import errno
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from course_lib import files
from course_lib.training.state import StateError, read_state, write_state

SMALL = {
    "model.a": torch.tensor([1.0, -2.0]),
    "history": torch.zeros(1, 4, dtype=torch.float64),
    "n": torch.tensor(3),
}
METADATA = {"step": 7, "settings": {"lr": 0.1}}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "state"
    write_state(path, SMALL, METADATA)
    return path, path.read_bytes()


def test_what_is_written_is_read(small):
    path, _ = small
    tensors, metadata = read_state(path)
    assert same(tensors, SMALL) and metadata == METADATA
    assert {tensor.dtype for tensor in tensors.values()} == {
        torch.float32,
        torch.float64,
        torch.int64,
    }


@given(st.data())
def test_one_flipped_bit_anywhere_is_detected(small, data):
    path, content = small
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=25, max_size=25)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(flipped)
        with pytest.raises(StateError, match="is damaged|is not a training state"):
            read_state(path)
    path.write_bytes(content)


def test_tied_and_strided_tensors_are_kept(tmp_path):
    square = torch.randn(3, 3)
    tensors = {"one": square, "two": square, "turned": square.T, "part": square[:, 1]}
    write_state(tmp_path / "state", tensors, {})
    assert same(read_state(tmp_path / "state")[0], tensors)


def test_a_truncated_file_is_refused(small):
    path, content = small
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(
            StateError,
            match="is damaged .*; delete it to restart, or restore a copy of it",
        ):
            read_state(path)
    path.write_bytes(content)


def test_other_safetensors_files_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "state")
    with pytest.raises(StateError, match="is not a training state of this version"):
        read_state(tmp_path / "state")


def test_a_full_disk_says_so_and_loses_nothing(tmp_path, monkeypatch):
    write_state(tmp_path / "state", SMALL, METADATA)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = (
        r"No space left .*: 0\.0 MB needed, [\d,.]+ MB free; the old file is unchanged: '.*state'"
    )
    with pytest.raises(OSError, match=message) as caught:
        write_state(tmp_path / "state", SMALL, {"step": 8})
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert read_state(tmp_path / "state")[1] == METADATA


@pytest.mark.skipif(os.name == "nt", reason="no limit on file sizes")
def test_a_limit_on_file_sizes_does_the_same(tmp_path):
    resource = pytest.importorskip("resource")
    write_state(tmp_path / "state", SMALL, METADATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large: 0.4 MB needed"):
            write_state(tmp_path / "state", {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert read_state(tmp_path / "state")[1] == METADATA


def test_an_interrupt_while_writing_leaves_the_old_state(tmp_path, monkeypatch):
    write_state(tmp_path / "state", SMALL, METADATA)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_state(tmp_path / "state", SMALL, {"step": 8})
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    assert read_state(tmp_path / "state")[1] == METADATA


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_left_alone(tmp_path):
    dead, alive = tmp_path / f"state.{2**22 + 1}.part", tmp_path / f"state.{os.getpid()}.part"
    other = tmp_path / f"elsewhere.{2**22 + 1}.part"
    for file in (dead, alive, other):
        file.write_bytes(b"half a state")
    files.remove_stale_parts(tmp_path / "state")
    assert not dead.exists() and alive.exists() and other.exists()
