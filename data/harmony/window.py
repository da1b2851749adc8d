"""Where the turns of a conversation begin and end, and the actions in them."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Action:
    """Messages [start, stop) of a turn that are sampled in one go, after the prompt that is rendered before them.

    It ends with a call or a final. number counts the actions of the turn from 0. Where sampled ids go on after a call
    (`data.serving: sampled`), a whole turn counts as one, its results between.
    """

    turn: Turn
    number: int
    start: int
    stop: int


def split_actions(messages: Sequence[Message], turn: Turn) -> list[Action]:
    """The actions of a turn in order."""
    actions: list[Action] = []
    start = turn.start
    for index in range(turn.start, turn.trained_stop):
        message = messages[index]
        if message.role != "assistant":
            start = index + 1
        elif message.is_call or message.is_final:
            actions.append(Action(turn, len(actions), start, index + 1))
            start = index + 1
    return actions
