"""Write docs/results.md and docs/performance.md from the numbers stored under data/.

    python tools/write_docs.py

The pages hold no number that is not in data/claims.json, data/bench.json or an evaluation.json;
tests/test_docs.py checks that they are up to date.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from course_lib import files
from course_lib.claims.ledger import confidence_level

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"


def number(value: float | int) -> str:
    """Three significant digits, without exponents for everyday sizes."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; columns whose name ends in '#' are aligned to the right."""
    names = [name.removesuffix("#") for name in header]
    rule = ["---:" if name.endswith("#") else "---" for name in header]
    lines = [names, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def checkpoint_rows() -> list[list[str]]:
    """One row per checkpoint: what it does, its targets, its training."""
    rows = []
    for path in sorted((DATA / "checkpoints").rglob("evaluation.json")):
        entry = files.read_json(path)
        results = []
        for name, (comparison, target) in entry["targets"].items():
            value = entry["evaluation"][name]
            reached = value >= target if comparison == ">=" else value <= target
            sign = "≥" if comparison == ">=" else "≤"
            missed = "" if reached else " **missed**"
            results.append(f"`{name}` {number(value)} ({sign} {number(target)}){missed}")
        link = f"[`{entry['name']}`](../data/checkpoints/{entry['name']}/README.md)"
        minutes = number(entry["minutes"])
        rows.append([link, entry["summary"], "; ".join(results), minutes])
    return rows


def claim_rows() -> list[list[str]]:
    """One row per claim: both arms in the order favoured, other; the effect; the verdict."""
    rows = []
    for record in files.read_json(DATA / "claims.json"):
        arms = []
        for arm in (record["better"], record["worse"]):
            mean = statistics.fmean(run[record["metric"]] for run in record["runs"][arm])
            arms.append(f"{record['arm_labels'][arm]} {number(mean)}")
        low, high = record["interval"]
        added, verdict = record["added_seeds"], record["verdict"]
        effect = f"{record['effect']:+.3g} [{low:+.3g}, {high:+.3g}]"
        if added:  # a second look at the data: the stricter level, and the verdict says so
            effect += f" ({100 * confidence_level(added):g} %)"
            verdict += f" ({added} seeds added)"
        seeds = str(len(record["seeds"]))
        statement = f"{record['statement']} ({record['source']}) `{record['id']}`"
        measured = f"{record['metric_label']}: {', '.join(arms)}"
        rows.append([record["lesson"], statement, measured, effect, seeds, verdict])
    return rows


def results_page() -> str:
    """docs/results.md."""
    claims = table(
        ["lesson", "claim", "measured", "effect, 95 % interval#", "seeds#", "verdict"],
        claim_rows(),
    )
    checkpoints = table(
        ["checkpoint", "what it does", "measured on the test split (target)", "minutes#"],
        checkpoint_rows(),
    )
    return f"""# Results

Written by `python tools/write_docs.py` from `data/claims.json` and the `evaluation.json` of every
checkpoint.

## Claims

Each claim ran over at least three seeds. "Measured" names the arm that the claim favours first,
then the other one. The effect is the mean difference over paired seeds, in the unit of the metric,
positive in favour of the claim; the verdict follows from its interval alone (Student's t, n - 1
degrees of freedom): reproduced if all of it is above zero, opposite if all of it is below, else not
reproduced. [Lesson 01](../notebooks/01_convolutions_for_video.ipynb) explains this.

Seeds are fixed before the first run. If they leave a claim open, at most once two more are added,
and the interval of all of them is at the 97.5 % level in place of 95 %: a second look is a second
chance to be wrong. Such verdicts are marked "(2 seeds added)". `ddim-at-few-steps` was given six
before this rule was written; it is open at either level. `make claims` runs all claims again.

{claims}
## Checkpoints

`python -m course_lib.recipes NAME` trains one anew (`--minutes` stops it, the same command goes on;
`--evaluate` evaluates what is stored; `accelerate launch -m course_lib.recipes NAME` uses many
devices). Machine, settings and everything else that was measured are in the model cards.

{checkpoints}"""


def benchmark_section(name: str, entry: dict[str, Any]) -> str:
    """One section of docs/performance.md."""
    rows = []
    for row in entry["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        value = f"{number(row['value'])} {row['unit']}"
        rows.append([row["case"], row["contender"], value, row["peer"], ratio, row["note"]])
    body = table(["case", "what", "measured#", "compared with", "ratio#", "note"], rows)
    return f"## {name}\n\n{entry['date']}, {entry['machine']}.\n\n{body}"


def performance_page() -> str:
    """docs/performance.md."""
    bench = files.read_json(DATA / "bench.json")
    sections = "\n".join(benchmark_section(name, entry) for name, entry in bench.items())
    return f"""# Performance

Written by `python tools/write_docs.py` from `data/bench.json`, which `make bench` measures. The two
sides of a row run in one process and take turns; numbers are medians. A ratio above 1 means that
the left side is faster, or needs less memory, than what it is compared with; against a target, that
the target is met. A single run, as in notebook 00, may differ by some 20 %.

{sections}"""


def main() -> None:
    """Write both pages."""
    docs = ROOT / "docs"
    for name, text in (("results.md", results_page()), ("performance.md", performance_page())):
        files.write_text(docs / name, text)
        print(f"docs/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
