"""The ledger: verdicts, resuming, order, every experiment in miniature, and data/claims.json."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from course_lib.claims import (
    CLAIMS,
    __main__,
    convolution,
    diffusion,
    inflation,
    latents,
    load_ledger,
    metrics,
    motion_words,
    paired_verdict,
    run_claim,
    save_ledger,
    vdm,
)
from course_lib.claims.ledger import NOT_REPRODUCED, OPPOSITE, REPRODUCED
from course_lib.runtime import data_dir
from tests.claims.fake import fake, heights

# Statistics


def test_the_interval_of_a_textbook_table():
    """Differences 1, 2, 3: s = 1, and t(0.975, 2 degrees of freedom) is 4.303 in every table."""
    effect, (low, high), _ = paired_verdict([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert effect == 2
    assert high - effect == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert effect - low == pytest.approx(high - effect)


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=3, max_size=9))
def test_the_interval_is_that_of_a_paired_t_test(pairs):
    better, worse = zip(*pairs, strict=True)
    effect, (low, high), verdict = paired_verdict(better, worse)
    if np.ptp(np.subtract(better, worse)) < 1e-6:  # no spread: scipy has no interval to give
        assert low == pytest.approx(effect) == high
        return
    test = stats.ttest_rel(better, worse)
    expected = test.confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    if abs(test.pvalue - 0.05) > 1e-6:
        assert (verdict == NOT_REPRODUCED) == (test.pvalue > 0.05)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([0.9, 0.8, 0.85], [0.5, 0.4, 0.46], REPRODUCED),
        ([0.5, 0.4, 0.46], [0.9, 0.8, 0.85], OPPOSITE),
        ([0.9, 0.3, 0.6], [0.5, 0.4, 0.6], NOT_REPRODUCED),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], NOT_REPRODUCED),
        # Paired: seeds differ much, the difference of the arms does not
        ([0.91, 0.51, 0.11], [0.9, 0.5, 0.1], REPRODUCED),
    ],
)
def test_verdicts(better, worse, verdict):
    effect, (low, high), result = paired_verdict(better, worse)
    assert result == verdict
    assert effect == pytest.approx(np.mean(better) - np.mean(worse))
    assert low <= effect <= high


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=5, max_size=9),
    st.sampled_from([(0, 0.95), (1, 0.975), (2, 0.975)]),
)
def test_with_added_seeds_the_interval_is_at_the_stricter_level(pairs, rule):
    added_seeds, level = rule
    better, worse = zip(*pairs, strict=True)
    differences = np.subtract(better, worse)
    effect, (low, high), verdict = paired_verdict(better, worse, added_seeds)
    t = stats.t.ppf(1 - (1 - level) / 2, len(pairs) - 1)
    half = t * differences.std(ddof=1) / math.sqrt(len(pairs))
    assert (low, high) == pytest.approx((effect - half, effect + half), abs=1e-9)
    assert verdict == (REPRODUCED if low > 0 else OPPOSITE if high < 0 else NOT_REPRODUCED)


def test_an_added_seed_can_undo_a_verdict():
    """Five differences whose 95 % interval is above zero and whose 97.5 % interval is not."""
    better, worse = [1.0, 2.0, 3.0, 0.5, 1.0], [0.0] * 5
    assert paired_verdict(better, worse)[2] == REPRODUCED
    assert paired_verdict(better, worse, added_seeds=2)[2] == NOT_REPRODUCED
    with pytest.raises(ValueError, match="added_seeds"):
        paired_verdict(better, worse, added_seeds=-1)


@pytest.mark.parametrize(
    ("better", "worse"), [([1.0, 2.0], [0.0, 1.0]), ([1.0, 2.0, 3.0], [1.0, 2.0])]
)
def test_a_verdict_needs_three_pairs(better, worse):
    message = f"expected the same number of seeds, at least 3; got {len(better)} and {len(worse)}"
    with pytest.raises(ValueError, match=message):
        paired_verdict(better, worse)


# Running


def test_run_claim_records_every_run_and_compares_the_pairs():
    calls = []
    record = run_claim(fake(lambda *args: calls.append(args) or heights(*args)), seeds=(3, 5, 4))
    # All arms of a seed run before the next seed
    ids = [(arm.id, seed, scale) for arm, seed, scale in calls]
    assert ids == [(arm, seed, 1.0) for seed in (3, 5, 4) for arm in ("down", "up")]
    assert record.seeds == [3, 5, 4]
    assert list(record.runs) == list(record.arm_labels) == ["down", "up"]
    assert record.values("down") == [4, 6, 5]
    assert record.values("up", "seed") == [3, 5, 4]
    verdict = paired_verdict(record.values("up"), record.values("down"))
    assert (record.effect, record.interval, record.verdict) == verdict
    assert record.verdict == REPRODUCED
    assert set(record.versions) == {"torch", "torchvision", "diffusers", "python"}
    assert record.minutes > 0
    assert "CPU core" in record.machine


def test_a_summary_names_both_arms_with_their_means_the_better_first():
    summary = run_claim(fake(heights)).summary()
    assert summary.startswith("reproduced; height in m: upwards 11 vs downwards 2; effect +9.017, ")
    assert summary.endswith("3 seeds")


def test_seeds_added_after_a_look_are_recorded():
    claim = fake(heights, seeds=(0, 1, 2, 3, 4), added_seeds=2)
    record = run_claim(claim)
    assert record.added_seeds == 2 and record.level == 0.975
    assert record.verdict_text() == "reproduced (2 seeds added)"
    assert record.interval_name() == "97.5 % interval"
    verdict = paired_verdict(record.values("up"), record.values("down"), added_seeds=2)
    assert (record.effect, record.interval, record.verdict) == verdict
    assert run_claim(claim).summary().endswith("5 seeds (2 added after a look)")
    record = run_claim(claim, seeds=(7, 8, 9))  # chosen before the run
    assert record.added_seeds == 0 and record.verdict_text() == "reproduced"
    assert record.interval_name() == "95 % interval"


def test_an_interrupted_run_is_resumed_where_it_stopped(tmp_path):
    calls = []

    def failing(arm, seed, scale):
        calls.append((arm.id, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return heights(arm, seed, scale)

    with pytest.raises(KeyboardInterrupt):
        run_claim(fake(failing), cache_dir=tmp_path)
    record = run_claim(fake(failing), cache_dir=tmp_path)
    complete = [(arm, seed) for seed in (0, 1, 2) for arm in ("down", "up")]
    assert calls == complete[:4] + complete[3:]
    assert record.values("up") == run_claim(fake(heights)).values("up")


def test_runs_of_another_scale_are_not_reused(tmp_path):
    run_claim(fake(heights), cache_dir=tmp_path)
    assert run_claim(fake(heights), scale=0.5, cache_dir=tmp_path).values("down") == [0.5, 1.0, 1.5]


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0, 0), (1, 2, 1)])
def test_too_few_or_equal_seeds_are_refused_before_anything_runs(seeds):
    calls = []
    with pytest.raises(ValueError, match="seeds: expected at least 3, all different"):
        run_claim(fake(lambda *a: calls.append(a) or heights(*a)), seeds=seeds)
    assert calls == []


def test_a_verdict_on_nan_is_refused():
    with pytest.raises(ValueError, match="expected finite numbers"):
        paired_verdict([math.nan] * 3, [0.0] * 3)


def test_lower_can_be_better():
    record = run_claim(fake(lambda *a: {"height": -heights(*a)["height"]}, lower_is_better=True))
    assert record.verdict == REPRODUCED and record.effect > 0 and record.lower_is_better


def test_save_and_load_round_trip(tmp_path):
    record = run_claim(fake(heights))
    first = dataclasses.replace(record, id="a", lesson="02")
    path = tmp_path / "claims.json"
    save_ledger({"a": first, "fake": record}, path)
    ledger = load_ledger(path)
    assert list(ledger) == ["fake", "a"], "sorted by lesson, then id"
    assert ledger["fake"].effect == pytest.approx(record.effect, rel=1e-4)
    assert ledger["fake"].values("up") == pytest.approx(record.values("up"), rel=1e-4)
    text = path.read_text(encoding="utf-8")
    save_ledger(ledger, path)
    assert path.read_text(encoding="utf-8") == text
    assert load_ledger(path) == ledger


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
    assert load_ledger()["two"].seeds == [1, 3, 4]  # the claim's own by default
    out = capsys.readouterr().out
    assert "two: reproduced; height in m: upwards 12.8 vs downwards 3.67; effect +9.087" in out
    with pytest.raises(SystemExit):
        __main__.main(["three"])
    assert "got ['three']" in capsys.readouterr().err


def test_records_that_another_process_wrote_meanwhile_stay(monkeypatch, tmp_path):
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
    arms = [arm.id for arm in claim.arms]
    assert claim.id == id
    assert {claim.better, claim.worse} <= set(arms)
    assert claim.better != claim.worse
    assert len(set(arms)) == len(arms) == len({arm.label for arm in claim.arms})
    assert len(claim.lesson) == 2 and claim.lesson.isdigit()
    assert claim.statement.endswith(".")
    assert claim.source and claim.setup and claim.metric_label
    assert 0 <= claim.added_seeds < len(claim.seeds)
    # The rule; the one exception is older and open at either level
    assert claim.added_seeds <= 2 or id == "ddim-at-few-steps"


def test_ids_are_unique():
    modules = (convolution, diffusion, inflation, latents, metrics, motion_words, vdm)
    assert len(CLAIMS) == sum(len(module.CLAIMS) for module in modules)


@pytest.mark.parametrize("id", CLAIMS)
def test_every_arm_runs_and_gives_its_metrics(id, tiny):
    claim = CLAIMS[id]
    results = [claim.run(arm, 0, 0.01) for arm in claim.arms]
    for result in results:
        assert result.keys() == results[0].keys()
        assert math.isfinite(result[claim.metric])
        assert all(isinstance(value, float) for value in result.values())


# What the course ships


def test_the_shipped_ledger_has_every_claim_and_no_other():
    assert (data_dir() / "claims.json").exists(), "run `make claims`"
    assert set(load_ledger()) == set(CLAIMS)


@pytest.mark.parametrize("id", CLAIMS)
def test_the_shipped_ledger_follows_from_its_runs(id):
    record, claim = load_ledger()[id], CLAIMS[id]
    for name in (
        "lesson",
        "source",
        "statement",
        "setup",
        "metric",
        "metric_label",
        "better",
        "worse",
        "lower_is_better",
        "added_seeds",
        "unit",
    ):
        assert getattr(record, name) == getattr(claim, name), f"{name} changed: run `make claims`"
    assert record.chance == (claim.chance and pytest.approx(claim.chance, rel=1e-4))
    assert record.arm_labels == {arm.id: arm.label for arm in claim.arms}
    assert list(record.runs) == list(record.arm_labels)
    assert record.seeds == list(claim.seeds) and len(set(record.seeds)) == len(record.seeds) >= 3
    assert all(len(runs) == len(record.seeds) for runs in record.runs.values())
    sign = -1 if record.lower_is_better else 1
    values = [
        [sign * value for value in record.values(arm)] for arm in (record.better, record.worse)
    ]
    effect, interval, verdict = paired_verdict(*values, added_seeds=record.added_seeds)
    assert record.verdict == verdict
    assert record.differences() == [a - b for a, b in zip(*values, strict=True)]
    # The file has five digits of every run
    rounding = 1e-4 * max(1, *(abs(value) for arm in values for value in arm))
    expected = pytest.approx((effect, *interval), rel=1e-3, abs=rounding)
    assert (record.effect, *record.interval) == expected
    assert record.minutes > 0 and record.machine and record.versions["torch"]


def test_the_shipped_ledger_is_written_as_the_code_would(tmp_path):
    save_ledger(load_ledger(), tmp_path / "claims.json")
    assert (tmp_path / "claims.json").read_bytes() == (data_dir() / "claims.json").read_bytes()
