"""Terms of the field lead from a lesson to the glossary."""

from pathlib import Path

import pytest

from tools import write_glossary_links as tool

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = (
    "| term | 中文 |\n|---|---|\n| FID, FVD | a |\n"
    "| classifier-free guidance (CFG) | b |\n| U-Net | c |\n"
)
KNOWN = tool.anchors(GLOSSARY)
FVD = "../docs/glossary.md#fid-fvd"


def test_every_lesson_links_its_terms(capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("fvd", "fid-fvd"),
        ("classifier free guidance", "classifier-free-guidance-cfg"),
        ("cfg", "classifier-free-guidance-cfg"),
        ("u net", "u-net"),
    ],
)
def test_a_row_has_every_name_of_its_term(name, anchor):
    assert KNOWN[name] == anchor


def test_only_the_first_use_is_linked_and_a_plural_counts():
    cells = ["Two **U-Nets**, **one**.", "The **U-Net** again. **FVD**"]
    assert tool.linked(cells, KNOWN) == [
        "Two [**U-Nets**](../docs/glossary.md#u-net), **one**.",
        f"The **U-Net** again. [**FVD**]({FVD})",
    ]


def test_headings_tables_and_pictures_stay():
    cell = "# **FVD**\n| **FVD** |\n![**FVD**](a.png)\n***FVD***"
    assert tool.linked([cell], KNOWN) == [cell]


def test_another_run_changes_nothing_and_a_link_moves_to_an_earlier_use():
    once = tool.linked(["**FVD**", "**FVD**"], KNOWN)
    assert tool.linked(once, KNOWN) == once
    moved = tool.linked(["new: **FVD**", *once], KNOWN)
    assert moved == [f"new: [**FVD**]({FVD})", "**FVD**", "**FVD**"]
    anchored = tool.with_anchors(GLOSSARY)
    assert '| <a id="u-net"></a>U-Net |' in anchored and 'id="term"' not in anchored
    assert tool.with_anchors(anchored) == anchored and tool.anchors(anchored) == KNOWN
