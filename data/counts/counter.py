"""The outcome of every source row: the counts of training, `prepare`, `validate`, `show` and prepared folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.rows.row import BadRow

Item = Conversation | Preference | BadRow

UNUSED = frozenset({"unused_field", "unread_field"})
_KEPT_MESSAGES = 20
_KEPT_FIELDS = 100


@dataclass(slots=True)
class RowCounter:
    """Counts over one pass through the sources; the fields are the keys of `as_dict`, which prepared folders hold.

    rows: read, bad ones included. prompts: good rows that give no example, whatever its length. turns: of the
    assistant, in good rows; without_thinking: those that hold no analysis. too_long: examples left out for their
    length. tokens: of all examples; trained: tokens with weight, by channel. row_tokens: after sharing prefixes (0
    until laid out). kinds, formats, efforts: good rows (efforts: rendered ones). notices: rows by kind;
    first_notices: where each kind was first met. unused: rows by field that no rule reads (the first hundred of them);
    unused_samples: a value of each. bad: rows by kind; bad_messages: the first few, a line each. actions: trained ones
    that were judged, in good rows; bad_targets: those of them that break a rule and are trained all the same, by code;
    first_bad_targets: where each code was first met.
    """

    rows: int = 0
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
    kinds: Counter[str] = field(default_factory=Counter)
    first_notices: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    unused_samples: dict[str, str] = field(default_factory=dict)
    actions: int = 0
    bad_targets: Counter[str] = field(default_factory=Counter)
    first_bad_targets: dict[str, str] = field(default_factory=dict)

    @property
    def n_bad(self) -> int:
        return self.bad.total()

    @property
    def n_good(self) -> int:
        return self.rows - self.n_bad

    def add(self, item: Item, effort: str | None = None) -> None:
        """Counts one row. effort: the one that it was rendered with, if it was."""
        self.rows += 1
        if isinstance(item, BadRow):
            self.bad[item.kind] += 1
            if len(self.bad_messages) < _KEPT_MESSAGES:
                self.bad_messages.append(item.message)
            return
        conversation = item.prompt if isinstance(item, Preference) else item
        self.kinds[kind_of(item)] += 1
        self.formats[conversation.format or "unnamed"] += 1
        if effort is not None:
            self.efforts[effort] += 1
        if conversation.notices:
            self._add_notices(conversation)
        for turn in split_turns(conversation.messages):
            self.turns += 1
            messages = conversation.messages[turn.start : turn.trained_stop]
            self.without_thinking += not any(m.role == "assistant" and m.channel == "analysis" for m in messages)

    def _add_notices(self, conversation: Conversation) -> None:
        for notice in conversation.notices:
            if notice.kind not in self.first_notices:
                self.first_notices[notice.kind] = f"{conversation.source}: {notice.field}: {notice.detail}"
            if notice.kind in UNUSED and (notice.field in self.unused or len(self.unused) < _KEPT_FIELDS):
                self.unused[notice.field] += 1
                self.unused_samples.setdefault(notice.field, notice.detail.partition(": ")[2])
        self.notices.update(sorted({notice.kind for notice in conversation.notices}))

    def add_examples(self, tree: ExampleTree, chosen: npt.NDArray[np.int32] | None = None) -> None:
        """The examples of a row, of those `chosen` by number where it is given."""
        lengths = tree.lengths
        runs = np.arange(len(tree.run_start)) if chosen is None else tree.runs_of(chosen)
        self.examples += len(lengths if chosen is None else chosen)
        self.tokens += int((lengths if chosen is None else lengths[chosen]).sum(dtype=np.int64))
        counts = tree.tokens_by_channel(runs[tree.run_weight[runs] > 0]).tolist()
        for name, count in zip(CHANNEL_NAMES[1:], counts[1:], strict=True):
            self.trained[name] += count

    def add_targets(self, source: str, actions: int, kept: Sequence[tuple[str, str]]) -> None:
        """Counts the judged actions of a good row. kept: each broken rule by its code, and where."""
        self.actions += actions
        for code, where in kept:
            self.bad_targets[code] += 1
            self.first_bad_targets.setdefault(code, f"{source}: {where}")

    def merge(self, other: RowCounter) -> None:
        """Adds the counts of the rows that follow."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            elif isinstance(mine, int):
                setattr(self, name, mine + theirs)
        self.bad_messages += other.bad_messages[: _KEPT_MESSAGES - len(self.bad_messages)]
        self.first_notices = other.first_notices | self.first_notices
        self.unused_samples = other.unused_samples | self.unused_samples
        self.first_bad_targets = other.first_bad_targets | self.first_bad_targets

    def check_bad_rows(self, limit: float, where: str) -> None:
        """Raises DataError where more than the share `limit` of the rows are bad; `where` names the sources."""
        if self.n_bad > limit * self.rows:
            raise DataError(
                f"{where}: {self.n_bad} of {self.rows} rows are bad, more than data.bad_rows_limit ({limit:.0%}) "
                f"allows: {'; '.join(self.bad_messages[:3])}: run `counterpoint validate` and fix or remove them"
            )

    def check_too_long(self, max_tokens: int, where: str, noun: str = "example") -> None:
        """Raises DataError where a `noun` was longer than `max_tokens`; `where` names the sources."""
        if self.too_long:
            raise DataError(
                f"{where}: {self.too_long} {noun}s are longer than data.max_tokens ({max_tokens}): "
                "raise it, or set data.too_long: drop"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON. `conversations` are the good rows."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}
        return {"rows": self.rows, "conversations": self.n_good, **plain}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RowCounter:
        """The counts out of `as_dict`; what an older version did not count is empty."""
        counter = cls()
        for f in fields(cls):
            default = getattr(counter, f.name)
            setattr(counter, f.name, type(default)(value.get(f.name, default)))
        return counter


def kind_of(row: Conversation | Preference) -> str:
    """`preference`, `prompt` (no assistant message, or a question for RL), or `conversation`."""
    if isinstance(row, Preference):
        return "preference"
    messages = row.messages
    if messages[-1].role == "assistant":
        return "conversation"
    return "conversation" if row.format != "rl" and split_turns(messages) else "prompt"
