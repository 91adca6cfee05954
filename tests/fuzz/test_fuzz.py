"""Thousands of wrong calls of the public functions: none may give a wrong result without a word.

Every function has a valid example call (`calls_*.py`), every argument is replaced by values of
another kind (`mutations.py`). The calls run in another process, without the type checker that these
tests install, as they run for users. `harness.py` says how a call is judged. To see all calls of a
room:

    python -m tests.fuzz.run report.json world
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.run import ROOMS

# The wrong calls themselves do not depend on the system
pytestmark = pytest.mark.skipif(os.name == "nt", reason="no alarm there that ends a hang")
ROOT = Path(__file__).resolve().parents[2]
MIN_CALLS = 6000
# Refusals that do not name the argument: as measured. A new check lowers its room's number
MAX_OBSCURE = {
    "base": 33,
    "diffusion": 66,
    "lab": 25,
    "metrics": 143,
    "nn": 493,
    "papers": 97,
    "pipelines": 101,
    "recipes": 78,
    "training": 1,
    "world": 26,
    "zoo": 23,
}
FAULTS = {
    "broken": "the valid call fails",
    "silent": "accepted, and wrong",
    "damage": "refused, with side effects",
    "hang": "never ends",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Outcomes of all calls, by the file of their examples."""
    report = tmp_path_factory.mktemp("fuzz") / "report.json"
    command = [sys.executable, "-m", "tests.fuzz.run", str(report)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COURSE_PROFILE": "ci"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return json.loads(report.read_text(encoding="utf-8"))


def count(results):
    return Counter(result["verdict"] for result in results)


def describe(result):
    call = f"{result['name']}({result['argument']}: {result['mutation']})"
    return f"{FAULTS[result['verdict']]}: {call}: {result['detail']}"


@pytest.mark.parametrize("room", ROOMS)
def test_no_wrong_call_is_silently_wrong(outcomes, room):
    counts = count(outcomes[room])
    print(f"\n{room}: {dict(counts)}")
    faults = [describe(result) for result in outcomes[room] if result["verdict"] in FAULTS]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("room", ROOMS)
def test_refusals_name_the_argument(outcomes, room):
    assert count(outcomes[room])["obscure"] <= MAX_OBSCURE[room]


def test_there_are_thousands_of_calls(outcomes):
    results = [result for room in ROOMS for result in outcomes[room]]
    rules = Counter(result["detail"] for result in results if result["verdict"] == "accepted")
    kinds = Counter((result["mutation"], result["verdict"]) for result in results)
    print(f"\n{len(results)} calls: {dict(count(results))}")
    print("accepted: " + "; ".join(f"{number} {rule}" for rule, number in rules.most_common()))
    for mutation in sorted({mutation for mutation, _ in kinds}):
        verdicts = {verdict: n for (other, verdict), n in kinds.items() if other == mutation}
        print(f"{mutation}: {verdicts}")
    assert len(results) >= MIN_CALLS


def test_every_public_function_is_called_or_listed(outcomes):
    assert outcomes["coverage"] == {"missing": [], "superfluous": []}


def test_every_exception_is_needed(outcomes):
    assert outcomes["unused exceptions"] == []


def test_the_judge_can_fail(outcomes):
    """Functions with each of the faults, and one without: see `selftest.py`."""
    verdicts = {
        (result["name"].removeprefix("tests."), result["argument"], result["mutation"]): result[
            "verdict"
        ]
        for result in outcomes["selftest"]
    }
    for argument, mutation in (
        ("x", "integers"),
        ("x", "extra axis"),
        ("y", "first axis of 1"),
        ("scale", "NaN"),
        ("scale", "below"),
        ("count", "fraction"),
    ):
        assert verdicts["careless", argument, mutation] == "silent"
    assert verdicts["careless", "x", "text"] == "obscure"
    assert verdicts["destructive", "count", "negative"] == "damage"
    assert verdicts["writing", "count", "negative"] == "damage"
    assert verdicts["endless", "count", "negative"] == "hang"
    careful = {verdict for (name, _, _), verdict in verdicts.items() if name == "careful"}
    assert careful == {"valid", "clear", "accepted"}
