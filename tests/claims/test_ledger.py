"""The ledger against textbook statistics, its memory and order, every experiment in miniature, and data/claims.json."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from course_lib.claims import (
    CLAIMS,
    Claim,
    __main__,
    convolution,
    diffusion,
    inflation,
    judge,
    latents,
    load_ledger,
    mean_interval,
    metrics,
    motion_words,
    run_claim,
    save_ledger,
    vdm,
)
from course_lib.claims.ledger import VERDICTS
from course_lib.runtime import data_dir

REPRODUCED, NOT, OPPOSITE = VERDICTS


# Statistics


def test_mean_interval_of_a_textbook_table():
    """Three values 1, 2, 3: s = 1, and t(0.975, 2 degrees of freedom) is 4.303 in every table."""
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert mean - low == pytest.approx(high - mean)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.sampled_from([0.5, 0.9, 0.95]))
def test_mean_interval_is_scipys(values, level):
    mean, low, high = mean_interval(values, level)
    if np.ptp(values) < 1e-6:  # no spread: scipy has no interval to give
        assert low == pytest.approx(mean) == high
        return
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="values: an interval needs at least two, got 1"):
        mean_interval([0.5])


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([0.9, 0.8, 0.85], [0.5, 0.4, 0.46], REPRODUCED),
        ([0.5, 0.4, 0.46], [0.9, 0.8, 0.85], OPPOSITE),
        ([0.9, 0.3, 0.6], [0.5, 0.4, 0.6], NOT),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], NOT),
        (
            [0.91, 0.51, 0.11],
            [0.9, 0.5, 0.1],
            REPRODUCED,
        ),  # paired: the seeds differ, the arms do so evenly
    ],
)
def test_verdicts(better, worse, verdict):
    effect, (low, high), found = judge(better, worse)
    assert found == verdict
    assert effect == pytest.approx(np.mean(better) - np.mean(worse))
    assert low <= effect <= high


@pytest.mark.parametrize(
    ("better", "worse"), [([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])]
)
def test_a_verdict_needs_three_pairs(better, worse):
    with pytest.raises(
        ValueError, match=f"same three or more seeds in both arms, got {len(better)}, {len(worse)}"
    ):
        judge(better, worse)


# Running


def fake(run, **changes):
    """A claim whose runs cost nothing."""
    words = {
        "id": "fake",
        "lesson": "01",
        "source": "this course",
        "statement": "Up is more.",
        "setting": "none",
    }
    return Claim(
        **words, arms=("down", "up"), run=run, metric="height", better="up", worse="down", **changes
    )


def heights(arm, seed, scale):
    return {
        "height": scale * (seed + (10 if arm == "up" else 1) + seed**2 * (arm == "up") / 100),
        "seed": float(seed),
    }


def test_run_claim_records_every_run_and_judges_the_pairs():
    calls = []
    record = run_claim(fake(lambda *a: calls.append(a) or heights(*a)), seeds=(3, 5, 4))
    # A seed is complete before the next begins
    assert calls == [(arm, seed, 1.0) for seed in (3, 5, 4) for arm in ("down", "up")]
    assert record.seeds == [3, 5, 4]
    assert list(record.runs) == ["down", "up"]
    assert record.values("down") == [4, 6, 5]
    assert record.values("up", "seed") == [3, 5, 4]
    assert (record.effect, record.interval, record.verdict) == judge(
        record.values("up"), record.values("down")
    )
    assert record.verdict == REPRODUCED
    assert set(record.versions) == {"torch", "torchvision", "diffusers", "python"}
    assert record.minutes > 0
    assert "CPU core" in record.machine


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    calls = []

    def failing(arm, seed, scale):
        calls.append((arm, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return heights(arm, seed, scale)

    with pytest.raises(KeyboardInterrupt):
        run_claim(fake(failing), keep=tmp_path)
    record = run_claim(fake(failing), keep=tmp_path)
    assert calls == [
        ("down", 0),
        ("up", 0),
        ("down", 1),
        ("up", 1),
        ("up", 1),
        ("down", 2),
        ("up", 2),
    ]
    assert record.values("up") == run_claim(fake(heights)).values("up")


def test_runs_of_another_scale_are_not_taken_over(tmp_path):
    run_claim(fake(heights), keep=tmp_path)
    assert run_claim(fake(heights), scale=0.5, keep=tmp_path).values("down") == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0, 0), (1, 2, 1)])
def test_too_few_or_equal_seeds_are_refused_before_anything_runs(seeds):
    calls = []
    with pytest.raises(ValueError, match="three or more different ones"):
        run_claim(fake(lambda *a: calls.append(a) or heights(*a)), seeds=seeds)
    assert calls == []


def test_a_verdict_on_nan_is_refused():
    with pytest.raises(ValueError, match="a verdict needs finite numbers"):
        judge([math.nan] * 3, [0.0] * 3)


def test_lower_can_be_better():
    record = run_claim(fake(lambda *a: {"height": -heights(*a)["height"]}, lower_is_better=True))
    assert record.verdict == REPRODUCED and record.effect > 0 and record.lower_is_better


def test_save_and_load_round_trip(tmp_path):
    record = run_claim(fake(heights))
    first = dataclasses.replace(record, id="a", lesson="02")
    path = tmp_path / "claims.json"
    save_ledger({"a": first, "fake": record}, path)
    found = load_ledger(path)
    assert list(found) == ["fake", "a"], "sorted by lesson, then id"
    assert found["fake"].effect == pytest.approx(record.effect, rel=1e-4)
    assert found["fake"].values("up") == pytest.approx(record.values("up"), rel=1e-4)
    text = path.read_text()
    save_ledger(found, path)
    assert path.read_text() == text
    assert load_ledger(path) == found


def test_the_command_adds_to_the_ledger(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    for id in ("one", "two"):
        monkeypatch.setitem(__main__.CLAIMS, id, dataclasses.replace(fake(heights), id=id))
        __main__.main([id, "--seeds", "1", "2", "3", "4"])
    assert list(load_ledger()) == ["one", "two"]
    assert load_ledger()["two"].seeds == [1, 2, 3, 4]
    monkeypatch.setitem(
        __main__.CLAIMS, "two", dataclasses.replace(fake(heights), id="two", seeds=(1, 3, 4))
    )
    __main__.main(["two"])
    assert load_ledger()["two"].seeds == [1, 3, 4]  # its own, unless told otherwise
    assert "two: reproduced (effect +9.075, 95 %" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["three"])
    assert "unknown claims ['three']" in capsys.readouterr().err


def test_what_another_process_found_meanwhile_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    other = run_claim(fake(heights), seeds=(1, 2, 3))

    def slow(*arguments):
        save_ledger({"other": dataclasses.replace(other, id="other")})
        return heights(*arguments)

    monkeypatch.setitem(__main__.CLAIMS, "one", dataclasses.replace(fake(slow), id="one"))
    __main__.main(["one", "--seeds", "1", "2", "3"])
    assert set(load_ledger()) == {"one", "other"}


# The claims of the course


@pytest.mark.parametrize("id", CLAIMS)
def test_a_claim_is_well_formed(id):
    claim = CLAIMS[id]
    assert claim.id == id
    assert {claim.better, claim.worse} <= set(claim.arms)
    assert claim.better != claim.worse
    assert len(set(claim.arms)) == len(claim.arms)
    assert len(claim.lesson) == 2 and claim.lesson.isdigit()
    assert claim.statement.endswith(".")
    assert claim.source and claim.setting


def test_ids_are_unique():
    rooms = (convolution, diffusion, inflation, latents, metrics, motion_words, vdm)
    assert len(CLAIMS) == sum(len(room.CLAIMS) for room in rooms)


@pytest.mark.parametrize("id", CLAIMS)
def test_every_arm_runs_and_gives_its_numbers(id, tiny):
    claim = CLAIMS[id]
    results = [claim.run(arm, 0, 0.01) for arm in claim.arms]
    for numbers in results:
        assert numbers.keys() == results[0].keys()
        assert math.isfinite(numbers[claim.metric])
        assert all(isinstance(value, float) for value in numbers.values())


# What the course ships


def test_the_shipped_ledger_holds_every_claim_and_no_other():
    assert (data_dir() / "claims.json").exists(), "run `make claims`"
    assert set(load_ledger()) == set(CLAIMS)


@pytest.mark.parametrize("id", CLAIMS)
def test_the_shipped_ledger_follows_from_its_runs(id):
    record, claim = load_ledger()[id], CLAIMS[id]
    for name in (
        "lesson",
        "source",
        "statement",
        "setting",
        "metric",
        "better",
        "worse",
        "lower_is_better",
    ):
        assert getattr(record, name) == getattr(claim, name), f"{name} changed: run `make claims`"
    assert set(record.runs) == set(claim.arms)
    assert record.seeds == list(claim.seeds) and len(set(record.seeds)) == len(record.seeds) >= 3
    assert all(len(runs) == len(record.seeds) for runs in record.runs.values())
    sign = -1 if record.lower_is_better else 1
    values = [
        [sign * value for value in record.values(arm)] for arm in (record.better, record.worse)
    ]
    effect, interval, verdict = judge(*values)
    assert record.verdict == verdict
    rounding = 1e-4 * max(
        1, *(abs(value) for arm in values for value in arm)
    )  # the file keeps five digits of a run
    assert (record.effect, *record.interval) == pytest.approx(
        (effect, *interval), rel=1e-3, abs=rounding
    )
    assert record.minutes > 0 and record.machine and record.versions["torch"]


def test_the_shipped_ledger_is_written_as_the_code_would(tmp_path):
    save_ledger(load_ledger(), tmp_path / "claims.json")
    assert json.loads((tmp_path / "claims.json").read_text()) == json.loads(
        (data_dir() / "claims.json").read_text()
    )
