"""Explained conversations as lines of a terminal, in colour or plain.

In colour, trained text is bold in the colour of its channel and everything else is dim. Plain output brackets trained
text ⟦like this⟧, and names channels in the margin either way. The colours are distinguishable with any colour vision
and readable on dark and light backgrounds. Every text goes through `counterpoint.data.pages.visible`: nothing in a row
reaches the terminal as a control sequence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from counterpoint.data.harmony import reasons
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.pages.colours import TERMINAL
from counterpoint.data.pages.visible import cut, segments, visible_line
from counterpoint.data.show.explain import Block, Explained, ExplainedExample, ExplainedSpan

_WARNING = TERMINAL["commentary"]
_OPEN, _CLOSE = "⟦", "⟧"
_MARGIN = 17
_CONTEXT_FOLD = (90, 30)
_TRAINED_FOLD = (800, 200)
MAX_TURNS = 12


@dataclass(frozen=True, slots=True)
class View:
    """plain: no colours, brackets instead. full: nothing folded. turn: only this one (from 0), in full context."""

    plain: bool = False
    full: bool = False
    turn: int | None = None


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console_for(plain: bool = False) -> Console:
    """Standard output. Its `color_system` is None where output is to be plain: asked for, a pipe, NO_COLOR."""
    if plain or os.environ.get("NO_COLOR"):
        return _Console(color_system=None)
    console = _Console()
    return console if console.is_terminal and not console.is_dumb_terminal else _Console(color_system=None)


class TerminalView:
    """Prints rows to one console."""

    def __init__(self, console: Console, vocabulary: Vocabulary, view: View) -> None:
        self.console = console
        self.vocabulary = vocabulary
        self.view = view
        self._openings: dict[str, tuple[int, ...]] = {}
        self.wrap = None if view.plain else max(20, console.width - _MARGIN - 1)

    def legend(self) -> None:
        """How to read what follows, on one line."""
        typed = "\\<|end|> with a backslash is typed text, not a token"
        if self.view.plain:
            self.line(f"{_OPEN}trained{_CLOSE}, all else is context; {typed}")
            return
        legend = Text().append("trained: ", style="dim")
        for channel in TERMINAL:
            legend.append(channel, style=_trained_style(channel)).append("  ")
        self.line(legend.append(f"all else is context; {typed}", style="dim"))

    def line(self, text: Text | str = "") -> None:
        """One line of output, which must be safe to print."""
        if self.view.plain:
            self.console.file.write(f"{text.plain if isinstance(text, Text) else text}\n")
        else:
            self.console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)

    def bad_row(self, message: str) -> None:
        """A row that cannot be used."""
        self.line()
        self.line(Text("✗ ", style=f"bold {_WARNING}").append(visible_line(message), style=_WARNING))

    def row(self, row: Explained) -> None:
        """A row with its notices and examples; what an earlier turn has shown is folded to one line."""
        self.line()
        turns = f"{row.turns:,} turn{'s' * (row.turns != 1)}" if row.kind == "conversation" else row.kind
        heading = f"{row.source} · {row.format or 'unnamed'} · {turns} · effort {row.effort} ({row.effort_reason})"
        self.line(Text(f"━━ {visible_line(heading)}", style="bold"))
        self._notices(row)
        seen: set[int] = set()
        for example in row.examples:
            self._example(row, example, seen)
            if not self.view.full and not example.side:
                seen.update(block.message for block in example.blocks if block.spans)
        self._rest(row)

    def _rest(self, row: Explained) -> None:
        if row.kind != "conversation":
            return
        last = row.examples[-1] if row.examples else None
        if last is None or last.turn is None:
            asked = "" if self.view.turn is None else f" {self.view.turn + 1}"
            self.line(Text(f"   no turn{asked}: the row has {row.turns:,}", style=_WARNING))
        elif self.view.turn is None and not last.whole and last.turn + 1 < row.turns:
            rest = row.turns - 1 - last.turn
            self.line(Text(f"   … {rest:,} more turns (--turn K shows one, --full all)", style="dim"))

    def _notices(self, row: Explained) -> None:
        for notice, count in row.notice_counts:
            kind = notice.kind + (f" ×{count:,}" if count > 1 else "")
            text = visible_line(f"{notice.field}: {notice.detail}", 200)
            self.line(Text().append("   ! ", _WARNING).append(kind, f"bold {_WARNING}").append(f"  {text}", _WARNING))

    def _example(self, row: Explained, example: ExplainedExample, seen: set[int]) -> None:
        parts = [] if example.turn is None else [f"turn {example.turn + 1:,} of {row.turns:,}"]
        if example.actions > 1:
            parts.append(f"action {example.action + 1:,} of {example.actions:,}")
        parts = [f"all {row.turns} turns in one sequence"] if example.whole else parts
        parts = [example.side] if example.side else parts
        parts.append(f"{example.n_tokens:,} tokens")
        by_channel = ", ".join(f"{name} {count:,}" for name, count in example.trained.items())
        parts.append(f"{example.n_trained:,} trained" + (f" ({by_channel})" if by_channel else ""))
        self.line()
        self.line(Text().append("── ", style="dim").append(" · ".join(parts), style="bold"))
        if example.left_out:
            self.line(Text(f"   ✗ {visible_line(example.left_out)}", style=_WARNING))
        above: list[Block] = []
        for block in example.blocks:
            if block.message < 0 and block.spans and not seen and self._known(block):
                self._margin("", block.label, Text("as in the row before", style="dim"))
                continue
            if seen and (block.label == "dropped" or (block.message in seen and not block.trained and not block.again)):
                above.append(block)
                continue
            self._above(above)
            above = []
            self._block(block)
        self._above(above)

    def _known(self, block: Block) -> bool:
        """Whether the last row had the same system or developer message, where rows are folded."""
        if self.view.full or self.view.turn is not None:
            return False
        ids = tuple(block.spans[0].ids)
        before, self._openings[block.label] = self._openings.get(block.label), ids
        return ids == before

    def _above(self, blocks: list[Block]) -> None:
        """One line for messages shown above already, and one for those that are dropped between them."""
        kept = [block for block in blocks if block.spans]
        missing = tuple(item for block in blocks for item in block.missing)
        if kept:
            tokens = sum(block.n_tokens for block in kept)
            self._margin("…", "above", Text(f"{len(kept)} messages as context, {tokens:,} tokens", style="dim"))
        if missing:
            self._margin("", "dropped", Text(visible_line(reasons.dropped(missing)), style="dim italic"))

    def _block(self, block: Block) -> None:
        number = str(block.message + 1) if block.message >= 0 else ""
        label = Text(block.label, style=_label_style(block))
        if not block.spans:
            self._margin("", label, Text(visible_line(block.note), style="dim italic"), block)
            return
        self._margin(number, label, self._body(block), block)
        for reason in block.reasons:
            self._margin("", "", Text(f"↳ {visible_line(reason)}", style="dim italic"), block)

    def _lines(self, body: Text) -> Iterable[Text]:
        for line in body.split("\n", allow_blank=True):
            line.expand_tabs(4)
            if self.wrap is None or len(line) <= self.wrap // 2:
                yield line
            else:
                yield from line.wrap(self.console, self.wrap)

    def _margin(self, number: str, label: str | Text, text: Text, block: Block | None = None) -> None:
        """Text in its margin: number, label, and a bar in the colour of the channel where the block is trained."""
        channel = block.channel if block is not None else "context"
        trained = block is not None and block.trained
        head = Text().append(f"{number:>4} ", style="dim")
        head.append_text(label if isinstance(label, Text) else Text(label, style="dim"))
        for line in self._lines(text):
            head.append(" " * (_MARGIN - 2 - len(head)))
            head.append("┃ " if trained else "│ ", style=TERMINAL.get(channel, "dim") if trained else "dim")
            self.line(head.append_text(line))
            head = Text()

    def _body(self, block: Block) -> Text:
        body = Text()
        weight = 0.0
        for span in block.spans:
            if not span.ids:
                continue
            if span.weight != weight:
                _bracket(body, weight, span.weight, plain=self.view.plain)
                weight = span.weight
            for text, style in self._styled(span):
                body.append(text, style=style)
        _bracket(body, weight, 0.0, plain=self.view.plain)
        return body

    def _styled(self, span: ExplainedSpan) -> Iterator[tuple[str, str]]:
        style = _trained_style(span.channel) if span.trained else "dim"
        special = f"{TERMINAL.get(span.channel, '')} not bold" if span.trained else "dim"
        limits = _TRAINED_FOLD if span.trained else _CONTEXT_FOLD
        folded = None if self.view.full else cut(self.vocabulary, span.ids, *limits)
        yield from self._texts(span.ids if folded is None else span.ids[: folded[0]], style, special)
        if folded is not None:
            yield f" … {folded[1] - folded[0]:,} tokens folded … ", "dim italic"
            yield from self._texts(span.ids[folded[1] :], style, special)

    def _texts(self, ids: Sequence[int], style: str, special: str) -> Iterator[tuple[str, str]]:
        for segment in segments(self.vocabulary, ids):
            yield ("\\" + segment.text if segment.typed else segment.text), special if segment.special else style


def _bracket(body: Text, old: float, new: float, plain: bool) -> None:
    """Closes a run of trained text that had weight `old`, and opens one of weight `new`."""
    if old > 0:
        body.append((_CLOSE if plain else "") + (f"×{old:g}" if old != 1 else ""), style="dim")
    if new > 0 and plain:
        body.append(_OPEN)


def _trained_style(channel: str) -> str:
    return f"bold {'italic ' if channel == 'analysis' else ''}{TERMINAL.get(channel, '')}".strip()


def _label_style(block: Block) -> str:
    if block.trained:
        return f"bold {TERMINAL.get(block.channel, '')}".strip()
    return "dim"
