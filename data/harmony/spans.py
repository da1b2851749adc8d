"""What the renderer makes: spans of ids that share their weight and its reason, and examples as arrays of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from counterpoint.data.conversation import Notice
from counterpoint.data.harmony.reasons import Why
from counterpoint.data.harmony.vocabulary import MESSAGE
from counterpoint.data.harmony.window import Action

CONTEXT, ANALYSIS, COMMENTARY, FINAL = 0, 1, 2, 3
CHANNEL_NAMES = ("context", "analysis", "commentary", "final")
CHANNEL_CODES = {name: code for code, name in enumerate(CHANNEL_NAMES)}

ANY_MESSAGE = -3
"""`Span.message` of a span that many messages share."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    ids (N,) int32; weights (N,) float32, the loss weight of predicting ids[i], 0 = context; channels (N,) uint8, codes
    of `CHANNEL_NAMES` for the tokens of the target, `CONTEXT` elsewhere. turn counts assistant turns from 0, action the
    actions of the turn.
    """

    source: str
    turn: int
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    channels: npt.NDArray[np.uint8]
    notices: tuple[Notice, ...] = ()
    action: int = 0


def actions_of(example: Example) -> list[tuple[int, int]]:
    """(start, stop) of each action of an example: what is sampled between the prompt or a result and a stop token."""
    inside_N = example.channels != CONTEXT
    first = int(inside_N.argmax())
    if inside_N[first:].all():
        return [(first, len(inside_N))]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside_N, [False]]).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


@dataclass(slots=True, eq=False)
class Span:
    """Ids that are treated alike. Not to be changed; not frozen, because that makes it three times as slow to make.

    weight: the product of the factors in `why`, which holds none that is 1. message: index in the conversation, -1 for
    the opening, -2 for a `<|start|>assistant` of the prompt, -3 for the header, the terminator and a trained
    `<|start|>assistant`, which all messages of one kind share (`Renderer.spans` distinguishes them). part: `system`,
    `developer`, `context`, `prompt`, or a field of `ChannelWeights`.
    """

    ids: array[int]
    weight: float
    why: Why
    channel: int
    message: int
    part: str


@dataclass(frozen=True, slots=True)
class Form:
    """What trained messages of one kind share. body: weight, why, channel and part of the span of the content."""

    header: Span
    body: tuple[float, Why, int, str]
    end: Span


def has_loss(spans: Iterable[Span]) -> bool:
    """Whether any token has a loss weight."""
    return any(span.weight > 0 and span.ids for span in spans)


def placed(spans: Sequence[Span]) -> list[Span]:
    """`spans` with the message of each: a header belongs to the body after it, what follows a body belongs to that
    body."""
    out = list(spans)
    for at, span in enumerate(out):
        if span.message == ANY_MESSAGE:
            is_header = span.ids[-1] == MESSAGE
            out[at] = replace(span, message=out[at + 1 if is_header else at - 1].message)
    return out


class SpanArrays:
    """Spans of one turn after the other -> arrays. Context that two turns share is laid out once."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._ends: list[int] = []
        self._ids = array("i")

    def of(self, spans: list[Span]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """ids, weights and channels of an example."""
        shared = 0
        for old, new in zip(self._spans, spans, strict=False):
            if old is not new:
                break
            shared += 1
        ids, ends = self._ids, self._ends
        del ids[ends[shared - 1] if shared else 0 :], ends[shared:]
        new = spans[shared:]
        parts = [span.ids for span in new]
        starts = [*accumulate(map(len, parts), initial=len(ids))]
        ids.frombytes(b"".join(parts))
        ends += starts[1:]
        self._spans = spans
        weights_N = np.zeros(len(ids), dtype=np.float32)
        channels_N = np.zeros(len(ids), dtype=np.uint8)
        begun, weight, channel = 0, 0.0, CONTEXT
        for start, span in zip(starts, new, strict=False):
            if span.weight != weight or span.channel != channel:
                if channel:
                    weights_N[begun:start] = weight
                    channels_N[begun:start] = channel
                begun, weight, channel = start, span.weight, span.channel
        if channel:
            weights_N[begun:] = weight
            channels_N[begun:] = channel
        return np.array(ids, dtype=np.int32), weights_N, channels_N


ActionSpans = tuple[Action, int, list[Span], list[Span]]
"""An action; how many spans of the context before it stay, of those that the action before had; the spans of the
context that follow; and what is sampled, with results inside it."""


def whole_spans(actions: Iterable[ActionSpans]) -> Iterator[tuple[Action, list[Span]]]:
    """Each action with all spans of its example."""
    history: list[Span] = []
    for action, kept, seen, target in actions:
        history[kept:] = seen
        yield action, [*history, *target]
