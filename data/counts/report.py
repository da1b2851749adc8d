"""What became of every source row: counts that a run, `prepare` and `validate` print, so that nothing is silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.render import CHANNEL_NAMES, Example
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.rows.row import BadRow

_KEPT_MESSAGES = 20


@dataclass(slots=True)
class DataReport:
    """Counts over one pass through the sources.

    rows: read, bad ones included. notices: by kind, over rows. bad: by kind; bad_messages: the first few, a line each.
    without_thinking: turns that hold no analysis. too_long: examples left out for their length.
    tokens: of all examples; trained: tokens with weight, by channel. row_tokens: after sharing prefixes (0 until
    laid out).
    """

    rows: int = 0
    conversations: int = 0
    prompts: int = 0
    examples: int = 0
    turns: int = 0
    without_thinking: int = 0
    too_long: int = 0
    tokens: int = 0
    row_tokens: int = 0
    trained: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    bad_messages: list[str] = field(default_factory=list)
    efforts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)

    def add_bad(self, row: BadRow) -> None:
        self.rows += 1
        self.bad[row.kind] += 1
        if len(self.bad_messages) < _KEPT_MESSAGES:
            self.bad_messages.append(row.message)

    def add_conversation(self, conversation: Conversation, effort: str) -> None:
        self.rows += 1
        self.conversations += 1
        self.efforts[effort] += 1
        self.formats[conversation.format or "unnamed"] += 1
        self.notices.update(sorted({notice.kind for notice in conversation.notices}))
        for turn in split_turns(conversation.messages):
            self.turns += 1
            messages = conversation.messages[turn.start : turn.trained_stop]
            self.without_thinking += not any(m.role == "assistant" and m.channel == "analysis" for m in messages)

    def add_example(self, example: Example) -> None:
        self.examples += 1
        self.tokens += len(example.ids)
        counts = np.bincount(example.channels[example.weights > 0], minlength=len(CHANNEL_NAMES)).tolist()
        for name, count in zip(CHANNEL_NAMES[1:], counts[1:], strict=True):
            self.trained[name] += count

    def merge(self, other: DataReport) -> None:
        """Adds the counts of the rows that follow."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, int):
                setattr(self, name, mine + theirs)
        self.bad_messages += other.bad_messages[: _KEPT_MESSAGES - len(self.bad_messages)]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DataReport:
        """A report out of `as_dict`."""
        report = cls()
        for name, default in report.as_dict().items():
            found = value.get(name, default)
            setattr(report, name, Counter(found) if isinstance(default, dict) else found)
        return report

    @property
    def n_bad(self) -> int:
        return sum(self.bad.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in out.items()}

    def lines(self) -> list[str]:
        """The report for a terminal, one fact a line."""
        trained = sum(self.trained.values())
        share = trained / self.tokens if self.tokens else 0.0
        by_channel = ", ".join(f"{name} {count:,}" for name, count in self.trained.items() if count)
        out = [
            f"{self.rows:,} rows: {self.conversations:,} conversations, {self.examples:,} training examples",
            f"{self.tokens:,} tokens, {trained:,} of them trained ({share:.0%}): {by_channel or 'none'}",
        ]
        if 0 < self.row_tokens < self.tokens:
            saved = 1 - self.row_tokens / self.tokens
            out.append(
                f"{self.row_tokens:,} tokens where the turns of a conversation share one row: "
                f"{self.tokens - self.row_tokens:,} saved ({saved:.0%})"
            )
        if self.without_thinking:
            part = self.without_thinking / max(1, self.turns)
            out.append(
                f"warning: {self.without_thinking:,} of {self.turns:,} assistant turns ({part:.0%}) have no thinking; "
                "trained as they are they teach the model to answer without it: see data.missing_thinking"
            )
        if self.too_long:
            out.append(f"warning: {self.too_long:,} examples are longer than data.max_tokens and were left out")
        out += [f"notice: {kind}: {count:,} rows" for kind, count in self.notices.most_common()]
        if self.bad:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.bad.most_common())
            out.append(f"warning: {self.n_bad:,} of {self.rows:,} rows were set aside ({kinds})")
        return out
