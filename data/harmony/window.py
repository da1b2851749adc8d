"""Which messages a turn sees, and where turns begin and end.

The drop rule of gpt-oss: at the start of a turn, every analysis-channel message before the last final is gone, calls to
built-in tools and their results included; a tool loop that is still open keeps its analysis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from counterpoint.data.conversation import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """Assistant and tool messages [start, stop); [start, trained_stop) ends with its last call or final.

    What follows the last call or final (a trailing result, a preamble without an ending) cannot be sampled as an
    action, so it is not trained. A final ends its turn, also where another assistant message follows at once.
    """

    number: int
    start: int
    stop: int
    trained_stop: int


def split_turns(messages: Sequence[Message]) -> list[Turn]:
    """Assistant turns in order: maximal runs of assistant and tool messages that hold an action."""
    turns: list[Turn] = []
    index, n = 0, len(messages)
    while index < n:
        if messages[index].role != "assistant":
            index += 1
            continue
        start = index
        trained_stop = start
        while index < n and messages[index].role in ("assistant", "tool"):
            message = messages[index]
            index += 1
            if message.role != "assistant":
                continue
            if message.channel == "final":
                trained_stop = index
                break
            if message.recipient is not None:
                trained_stop = index
        if trained_stop > start:
            turns.append(Turn(len(turns), start, index, trained_stop))
    return turns


def history(messages: Sequence[Message], stop: int) -> list[int]:
    """Indices of the messages before `stop` that a turn starting there sees."""
    return next(histories(messages, [stop]))


def histories(messages: Sequence[Message], stops: Iterable[int]) -> Iterator[list[int]]:
    """`history` before each of the ascending `stops`, in one pass over the messages."""
    settled: list[int] = []
    since_final: list[int] = []
    done = 0
    for stop in stops:
        for index in range(done, stop):
            if messages[index].is_final:
                settled += [i for i in since_final if messages[i].channel != "analysis"]
                since_final.clear()
            since_final.append(index)
        done = stop
        yield settled + since_final
