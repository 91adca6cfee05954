"""How a check looks: a coloured box in a notebook, the same words as plain text elsewhere.

GitHub removes colours from saved output, and not everybody sees them: a symbol and words say everything.
"""

from html import escape
from typing import Any

from IPython.display import display

GOOD, BAD, BROKEN, OPEN, HINT = (
    ("✔", "#e6f4ea", "#1e7d3c"),
    ("✘", "#fdeaea", "#b3261e"),
    ("⚠", "#fff4e0", "#9a5b00"),
    ("○", "#f1f3f4", "#5f6368"),
    ("→", "#e8f0fe", "#1a56b0"),
)
"""Symbol, background and edge of each kind of box."""


class Words:
    """One display in several forms; a notebook shows the richest that it can."""

    def __init__(self, plain: str, **rich: str):
        self.plain, self.rich = plain, rich

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.plain} | {
            f"text/{kind}": text for kind, text in self.rich.items()
        }


def box(
    kind: tuple[str, str, str], headline: str, proved: list[str], message: list[str], after: str
) -> None:
    """Show a head line, what is right, what is to be said, and what to do next ("" for nothing)."""
    symbol, background, edge = kind
    plain = [f"{symbol} {headline}", *(f"  ✔ {fact}" for fact in proved)]
    plain += [f"  {text}" for text in message] + ([f"  {after}"] if after else [])
    parts = [f"<strong>{symbol} {escape(headline)}</strong>"]
    if proved:
        parts.append("".join(f"<br>✔ {escape(fact)}" for fact in proved))
    parts += [
        f"<div style='margin-top:4px;white-space:pre-wrap'>{escape(text)}</div>" for text in message
    ]
    if after:
        parts.append(f"<div style='margin-top:4px;color:#444'><em>{escape(after)}</em></div>")
    css = f"background:{background};color:#222;border-left:5px solid {edge};padding:8px 12px;max-width:52em"
    display(Words("\n".join(plain), html=f"<div style='{css}'>{''.join(parts)}</div>"))


def code(headline: str, source: str) -> None:
    """Show source code, highlighted by whatever renders the notebook."""
    source = source.rstrip()
    display(
        Words(f"{headline}\n\n{source}", markdown=f"**{headline}**\n\n```python\n{source}\n```")
    )


def line(text: str) -> None:
    """Show one line in bold."""
    display(Words(text, markdown=f"**{text}**"))


def dots(difficulty: int) -> str:
    """Difficulty 1 … 5 as "●●○○○"."""
    return "●" * difficulty + "○" * (5 - difficulty)


def table(rows: list[dict[str, Any]], done: int) -> None:
    """Show exercises with their status, and how many are right."""
    symbols = {
        "right": "✔",
        "not right yet": "✘",
        "stopped with an error": "⚠",
        "not attempted": "○",
    }
    head = ["exercise", "title", "minutes", "difficulty", "status", "attempts"]
    body = [
        [
            row["id"],
            row["title"],
            str(row["minutes"]),
            dots(row["difficulty"]),
            f"{symbols[row['status']]} {row['status']}",
            str(row["attempts"]),
        ]
        for row in rows
    ]
    total = f"{done} of {len(rows)} right"
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    plain = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *body]
    ]
    markup = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    markup += [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    ]
    html = f"<table>{''.join(markup)}</table><strong>{total}</strong>"
    display(Words("\n".join([*plain, total]), html=html))
