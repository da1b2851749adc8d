"""Pieces of the report's page. Every text of a row, a name or a setting goes through `line` or `block`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from counterpoint.data.pages.visible import visible, visible_line
from counterpoint.train.evals.channels import Rate
from counterpoint.train.evals.charts import interval


def line(text: Any) -> str:
    """Any text on one line, escaped, nothing in it hidden."""
    return html.escape(visible_line(str(text), 400))


def block(text: Any) -> str:
    """Any text with its line breaks, escaped, nothing in it hidden."""
    return html.escape(visible(str(text))[:4000])


def section(heading: str, *parts: str, kind: str = "") -> str:
    opened = f'<section class="{kind}">' if kind else "<section>"
    return f"{opened}<h2>{heading}</h2>{''.join(parts)}</section>"


def figure(caption: str, drawn: str) -> str:
    return f"<figure><figcaption>{line(caption)}</figcaption>{drawn}</figure>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{line(text)}</p>' if kind else f"<p>{line(text)}</p>"


def table(texts: Sequence[str], numbers: Sequence[str], rows: str) -> str:
    """A table whose first columns are texts and whose last are numbers; `rows` is HTML."""
    head = "".join(f'<th scope="col">{line(name)}</th>' for name in texts)
    head += "".join(f'<th scope="col" class="n">{line(name)}</th>' for name in numbers)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def row(head: str, texts: Sequence[str], numbers: Sequence[str]) -> str:
    """A row of a table; the cells are HTML."""
    cells = "".join(f"<td>{text}</td>" for text in texts) + "".join(f'<td class="n">{n}</td>' for n in numbers)
    return f'<tr><th scope="row">{head}</th>{cells}</tr>'


def with_interval(rate: Rate) -> str:
    """`0.93 0.86–0.97`, or a dash where nothing was measured."""
    if not rate.n:
        return "–"
    low, high = interval(rate)
    return f"{two(rate)} <small>{low:.2f}–{high:.2f}</small>"


def two(rate: Rate) -> str:
    return "–" if rate.share is None else f"{rate.share:.2f}"


def bar(analysis: float, final: float) -> str:
    """Two shares of the whole width, one behind the other."""
    first = 100 * analysis
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="analysis" width="{first:.2f}" height="10"/>'
        f'<rect class="final" x="{first:.2f}" width="{100 * final:.2f}" height="10"/></svg>'
    )
