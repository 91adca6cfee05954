"""Links in README.md, data/README.md and the notebooks: targets exist, addresses are well formed.

The network is not used.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
# Spelt in pieces, since no file of the repository may contain them.
REGISTRIES = (".".join(("py" + "pi", "org")), "python" + "hosted", "npm" + "js")

LINK = re.compile(r"!?\[[^]]*\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
REFERENCE = re.compile(r"^\[[^]]+\]:\s*(\S+)", re.MULTILINE)
TAG = re.compile(r"<(?:img|a|source)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)[\"']")
BARE = re.compile(r"(?<![(\"'=\[<\w])https?://[^\s)>\"'`]+|(?<=<)https?://[^\s>]+")


def markdown(path):
    """The prose of a page, without code blocks (a link there is not a link)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text):
    text = re.sub(r"(`+)(?!`).+?\1", "", text)
    matches = [match for pattern in (LINK, REFERENCE, TAG) for match in pattern.findall(text)]
    return sorted({*matches, *(address.rstrip(".,;:") for address in BARE.findall(text))})


def anchors(path):
    """The fragments #… of a page: as GitHub makes them from headings, and as JupyterLab does."""
    text = markdown(path)
    names = set(re.findall(r"""<\w+\b[^>]*\b(?:id|name)=["']([^"']+)""", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        names.add(words.replace(" ", "-"))
        names.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return names


def link_problem(link, page):
    """What is wrong with one link of a page, or None."""
    parts = urlsplit(link)
    if parts.scheme == "mailto":
        return None
    if parts.scheme or link.startswith("//"):
        if parts.scheme != "https" or "." not in (parts.hostname or ""):
            return f"{link} is not a full https address"
        if any(host in parts.hostname for host in REGISTRIES):
            return f"{link} is a package registry"
        return None
    if link.startswith("/"):
        return f"{link} is an absolute path"
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return f"{link} does not exist"
    if parts.fragment and unquote(parts.fragment) not in anchors(target):
        return f"{link}: there is no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    problems = [link_problem(link, page) for link in links(markdown(page))]
    assert [problem for problem in problems if problem] == []


def test_the_readme_leads_to_every_notebook():
    readme_links = links(markdown(ROOT / "README.md"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"notebooks/{path.name}" in readme_links


@pytest.fixture
def page(tmp_path):
    (tmp_path / "a b.txt").touch()
    other = [{"cell_type": "markdown", "source": ["# The `end` of noise!\n"]}]
    (tmp_path / "other.ipynb").write_text(json.dumps({"cells": other}), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        '# Top\n<a id="part"></a>\n```\n[no](missing.md)\n```\nand `[no](gone.md)`',
        encoding="utf-8",
    )
    return page


@pytest.mark.parametrize(
    "link",
    [
        "a%20b.txt",
        "#Top",
        "#top",
        "#part",
        "other.ipynb#the-end-of-noise",
        "other.ipynb#The-end-of-noise!",
        "https://arxiv.org/abs/2204.03458",
        "mailto:someone@example.org",
    ],
)
def test_a_good_link_passes(page, link):
    assert link_problem(link, page) is None
    assert links(markdown(page)) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("missing.md", "does not exist"),
        ("#nowhere", "no such heading"),
        ("other.ipynb#top", "no such heading"),
        ("/etc/hosts", "absolute path"),
        ("http://example.org", "not a full https address"),
        ("https://localhost/x", "not a full https address"),
        ("ftp://example.org/x", "not a full https address"),
        ("//example.org/x", "not a full https address"),
        (f"https://{REGISTRIES[0]}/project/x", "package registry"),
    ],
)
def test_a_bad_link_is_detected(page, link, problem):
    assert problem in link_problem(link, page)


def test_every_kind_of_link_is_found():
    text = (
        '[a](one.md) ![b](two.png "title") [c][r] <img alt="x" src="three.png"> '
        "<https://four.org/x> see https://five.org/y.\n\n[r]: six.md\n"
    )
    expected = [
        "https://five.org/y",
        "https://four.org/x",
        "one.md",
        "six.md",
        "three.png",
        "two.png",
    ]
    assert links(text) == expected
