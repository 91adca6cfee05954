"""The ledger of claims: experiments, their runs over several seeds, paired effects and verdicts.

A claim is an experiment with two or more arms. Every arm runs once per seed and returns metrics.
The record of a claim keeps all of them, the paired difference between the two arms that the claim
compares, its confidence interval, the cost, and a verdict, which may well be "not reproduced at
this scale".

Seeds are fixed before the first run, and the interval is at the 95 % level. If they leave a claim
open, at most once two more are added, and the interval of all of them is at the 97.5 % level: a
second look is a second chance to be wrong. The verdict says so.
"""

import contextlib
import importlib.metadata
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from course_lib import files
from course_lib.metrics import mean_interval
from course_lib.runtime import data_dir, machine_summary
from course_lib.validation import check_int, check_number

Metrics = dict[str, float]
VERDICTS = ("reproduced", "not reproduced at this scale", "opposite at this scale")
REPRODUCED, NOT_REPRODUCED, OPPOSITE = VERDICTS
MIN_SEEDS = 3
LEVEL = 0.95
LEVEL_WITH_ADDED_SEEDS = 0.975


@dataclass(frozen=True)
class Arm:
    """One condition of an experiment; subclasses have more options than one.

    Attributes:
        id: identifier, a key of `Record.runs`.
        label: text for plots and tables.
        value: the option in which the arms of an experiment differ, such as a guidance scale.
    """

    id: str
    label: str
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What is claimed: arm `better` has a larger `metric` than arm `worse`.

    Attributes:
        id: identifier, unique.
        lesson: two digits, the lesson that shows it.
        source: paper and section, or "this course".
        statement: the claim in one sentence.
        setup: data, model and training in one line.
        metric: key of the metrics of a run.
        metric_label: text for plots and tables.
        better: id of the arm that the claim favours.
        worse: id of the arm that it is compared with.
        lower_is_better: the claim is about a smaller metric, such as an error.
        added_seeds: how many of the last seeds were added after a look at the first ones; above
            0, the interval is at the 97.5 % level.
        unit: of the metric; "%" means that values are fractions, which plots show in per cent.
        chance: value of the metric for an answer that is guessed, where there is one.
    """

    id: str
    lesson: str
    source: str
    statement: str
    setup: str
    metric: str
    metric_label: str
    better: str
    worse: str
    lower_is_better: bool = False
    added_seeds: int = 0
    unit: str | None = None
    chance: float | None = None

    @property
    def level(self) -> float:
        """Confidence level of the interval that decides, 0.95 or 0.975."""
        return confidence_level(self.added_seeds)


@dataclass(frozen=True, kw_only=True)
class Claim(Hypothesis):
    """A hypothesis with its experiment.

    Attributes:
        arms: the conditions.
        run: (arm, seed, scale) to the metrics of one run; scale 1 is the ledger's, less is quicker.
        seeds: of the ledger's runs. They differ from 0, 1, 2 where those were used to design the
            experiment.
    """

    arms: tuple[Arm, ...]
    run: Callable[[Any, int, float], Metrics]
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Record(Hypothesis):
    """A hypothesis with its runs and its verdict, the ledger's entry.

    Attributes:
        arm_labels: arm id to label.
        seeds: one per run.
        runs: arm id to one dictionary of metrics per seed.
        effect: mean over seeds of how much `better` exceeds `worse` in the direction of the claim,
            in units of `metric`. A positive effect supports the claim.
        interval: confidence interval of the effect, at `level`.
        verdict: conclusion from the interval, see `paired_verdict`.
        minutes: duration of all runs.
        machine: hardware of the runs.
        versions: package to version.
    """

    arm_labels: dict[str, str]
    seeds: list[int]
    runs: dict[str, list[Metrics]]
    effect: float
    interval: tuple[float, float]
    verdict: str
    minutes: float
    machine: str
    versions: dict[str, str]

    def values(self, arm: str, metric: str | None = None) -> list[float]:
        """One number per seed.

        Args:
            arm: id of an arm.
            metric: which metric; None is the one that the claim is about.
        """
        return [run[metric or self.metric] for run in self.runs[arm]]

    def interval_name(self) -> str:
        """What the interval is: "95 % interval" or "97.5 % interval"."""
        return f"{100 * self.level:g} % interval"

    def verdict_text(self) -> str:
        """The verdict, with "(2 seeds added)" where seeds were added after a look."""
        plural = "" if self.added_seeds == 1 else "s"
        added = f" ({self.added_seeds} seed{plural} added)" if self.added_seeds else ""
        return f"{self.verdict}{added}"

    def differences(self) -> list[float]:
        """By how much `better` exceeds `worse` in the direction of the claim, for every seed."""
        sign = -1 if self.lower_is_better else 1
        pairs = zip(self.values(self.better), self.values(self.worse), strict=True)
        return [sign * (better - worse) for better, worse in pairs]

    def summary(self) -> str:
        """Verdict, means of the favoured and of the other arm, and effect, in one line."""
        low, high = self.interval
        means = " vs ".join(
            f"{self.arm_labels[arm]} {statistics.fmean(self.values(arm)):.3g}"
            for arm in (self.better, self.worse)
        )
        added = f" ({self.added_seeds} added after a look)" if self.added_seeds else ""
        return (
            f"{self.verdict}; {self.metric_label}: {means}; effect {self.effect:+.3f}, "
            f"{self.interval_name()} [{low:+.3f}, {high:+.3f}], {len(self.seeds)} seeds{added}"
        )


def confidence_level(added_seeds: int) -> float:
    """Level of the interval that decides: 0.95, or 0.975 if seeds were added after a look.

    Args:
        added_seeds: how many were added, at least 0.

    Raises:
        ValueError: `added_seeds` is no integer or negative.
    """
    check_int("added_seeds", added_seeds, 0)
    return LEVEL_WITH_ADDED_SEEDS if added_seeds else LEVEL


def paired_verdict(
    better: Sequence[float], worse: Sequence[float], added_seeds: int = 0
) -> tuple[float, tuple[float, float], str]:
    """Compare two arms seed by seed; equal seeds mean equal data in equal order.

    Args:
        better: one value per seed of the arm that the claim favours; more is better.
        worse: values of the other arm, same seeds.
        added_seeds: how many of the seeds were added after a look at the first ones.

    Returns:
        Mean difference, its interval (Student's t; 95 %, or 97.5 % with added seeds), and the
        verdict: reproduced if the whole interval is above zero, opposite if it is below, else not
        reproduced.

    Raises:
        ValueError: different numbers of seeds, fewer than three, a value that is not finite, or a
            negative `added_seeds`.
    """
    if len(better) != len(worse) or len(better) < MIN_SEEDS:
        raise ValueError(
            f"better, worse: expected the same number of seeds, at least {MIN_SEEDS}; "
            f"got {len(better)} and {len(worse)}"
        )
    if not all(map(math.isfinite, [*better, *worse])):
        raise ValueError(
            f"better, worse: expected finite numbers, got {list(better)} and {list(worse)}"
        )
    differences = [a - b for a, b in zip(better, worse, strict=True)]
    mean, low, high = mean_interval(differences, confidence_level(added_seeds))
    verdict = REPRODUCED if low > 0 else OPPOSITE if high < 0 else NOT_REPRODUCED
    return mean, (low, high), verdict


def run_claim(
    claim: Claim,
    seeds: Sequence[int] | None = None,
    scale: float = 1.0,
    cache_dir: Path | None = None,
) -> Record:
    """Run all arms of a claim over all seeds and derive its verdict.

    Args:
        claim: the experiment.
        seeds: at least three, all different and not negative; None is the claim's own.
        scale: fraction of the ledger's training steps and samples.
        cache_dir: folder that keeps finished runs, so that an interrupted call can be resumed.

    Raises:
        ValueError: fewer than three seeds, one of them twice or negative, or a `scale` that is not
            above 0.
    """
    claimed = {field.name: getattr(claim, field.name) for field in fields(Hypothesis)}
    if seeds is not None:
        claimed["added_seeds"] = 0
    seeds = list(claim.seeds if seeds is None else seeds)
    check_seeds(seeds)
    check_number("scale", scale, above=0.0)
    runs: dict[str, list[Metrics]] = {arm.id: [] for arm in claim.arms}
    for seed in seeds:  # arms inside, so that an early stop leaves complete comparisons
        for arm in claim.arms:
            runs[arm.id].append(_cached_run(claim, arm, seed, scale, cache_dir))
    sign = -1 if claim.lower_is_better else 1
    better, worse = (
        [sign * run[claim.metric] for run in runs[arm]] for arm in (claim.better, claim.worse)
    )
    effect, interval, verdict = paired_verdict(better, worse, claimed["added_seeds"])
    return Record(
        **claimed,
        arm_labels={arm.id: arm.label for arm in claim.arms},
        seeds=seeds,
        runs=runs,
        effect=effect,
        interval=interval,
        verdict=verdict,
        minutes=sum(run["minutes"] for arm in runs.values() for run in arm),
        machine=machine_summary(),
        versions=library_versions(),
    )


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError unless there are at least three seeds, all different and not negative."""
    if len(set(seeds)) != len(seeds) or len(seeds) < MIN_SEEDS:
        raise ValueError(f"seeds: expected at least {MIN_SEEDS}, all different; got {list(seeds)}")
    for seed in seeds:
        check_int("seeds", seed, 0)


def library_versions() -> dict[str, str]:
    """Versions of what computes the runs."""
    names = ("torch", "torchvision", "diffusers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"python": platform.python_version()}


def _cached_run(claim: Claim, arm: Arm, seed: int, scale: float, cache_dir: Path | None) -> Metrics:
    """One run, or what `cache_dir` has of it."""
    file = (
        None if cache_dir is None else cache_dir / f"{claim.id}--{arm.id}--{seed}--{scale:g}.json"
    )
    if file is not None:
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged file is run again
            metrics = files.read_json(file)
            if isinstance(metrics, dict) and {"minutes", claim.metric} <= metrics.keys():
                return metrics
    start = time.perf_counter()
    result = claim.run(arm, seed, scale)
    metrics = {"minutes": (time.perf_counter() - start) / 60} | result
    values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print(f"{claim.id}, {arm.id}, seed {seed}: {values}", flush=True)
    if file is not None:
        files.write_json(file, metrics)
    return metrics


def load_ledger(path: Path | None = None) -> dict[str, Record]:
    """Read the ledger.

    Args:
        path: a JSON file; None is the course's own `data/claims.json`.

    Returns:
        Claim id to record.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no ledger; the message names it.
    """
    path = path or data_dir() / "claims.json"
    entries = files.read_json(path)
    try:
        return {
            entry["id"]: Record(**entry | {"interval": tuple(entry["interval"])})
            for entry in entries
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected records of claims ({error})") from error


def save_ledger(records: Mapping[str, Record], path: Path | None = None) -> None:
    """Write the ledger, sorted by lesson and id.

    Args:
        records: claim id to record.
        path: a JSON file; None is the course's own `data/claims.json`.
    """
    ordered = sorted(records.values(), key=lambda record: (record.lesson, record.id))
    entries = [
        {key: _rounded(value) for key, value in asdict(record).items() if value is not None}
        for record in ordered
    ]
    files.write_json(path or data_dir() / "claims.json", entries)


def add_record(record: Record, path: Path | None = None) -> None:
    """Add a record to the ledger, or replace the one with its id; one process at a time.

    Args:
        record: of a claim.
        path: a JSON file, which need not exist; None is the course's own `data/claims.json`.
    """
    path = path or data_dir() / "claims.json"
    with files.locked(path):
        records = load_ledger(path) if path.exists() else {}
        save_ledger(records | {record.id: record}, path)


def _rounded(value: Any) -> Any:
    """Five significant digits; more would be noise and make every diff long."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
