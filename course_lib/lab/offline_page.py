"""Notebooks as HTML pages that need no network: formulas are MathML, which browsers draw.

nbconvert's own pages load MathJax, require.js and Jupyter's widgets from servers.
"""

import re
from html import escape
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

EXPORTED_DOCS = ("glossary", "notation", "cheat_sheet")  # pages of docs/ that lessons link to
# What is not written in the page itself is not loaded, whatever an output holds. Links work
POLICY = "default-src 'none'; style-src 'unsafe-inline'; font-src data:; img-src 'self' file: data:"
# The scripts are replaced by nothing; LaTeX of an output is converted, too
TEMPLATE = """
{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="POLICY">
{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", math; }
math[display="block"] { margin: 1em 0; font-size: 1.15em; }
mtd[columnalign="left"] { text-align: left; }
mtd[columnalign="right"] { text-align: right; }
</style>
{%- endblock -%}
{%- block data_latex -%}{{ output.data['text/latex'] | markdown2html }}{%- endblock -%}
""".replace("POLICY", POLICY)
# LaTeX that latex2mathml reads otherwise than TeX
REWRITTEN = (
    (r"\\(begin|end)\{(?:aligned|split)\}", r"\\\1{align*}"),
    (r"\\(begin|end)\{gathered\}", r"\\\1{gather*}"),
    (r"\\(math(?:bb|cal|bf|frak|scr)) ?([A-Za-z])", r"\\\1{\2}"),
    (r"\\sim(?![A-Za-z])", "∼"),
)
# A function and its argument: TeX puts a thin space between them, unless a bracket follows
FUNCTION = r"(<mi>(?:arccos|arcsin|arctan|cosh?|exp|ln|log|sinh?|tanh?)</mi>)(?=<m(?!o[ >]))"
ACCENT = r"<mover>(?=(?:(?!<mover).)*?<mo[^>]*>&#x000(?:AF|7E);</mo></mover>)"


def to_mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML; its LaTeX, as code, if that cannot be converted.

    Args:
        latex: without dollar signs.
        display: "inline" or "block".
    """
    text = latex
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text)
    try:
        mathml = convert(text.strip(), display=display)
        ElementTree.fromstring(mathml)  # well-formed: it cannot spoil the page around it
    except Exception:  # it raises many, and a page is worth more than a formula
        mathml = "\\"
    if "\\" in mathml:  # a command that is unknown stays as it is
        return f"<code>{escape(latex.strip())}</code>"
    mathml = re.sub(FUNCTION, r'\1<mspace width="0.167em" />', mathml)
    return re.sub(ACCENT, '<mover accent="true">', mathml)


class OfflineRenderer(IPythonRenderer):
    """Markdown with formulas in MathML, and links that answer on a page outside the repository."""

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link; one to another lesson leads to its page, one to another file is only named."""
        parts = urlsplit(url)
        if parts.scheme or parts.netloc or not parts.path:
            return super().link(text, url, title)
        path = PurePosixPath(parts.path)
        is_lesson = path.suffix == ".ipynb" and path.parent.name == ""
        if is_lesson or (path.suffix == ".md" and path.stem in EXPORTED_DOCS):
            page = f"{path.stem}.html"
            return super().link(text, parts._replace(path=page).geturl(), title)
        return f'<span title="{escape(url)}">{text}</span>'

    def block_math(self, body: str) -> str:
        """A formula in its own line."""
        return to_mathml(body, "block")

    def inline_math(self, body: str) -> str:
        """A formula in a line of text."""
        return to_mathml(body)

    def latex_environment(self, name: str, body: str) -> str:
        """A formula between \\begin and \\end."""
        return to_mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class OfflineExporter(HTMLExporter):
    """JupyterLab's look without scripts and without anything to load."""

    def __init__(self, **kwargs: Any):
        super().__init__(template_name="lab", raw_template=TEMPLATE, **kwargs)

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Convert Markdown, of a cell or an output."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = OfflineRenderer(escape=False, attachments=attachments)
        return MarkdownWithMath(renderer=renderer).render(source)
