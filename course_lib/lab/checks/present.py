"""How a check looks: a coloured box in a notebook, the same words as plain text elsewhere.

GitHub removes colours from saved output, and not everybody sees them: a symbol and words say all.
"""

from html import escape
from typing import Any

from IPython.display import display

# Symbol, background and edge of each kind of box
GOOD = ("✔", "#e6f4ea", "#1e7d3c")
BAD = ("✘", "#fdeaea", "#b3261e")
BROKEN = ("⚠", "#fff4e0", "#9a5b00")
OPEN = ("○", "#f1f3f4", "#5f6368")
HINT = ("→", "#e8f0fe", "#1a56b0")

STATUS_SYMBOLS = {
    "right": "✔",
    "not right yet": "✘",
    "stopped with an error": "⚠",
    "not attempted": "○",
}


class Display:
    """One output in several forms; a notebook shows the richest that it can."""

    def __init__(self, plain: str, **rich: str):
        self.plain = plain
        self.rich = {f"text/{kind}": text for kind, text in rich.items()}

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.plain} | self.rich


def box(
    kind: tuple[str, str, str], headline: str, passed: list[str], message: list[str], footer: str
) -> None:
    """Shows a headline, what is right, a message, and what to do next ("" for nothing)."""
    symbol, background, edge = kind
    plain = [f"{symbol} {headline}", *(f"  ✔ {fact}" for fact in passed)]
    plain += [f"  {text}" for text in (*message, footer) if text]
    div = "<div style='margin-top:4px;{}'>{}</div>".format
    parts = [f"<strong>{symbol} {escape(headline)}</strong>"]
    parts += ["".join(f"<br>✔ {escape(fact)}" for fact in passed)]
    parts += [div("white-space:pre-wrap", escape(text)) for text in message]
    parts += [div("color:#444", f"<em>{escape(footer)}</em>")] if footer else []
    css = f"background:{background};color:#222;border-left:5px solid {edge}"
    css += ";padding:8px 12px;max-width:52em"
    display(Display("\n".join(plain), html=f"<div style='{css}'>{''.join(parts)}</div>"))


def code(headline: str, source: str) -> None:
    """Shows source code, highlighted by whatever renders the notebook."""
    source = source.rstrip()
    display(
        Display(f"{headline}\n\n{source}", markdown=f"**{headline}**\n\n```python\n{source}\n```")
    )


def line(text: str) -> None:
    """Shows one line in bold."""
    display(Display(text, markdown=f"**{text}**"))


def dots(difficulty: int) -> str:
    """A difficulty of 1 to 5 as "●●○○○"."""
    return "●" * difficulty + "○" * (5 - difficulty)


def table(rows: list[dict[str, Any]]) -> None:
    """Shows exercises with their status, and how many are right.

    Args:
        rows: one dict per exercise, as `report` returns them.
    """
    head = ("exercise", "title", "minutes", "difficulty", "status", "solved since", "attempts")
    body = [
        (row["id"], row["title"], str(row["minutes"]), dots(row["difficulty"]),
         f"{STATUS_SYMBOLS[row['status']]} {row['status']}", row["solved_since"] or "",
         str(row["attempts"]))
        for row in rows
    ]  # fmt: skip
    total = f"{sum(row['status'] == 'right' for row in rows)} of {len(rows)} right"
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    plain = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *body)]
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    cells.insert(0, "".join(f"<th>{cell}</th>" for cell in head))
    html = "".join(f"<tr>{row}</tr>" for row in cells)
    html = f"<table>{html}</table><strong>{total}</strong>"
    display(Display("\n".join([*plain, total]), html=html))
