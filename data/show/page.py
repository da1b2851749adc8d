"""Explained rows -> one self-contained HTML page, from `page.html` and `page.js` next to this file.

All texts are data: JSON in which `<`, `>` and `&` are escaped, written by the page's own script as text nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.pages.templates import render_page, text_file
from counterpoint.data.pages.visible import Pieces, cut, visible_line
from counterpoint.data.rows.row import BadRow
from counterpoint.data.show.explain import Block, Explained, ExplainedExample, ExplainedSpan

MAX_TOKENS = 1_500_000
"""Tokens that a page holds at most (a text that comes again counts once): it then has about 12 MB."""
_FOLD = (2_400, 400)


class PageBuilder:
    """Collects rows until the page is full, then writes it. Texts that come again are stored once."""

    def __init__(self, vocabulary: Vocabulary, max_examples: int, max_tokens: int = MAX_TOKENS) -> None:
        self.examples: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.max_examples = max_examples
        self.max_tokens = max_tokens
        self.tokens = 0
        self._vocabulary = vocabulary
        self._pieces = Pieces(vocabulary)
        self._words: dict[str, str] = {}
        self._ids: list[list[int | list[int]]] = []
        self._known: dict[tuple[int, ...], int] = {}
        self._reasons: dict[str, int] = {"": 0}

    @property
    def full(self) -> bool:
        return len(self.examples) >= self.max_examples or self.tokens >= self.max_tokens

    def add(self, row: Explained | BadRow) -> None:
        """Adds the row and as many of its examples as there is room for."""
        if isinstance(row, BadRow):
            self.rows.append({"source": visible_line(row.source), "bad": visible_line(row.message), "kind": row.kind})
            self.examples.append({"row": len(self.rows) - 1})
            return
        notices = [[n.kind, count, visible_line(f"{n.field}: {n.detail}", 400)] for n, count in row.notice_counts]
        self.rows.append(
            {
                "source": visible_line(row.source),
                "format": visible_line(row.format),
                "kind": row.kind,
                "turns": row.turns,
                "effort": row.effort,
                "why": row.effort_reason,
                "notices": notices,
            }
        )
        for example in row.examples:
            if self.full:
                return
            self.examples.append(self._example(example))

    def told(self) -> str:
        """How much the page holds."""
        examples, rows = len(self.examples), len(self.rows)
        text = f"{examples:,} example{'s' * (examples != 1)} of {rows:,} row{'s' * (rows != 1)}"
        return f"{text}; the page is full, --limit N and --rows A:B choose others" if self.full else text

    def page(self, title: str, facts: Sequence[str]) -> str:
        """The page. `facts` are lines under its title."""
        data = {
            "title": visible_line(title),
            "facts": [visible_line(fact) for fact in facts],
            "channels": CHANNEL_NAMES,
            "words": self._words,
            "ids": self._ids,
            "reasons": list(self._reasons),
            "rows": self.rows,
            "examples": self.examples,
        }
        return render_page(
            "data/show/page.html",
            title=f"{title} · counterpoint show",
            script=text_file("data/show/page.js"),
            data=as_json(data),
        )

    def _example(self, example: ExplainedExample) -> dict[str, Any]:
        return {
            "row": len(self.rows) - 1,
            "turn": example.turn,
            "action": example.action,
            "actions": example.actions,
            "whole": example.whole,
            "side": example.side,
            "leftOut": visible_line(example.left_out),
            "tokens": example.n_tokens,
            "trained": dict(example.trained),
            "blocks": [self._block(block) for block in example.blocks],
        }

    def _block(self, block: Block) -> dict[str, Any]:
        return {
            "label": block.label,
            "number": block.message + 1,
            "channel": block.channel,
            "name": visible_line(block.name),
            "reasons": [self._reason(reason) for reason in block.reasons],
            "spans": [self._span(span) for span in block.spans if span.ids],
        }

    def _span(self, span: ExplainedSpan) -> list[Any]:
        channel, weight = CHANNEL_NAMES.index(span.channel), round(span.weight, 6)
        return [self._stored(span.ids), span.position, weight, channel, span.kind, self._reason(span.reason)]

    def _reason(self, reason: str) -> int:
        return self._reasons.setdefault(visible_line(reason), len(self._reasons))

    def _stored(self, ids: Sequence[int]) -> int:
        """Index of the ids in the page; tokens that share a character are a list there, a gap is minus its length."""
        key = tuple(ids)
        if key in self._known:
            return self._known[key]
        folded = cut(self._vocabulary, ids, *_FOLD)
        stored: list[int | list[int]] = []
        if folded is None:
            stored.extend(self._written(ids))
        else:
            stop, start = folded
            stored.extend(self._written(ids[:stop]))
            stored.append(stop - start)
            stored.extend(self._written(ids[start:]))
        self._ids.append(stored)
        self._known[key] = len(self._ids) - 1
        self.tokens += len(stored)
        return len(self._ids) - 1

    def _written(self, ids: Sequence[int]) -> list[int | list[int]]:
        out: list[int | list[int]] = []
        for piece in self._pieces.of(ids):
            self._words[",".join(map(str, piece.ids))] = piece.text
            out.append(piece.ids[0] if len(piece.ids) == 1 else list(piece.ids))
        return out


def as_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe in a script element: no `<`, `>`, `&`, and none of JavaScript's own line separators."""
    text = orjson.dumps(data).decode("utf-8")
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
