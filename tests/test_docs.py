"""The pages of docs/ are true: places in the code exist, tables are those of the stored results."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"


def glossary_rows():
    rows = []
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0] not in ("term", "---"):
            rows.append(cells)
    return rows


def resolve(place):
    """The module or attribute of course_lib that a glossary entry names."""
    parts = place.split(".")
    for k in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(["course_lib", *parts[:k]]))
        except ModuleNotFoundError:
            continue
        for name in parts[k:]:
            target = getattr(target, name)
        return target
    raise AssertionError(f"there is no {place}")


@pytest.mark.parametrize("row", glossary_rows(), ids=lambda row: row[0])
def test_glossary_entries_are_complete_and_lead_into_the_code(row):
    _, chinese, meaning, lessons, place = row
    assert re.search(r"[\u4e00-\u9fff]", chinese) and meaning.endswith(".")
    assert all(0 <= int(lesson) <= 17 for lesson in lessons.split(", "))
    resolve(place.strip("`"))


def test_the_glossary_is_sorted_and_has_no_term_twice():
    terms = [row[0].lower() for row in glossary_rows()]
    assert len(terms) >= 40 and len(set(terms)) == len(terms)


def test_a_place_that_does_not_exist_is_noticed():
    with pytest.raises((AssertionError, AttributeError)):
        resolve("nn.attention.NoSuchLayer")


def write_docs():
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "tools" / "write_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["results", "performance"])
def test_pages_are_those_of_the_stored_numbers(name):
    stored = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert stored == getattr(write_docs(), f"{name}_page")(), "run python tools/write_docs.py"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0359, "0.0359"),
        (2.664, "2.66"),
        (228.4, "228"),
        (3160.0, "3,160"),
        (2e-11, "2e-11"),
    ],
)
def test_numbers_are_short(value, text):
    assert write_docs().number(value) == text


def test_the_readme_quotes_claims_as_they_are():
    """Every claim that the README names exists, with the verdict given there."""
    import json

    records = json.loads((ROOT / "data" / "claims.json").read_text(encoding="utf-8"))
    verdicts = {record["id"]: record["verdict"] for record in records}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"\| `([a-z0-9-]+)` \| ([^|]+) \|$", readme, re.MULTILINE)
    assert len(quoted) == 5
    assert all(verdicts[claim] == verdict.strip() for claim, verdict in quoted)
