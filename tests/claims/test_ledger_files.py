"""The ledger on disk: kills, two processes, encodings, damage; and wrong command lines."""

import dataclasses
import json
import math
import multiprocessing
import os
import re

import pytest

from course_lib.claims import __main__, add_record, load_ledger, run_claim, save_ledger
from tests.claims.fake import fake, heights


@pytest.mark.parametrize("content", [b"", b'{"minutes": 1, "hei', b"{}", b"3", b"\xff\xfe"])
def test_a_run_file_that_a_kill_has_cut_is_run_again(tmp_path, content):
    calls = []
    claim = fake(lambda *a: calls.append(a) or heights(*a))
    record = run_claim(claim, cache_dir=tmp_path)
    file = tmp_path / "fake--up--1--1.json"
    whole = json.loads(file.read_bytes())
    file.write_bytes(content)
    again = run_claim(claim, cache_dir=tmp_path)
    assert len(calls) == 7 and again.values("up") == record.values("up")
    assert json.loads(file.read_bytes()).keys() == whole.keys()
    assert not list(tmp_path.glob("*.part"))


def add_records(first, path, record):
    for number in range(first, 20, 2):
        add_record(dataclasses.replace(record, id=f"é{number:02}"), path)


def test_two_processes_lose_none_of_each_others_records(tmp_path):
    path, record = tmp_path / "claims.json", run_claim(fake(heights))
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    writers = [context.Process(target=add_records, args=(first, path, record)) for first in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert list(load_ledger(path)) == [f"é{number:02}" for number in range(20)]


def test_a_failed_write_leaves_the_old_ledger(tmp_path, monkeypatch):
    path, record = tmp_path / "claims.json", run_claim(fake(heights))
    add_record(record, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        add_record(dataclasses.replace(record, id="more"), path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.part"))


def test_the_ledger_is_utf_8_in_every_locale(tmp_path, monkeypatch):
    path = tmp_path / "claims.json"
    # What pathlib asks when no encoding is given
    monkeypatch.setattr("io.text_encoding", lambda encoding, *_: encoding or "ascii")
    save_ledger({"fake": run_claim(fake(heights, statement="√ε of Bińkowski."))}, path)
    assert "√ε of Bińkowski." in path.read_bytes().decode("utf-8")
    assert load_ledger(path)["fake"].statement == "√ε of Bińkowski."


@pytest.mark.parametrize(
    "content", [b"[", b"{}x", b"\xff", b"3", b"[{}]", b'[{"id": "a"}]', b"[1]"]
)
def test_a_damaged_ledger_is_named(tmp_path, content):
    path = tmp_path / "claims.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: expected"):
        load_ledger(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "seeds: expected at least 3, all different; got [1]"),
        (["--seeds", "1", "2", "1"], "seeds: expected at least 3, all different; got [1, 2, 1]"),
        (["--seeds", "1", "2", "-3"], "seeds: expected an integer of at least 0, got -3"),
        (["--seeds", "1", "2", "x"], "invalid int value: 'x'"),
        (["three"], "expected some of"),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        __main__.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value"), [("COURSE_PROFILE", "fast"), ("COURSE_DEVICE", "abacus")]
)
def test_a_wrong_environment_is_one_line(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        __main__.main([])
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert name in message and value in message


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_leaves_nothing_to_run_is_refused(scale):
    with pytest.raises(ValueError, match="scale: expected a finite number above 0"):
        run_claim(fake(heights), scale=scale)
