"""Pages of the gallery need no network: formulas are drawn by the browser, nothing is loaded."""

import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_lib.lab import gallery, offline_page
from course_lib.lab.offline_page import to_mathml

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"


def loads(page):
    """Everything in a page that a browser requests when it opens the page."""
    soup = BeautifulSoup(page, "html.parser")
    active = "script:not([type$='+json']), iframe, object, embed, base"
    found = [str(element)[:80] for element in soup.select(active)]
    for element in soup.find_all(True):
        for name in ("src", "srcset", "data", "poster", "background", "action", "xlink:href"):
            found += [element[name]] if name in element.attrs else []
        if element.name != "a" and "href" in element.attrs:
            found.append(element["href"])
        styles = (element.get("style") or "") + (element.text if element.name == "style" else "")
        found += re.findall(r"url\(\s*[\"']?([^\"')]*)|(@import[^;]*)", styles)
    flat = ["".join(entry) for entry in found]
    return [entry for entry in flat if not entry.startswith(("data:", "#"))]


def words(mathml):
    """What a formula shows, and the names of its elements."""
    root = ElementTree.fromstring(mathml)
    names = [element.tag.removeprefix(NAMESPACE) for element in root.iter()]
    return "".join(root.itertext()), names


@pytest.fixture(scope="module")
def prose():
    """All Markdown of the lessons as one notebook."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    sources = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return new_notebook(cells=list(map(new_markdown_cell, sources)))


def test_every_formula_of_the_lessons_is_drawn(prose, monkeypatch):
    results = {}

    def record(latex, display="inline"):
        results[latex] = to_mathml(latex, display)
        return results[latex]

    monkeypatch.setattr(offline_page, "to_mathml", record)
    page = gallery.to_html(prose)
    assert len(results) > 100
    for latex, result in results.items():
        assert result.startswith("<math"), latex
        text, _ = words(result)
        assert "\\" not in text and "&" not in text, latex
        # All that browsers know of this attribute; letters of other kinds have their own code
        assert set(re.findall('mathvariant="(.*?)"', result)) <= {"normal"}, latex
    text = BeautifulSoup(page, "html.parser")
    for element in text.select("pre, code, style, math"):
        element.decompose()
    assert "$" not in text.get_text() and "\\" not in text.get_text()
    assert [entry for entry in loads(page) if not entry.startswith("images/")] == []


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\mathbb E[x] + \mathbb{R} + \mathcal N(0, 1)", "𝔼[x]+ℝ+𝒩(0,1)"),
        (r"a \sim b", "a∼b"),
        (r"a < b", "a<b"),
        (r"\varnothing", "∅"),
        (r"\hat{x}_0 \le \infty", "x0^≤∞"),
    ],
)
def test_letters_and_relations(latex, text):
    assert sorted(words(to_mathml(latex))[0]) == sorted(text)


def test_aligned_lines_are_a_table():
    latex = r"\begin{aligned} a &= b \\ c &= d \end{aligned}"
    text, names = words(to_mathml(latex, "block"))
    assert text == "a=bc=d" and names.count("mtr") == 2 and names.count("mtd") == 4


def test_a_function_stands_apart_from_its_argument_and_not_from_a_bracket():
    space = '<mi>cos</mi><mspace width="0.167em" />'
    assert space in to_mathml(r"\cos\varphi")
    assert space in to_mathml(r"\cos \frac{1}{2}")
    assert "mspace" not in to_mathml(r"\cos(x)") and "mspace" not in to_mathml(r"\cos = x")


def test_accents_are_close():
    for latex in (r"\bar\alpha_t", r"\tilde{x}", r"\hat\epsilon"):
        assert '<mover accent="true">' in to_mathml(latex)


@pytest.mark.parametrize("latex", [r"\foo{x}", r"a & <b>", r"\begin{aligned} a", "", r"\frac"])
def test_what_cannot_be_drawn_stays_readable(latex):
    result = to_mathml(latex)
    assert result.startswith("<math") or result == f"<code>{offline_page.escape(latex)}</code>"
    ElementTree.fromstring(result)


def test_outputs_are_drawn_and_load_nothing():
    widget = "application/vnd.jupyter.widget-view+json"
    data = [
        {"text/latex": r"$\bar\alpha$", "text/plain": "x"},
        {"text/markdown": r"**exercise** $x_0$", "text/plain": "x"},
        {widget: {"model_id": "1", "version_major": 2}, "text/plain": "a slider"},
        {"text/html": "<b>a box</b>", "text/plain": "x"},
    ]
    cell = new_code_cell("draw()", outputs=[new_output("display_data", each) for each in data])
    notebook = new_notebook(cells=[new_markdown_cell("# T\n\n```mermaid\na\n```"), cell])
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    page = gallery.to_html(notebook)
    assert page.count("<math") == 2 and "<b>a box</b>" in page
    assert loads(page) == []
    policy = BeautifulSoup(page, "html.parser").select_one("meta[http-equiv]")
    assert policy["content"].startswith("default-src 'none';")


def test_the_index_loads_only_images_of_its_folder(tmp_path):
    cell = new_code_cell("1", outputs=[new_output("display_data", {"image/png": "AAAA"})])
    notebook = new_notebook(cells=[new_markdown_cell("# T"), cell])
    index = gallery.write_gallery([gallery.Lesson(Path("a.ipynb"), notebook, 1.0)], tmp_path, "")
    assert loads(index.read_text(encoding="utf-8")) == ["a.png"]
    assert loads((tmp_path / "a.html").read_text(encoding="utf-8")) == []


def test_the_test_sees_what_nbconvert_loads():
    page, _ = offline_page.HTMLExporter(template_name="lab").from_notebook_node(new_notebook())
    assert sum("cdnjs" in entry for entry in loads(page)) >= 2
