"""Link each lesson's first bold use of a glossary term to the glossary, and give the terms anchors.

    python tools/write_glossary_links.py          notebooks/*.ipynb and docs/glossary.md
    python tools/write_glossary_links.py --check  write nothing; 1 if a file is out of date

In a lesson `**U-Net**` becomes `[**U-Net**](../docs/glossary.md#u-net)`, the first time only. A
plural finds its singular. Another run changes nothing.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from course_lib import files
from course_lib.lab.gallery import source_id

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
LINK = "../docs/glossary.md#"
ANCHOR = re.compile(r'<a id="[^"]*"></a>')
ROW = re.compile(r"^\| (?!term |---)(.+?) \|", re.MULTILINE)
LINKED = re.compile(rf"\[(\*\*[^*\n]+\*\*)\]\({re.escape(LINK)}[^)]*\)")
BOLD = re.compile(r"(?<![*\[])\*\*([^*\n]+)\*\*(?!\*)")
# Lines that are no prose: headings, and pictures with their description
SKIPPED = re.compile(r"^(?:#|!\[|\|)")


def slug(term: str) -> str:
    """The anchor of a term: lower case letters and digits, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9∞]+", term.lower().replace("é", "e")))


def plain(text: str) -> str:
    """A name in lower case with one space between its words."""
    return " ".join(re.findall(r"[\w∞]+", text.lower()))


def names(term: str) -> set[str]:
    """What a lesson may call the term of a row: its parts at commas, and what is in brackets."""
    parts = re.findall(r" \(([^)]*)\)", term) + re.sub(r" \([^)]*\)", "", term).split(",")
    return {plain(part) for part in parts}


def anchors(glossary: str) -> dict[str, str]:
    """Name of a term to the anchor of its row."""
    found: dict[str, str] = {}
    for row in ROW.findall(glossary):
        term = ANCHOR.sub("", row)
        for name in names(term):
            found.setdefault(name, slug(term))
    return found


def with_anchors(glossary: str) -> str:
    """The glossary with an anchor in front of each term."""

    def anchored(match: re.Match[str]) -> str:
        term = ANCHOR.sub("", match[1])
        return f'| <a id="{slug(term)}"></a>{term} |'

    return ROW.sub(anchored, glossary)


def linked(cells: list[str], known: dict[str, str]) -> list[str]:
    """Markdown cells with the first bold use of every known term linked, and no other.

    Args:
        cells: sources of a lesson's Markdown cells, in order.
        known: from `anchors`.
    """
    used: set[str] = set()

    def link(match: re.Match[str]) -> str:
        name = plain(match[1])
        anchor = known.get(name) or known.get(name.removesuffix("s"))
        if anchor is None or anchor in used:
            return match[0]
        used.add(anchor)
        return f"[{match[0]}]({LINK}{anchor})"

    result = []
    for cell in cells:
        lines = LINKED.sub(r"\1", cell).split("\n")
        result.append(
            "\n".join(line if SKIPPED.match(line) else BOLD.sub(link, line) for line in lines)
        )
    return result


def lesson_text(path: Path, known: dict[str, str]) -> str:
    """The notebook file with its links up to date."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    prose = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "markdown" and "navigation" not in cell["metadata"].get("tags", [])
    ]
    sources = ["".join(cell["source"]) for cell in prose]
    for cell, source, text in zip(prose, sources, linked(sources, known), strict=True):
        if text != source:
            cell["source"] = text.splitlines(keepends=True)
            cell["id"] = source_id("markdown", text)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks all files; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    glossary = GLOSSARY.read_text(encoding="utf-8")
    texts = {GLOSSARY: with_anchors(glossary)}
    known = anchors(glossary)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        texts[path] = lesson_text(path, known)
    stale = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            files.write_text(path, texts[path])
        print(f"{'out of date' if check else 'wrote'}: {path.name}", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
