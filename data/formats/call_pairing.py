"""Tool results find their calls: by id within the turn, then by name or order; what stays ambiguous is refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Message

AddNotice = Callable[[str, str, str], None]
_FIX = "give every result the id of its call"


@dataclass(slots=True, eq=False)
class Event:
    """A message on its way into a conversation.

    id: of a call, or the one that a result names. group: calls made at once share it. result: what answers a call.
    """

    message: Message
    field: str
    kind: Literal["other", "call", "result"] = "other"
    id: str | None = None
    group: int = -1
    result: Event | None = None


def pair(events: Sequence[Event], options: ConversionSettings, notice: AddNotice) -> list[Message]:
    """Messages in Harmony's order: every call is followed by its result, or calls made at once by all of theirs, as
    `options` say. Raises RowError."""
    messages: list[Message] = []
    turn: list[Event] = []
    called: dict[str, str | None] = {}
    for event in events:
        if event.kind == "call" and event.id is not None:
            other = called.setdefault(event.id, event.message.recipient)
            if other != event.message.recipient:
                what = f"{other} was called with this id before: vLLM names both results after the last, so number them"
                notice("repeated_call_id", event.field, what)
        if event.message.role in ("user", "developer"):
            messages.extend(_pair_turn(turn, options, notice))
            messages.append(event.message)
            turn = []
        else:
            turn.append(event)
    messages.extend(_pair_turn(turn, options, notice))
    return messages


def _pair_turn(turn: list[Event], options: ConversionSettings, notice: AddNotice) -> list[Message]:
    if all(event.kind == "other" for event in turn):
        return [event.message for event in turn]
    _Matcher(options, notice).match(turn)
    messages: list[Message] = []
    events = [event for event in _without_unanswered(turn, options, notice) if event.kind != "result"]
    together = options.parallel_calls == "together"
    for _, group in groupby(events, lambda e: (e.kind, e.group) if together else id(e)):
        calls = list(group)
        messages.extend(call.message for call in calls)
        messages.extend(_result_of(call, notice) for call in calls if call.result is not None)
    return messages


def _result_of(event: Event, notice: AddNotice) -> Message:
    """The result of an answered call, named like the call."""
    assert event.result is not None
    call, result = event.message, event.result.message
    if result.name is not None and not _is_named(event, result.name):
        notice("result_name", event.result.field, f"is named {result.name}, but answers {call.recipient}")
    return replace(result, name=call.recipient, channel=call.channel)


class _Matcher:
    """Sets `result` of the answered calls of one turn."""

    def __init__(self, options: ConversionSettings, notice: AddNotice) -> None:
        self.options = options
        self.notice = notice
        self.open: dict[int, Event] = {}
        self.by_id: dict[str, deque[Event]] = {}
        self.waiting: list[Event] = []
        self.others_at: dict[int, int] = {}

    def match(self, turn: list[Event]) -> None:
        others = 0
        for event in turn:
            if event.kind == "result":
                self.others_at[id(event)] = others
                self._match_by_id(event)
                continue
            self._match_rest()
            if event.kind == "call":
                self.others_at[id(event)] = others
                self.open[id(event)] = event
                if event.id is not None:
                    self.by_id.setdefault(event.id, deque()).append(event)
            else:
                others += 1
        self._match_rest()

    def _match_by_id(self, result: Event) -> None:
        same = self.by_id.get(result.id) if result.id is not None else None
        if not same:
            self.waiting.append(result)
            return
        call = same[0]
        if len(same) > 1:
            self.notice("repeated_call_id", result.field, f"{len(same)} open calls share its id: paired in order")
        first = next(iter(self.open.values()))
        if call is not first and call.group == first.group:
            self.notice("result_order", result.field, "results in another order than their calls: paired by id")
        self._settle(call, result)

    def _match_rest(self) -> None:
        """Results that no id placed: by name where that is unique, then by order where the numbers agree."""
        if not self.waiting:
            return
        unplaced: list[Event] = []
        for result in self.waiting:
            name = result.message.name
            named = [call for call in self.open.values() if name and _is_named(call, name)]
            if result.id is None and len(named) == 1:
                self._settle(named[0], result)
            else:
                unplaced.append(result)
        self.waiting = []
        if len(unplaced) != len(self.open) and unplaced:
            if not self.open:
                what = "a tool result that answers no open call of its turn"
                raise RowError("orphan_result", unplaced[0].field, what, _FIX)
            what = f"{len(unplaced)} results without a usable id for {len(self.open)} open calls"
            raise RowError("ambiguous_results", unplaced[0].field, what, _FIX)
        sure = len(unplaced) == 1
        for call, result in zip(list(self.open.values()), unplaced, strict=False):
            self._guess(call, result, sure)

    def _guess(self, call: Event, result: Event, sure: bool) -> None:
        if result.id is not None and call.id is not None:
            if self.options.unmatched_results == "quarantine":
                what = f"its id {result.id[:60]!r} is that of no open call"
                raise RowError("unmatched_result", result.field, what, _FIX)
            detail = f"its id {result.id[:60]!r} is that of no open call: paired by order"
            self.notice("paired_by_order", result.field, detail)
        elif not sure:
            if self.options.unmatched_results == "quarantine":
                raise RowError("unmatched_result", result.field, "has no id, and several calls are open", _FIX)
            self.notice("paired_by_order", result.field, "without an id: paired by order")
        self._settle(call, result)

    def _settle(self, call: Event, result: Event) -> None:
        call.result = result
        del self.open[id(call)]
        if call.id is not None:
            self.by_id[call.id].remove(call)
        if self.others_at[id(call)] != self.others_at[id(result)]:
            self.notice("result_moved", result.field, "a late result was moved to its call")


def _is_named(call: Event, name: str) -> bool:
    return call.message.recipient in (name, f"functions.{name}")


def _without_unanswered(turn: list[Event], options: ConversionSettings, notice: AddNotice) -> list[Event]:
    """Of the calls made at once, the answered ones, then the first unanswered one; the others are left out."""
    out: list[Event] = []
    groups = [list(g) for _, g in groupby((e for e in turn if e.kind != "result"), lambda e: (e.kind, e.group))]
    for number, group in enumerate(groups):
        unanswered = [e for e in group if e.kind == "call" and e.result is None]
        out.extend(e for e in group if e.kind != "call" or e.result is not None)
        if not unanswered:
            continue
        inside = number + 1 < len(groups)
        if options.calls_without_result == "quarantine" and (inside or len(group) > 1):
            raise RowError("call_without_result", unanswered[0].field, "a call without a result", "add its result")
        if inside or len(unanswered) < len(group):
            notice("call_without_result", unanswered[0].field, "a call without a result was kept, behind the others")
        for event in unanswered[1:]:
            notice("call_dropped", event.field, "a further call without a result was left out")
        out.append(unanswered[0])
    return out
