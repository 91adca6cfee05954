"""The ledger: which claims the course has tested, over which seeds, with what effect, and what we conclude.

A claim is an experiment with two or more arms. Every arm runs once per seed and returns a few numbers; the ledger
keeps all of them, the paired difference the claim is about, its 95 % interval, the cost, and a verdict in words that
may well be "not reproduced at this scale".
"""

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from course_lib.runtime import data_dir, machine_summary

Numbers = dict[str, float]
VERDICTS = ("reproduced", "not reproduced at this scale", "opposite at this scale")


@dataclass(frozen=True)
class Claim:
    """One experiment.

    Args:
        id: short name, unique.
        lesson: two digits, the lesson that shows it.
        source: paper and section, or "this course".
        statement: what is claimed, in one sentence.
        arms: names of what is compared.
        run: (arm, seed, scale) to the measured numbers of one run; scale 1 is the ledger's, less is quicker.
        better, worse, metric: the claim says that arm `better` has more of `metric` than arm `worse`,
        lower_is_better: or less of it, as with errors.
        setting: data, model and training in one line, for whoever reads only the ledger.
        seeds: of the ledger's runs; others than 0, 1, 2 where those were looked at while the experiment was designed.
    """

    id: str
    lesson: str
    source: str
    statement: str
    arms: tuple[str, ...]
    run: Callable[[str, int, float], Numbers]
    metric: str
    better: str
    worse: str
    setting: str
    lower_is_better: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Record:
    """What the ledger holds about a claim.

    `runs[arm]` has one dict of numbers per seed, in the order of `seeds`. `effect` is by how much `better` is better
    than `worse` (positive supports the claim), in units of `metric`, with its 95 % `interval`.
    """

    id: str
    lesson: str
    source: str
    statement: str
    setting: str
    metric: str
    better: str
    worse: str
    lower_is_better: bool
    seeds: list[int]
    runs: dict[str, list[Numbers]]
    effect: float
    interval: tuple[float, float]
    verdict: str
    minutes: float
    machine: str
    versions: dict[str, str] = field(default_factory=dict)

    def values(self, arm: str, metric: str | None = None) -> list[float]:
        """One number per seed.

        Args:
            arm: a key of `runs`.
            metric: which number; None is the one the claim is about.
        """
        return [run[metric or self.metric] for run in self.runs[arm]]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and its confidence interval by Student's t.

    Args:
        values: at least two independent measurements.
        level: probability that the interval covers the true mean, if the values are normal.

    Returns:
        mean, lower end, upper end.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"values: an interval needs at least two, got {len(values)}")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def judge(
    better: Sequence[float], worse: Sequence[float]
) -> tuple[float, tuple[float, float], str]:
    """Compare two arms seed by seed: the same seed means the same data and the same order.

    Args:
        better: the metric of the arm claimed to have more of it, one value per seed.
        worse: that of the other arm, same seeds.

    Returns:
        mean difference, its 95 % interval, and a verdict: reproduced if the whole interval is above zero,
        opposite if it is below, else not reproduced.

    Raises:
        ValueError: different numbers of seeds, fewer than three, or a value that is not finite.
    """
    if len(better) != len(worse) or len(better) < 3:
        raise ValueError(
            f"a verdict needs the same three or more seeds in both arms, got {len(better)}, {len(worse)}"
        )
    if not all(map(math.isfinite, [*better, *worse])):
        raise ValueError(f"a verdict needs finite numbers, got {list(better)} and {list(worse)}")
    mean, low, high = mean_interval(
        [ours - theirs for ours, theirs in zip(better, worse, strict=True)]
    )
    verdict = VERDICTS[0] if low > 0 else VERDICTS[2] if high < 0 else VERDICTS[1]
    return mean, (low, high), verdict


def run_claim(
    claim: Claim, seeds: Sequence[int] | None = None, scale: float = 1.0, keep: Path | None = None
) -> Record:
    """Run all arms of a claim over all seeds and judge it.

    Args:
        claim: the experiment.
        seeds: at least three, all different; None takes the claim's own.
        scale: share of the ledger's training steps.
        keep: a folder that remembers finished runs, so that an interrupted run goes on where it stopped.

    Raises:
        ValueError: fewer than three seeds, or one of them twice.
    """
    seeds = claim.seeds if seeds is None else seeds
    if len(set(seeds)) != len(seeds) or len(seeds) < 3:
        raise ValueError(f"seeds must be three or more different ones, got {list(seeds)}")
    runs: dict[str, list[Numbers]] = {arm: [] for arm in claim.arms}
    for seed in seeds:  # seeds outside, arms inside: an early stop leaves complete comparisons
        for arm in claim.arms:
            runs[arm].append(_run_once(claim, arm, seed, scale, keep))
    sign = -1 if claim.lower_is_better else 1
    values = {
        arm: [sign * run[claim.metric] for run in runs[arm]] for arm in (claim.better, claim.worse)
    }
    effect, interval, verdict = judge(values[claim.better], values[claim.worse])
    return Record(
        **{
            name: getattr(claim, name)
            for name in ("id", "lesson", "source", "statement", "setting", "metric")
        },
        better=claim.better,
        worse=claim.worse,
        lower_is_better=claim.lower_is_better,
        seeds=list(seeds),
        runs=runs,
        effect=effect,
        interval=interval,
        verdict=verdict,
        minutes=sum(run["minutes"] for arm in runs.values() for run in arm),
        machine=machine_summary(),
        versions={
            name: importlib.metadata.version(name) for name in ("torch", "torchvision", "diffusers")
        }
        | {"python": platform.python_version()},
    )


def _run_once(claim: Claim, arm: str, seed: int, scale: float, keep: Path | None) -> Numbers:
    file = None if keep is None else keep / f"{claim.id}--{arm}--{seed}--{scale:g}.json"
    if file is not None and file.exists():
        return json.loads(file.read_text())
    start = time.perf_counter()
    numbers = claim.run(arm, seed, scale)
    numbers = {"minutes": (time.perf_counter() - start) / 60} | numbers
    print(
        f"{claim.id}, {arm}, seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()),
        flush=True,
    )
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(numbers))
    return numbers


def load_ledger(path: Path | None = None) -> dict[str, Record]:
    """Read the ledger.

    Args:
        path: a JSON file; None is the course's own `data/claims.json`.

    Raises:
        FileNotFoundError: no such file.
    """
    entries = json.loads((path or data_dir() / "claims.json").read_text())
    return {
        entry["id"]: Record(**entry | {"interval": tuple(entry["interval"])}) for entry in entries
    }


def save_ledger(records: Mapping[str, Record], path: Path | None = None) -> None:
    """Write the ledger, sorted by lesson and id.

    Args:
        records: by claim id.
        path: a JSON file; None is the course's own `data/claims.json`.
    """
    ordered = sorted(records.values(), key=lambda record: (record.lesson, record.id))
    entries: list[dict[str, Any]] = [_rounded(asdict(record)) for record in ordered]
    (path or data_dir() / "claims.json").write_text(
        json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    )


def _rounded(value: Any) -> Any:
    """Five significant digits: more would be noise that makes every diff a long one."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
