"""Completions that are wrong in one way only: the rejected side of a preference pair that teaches the format.

Each builder takes a right completion (the ids after `<|start|>assistant`) and returns one that differs in a single
respect, or None where the completion has nothing of the kind. Everything else stays id for id the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from counterpoint.data.harmony.checker import read
from counterpoint.data.harmony.grammar import Span
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, END, RETURN, START, Vocabulary

Negative = Literal[
    "malformed_header", "content_type", "wrong_channel", "leaked_analysis", "empty_analysis", "wrong_terminator"
]

_OTHER_CHANNEL = {"commentary": "analysis", "analysis": "commentary"}


def negative(kind: Negative, completion: Sequence[int], vocabulary: Vocabulary, seed: int = 0) -> list[int] | None:
    """The completion with the fault `kind`. Equal arguments give equal ids.

    malformed_header: one header without its `<|channel|>`, with it twice, without its `<|message|>`, or (where it is no
    call's) with a content type. content_type: the last of these alone. wrong_channel: a tool call on the other of
    commentary and analysis. leaked_analysis: the thoughts are in the final, before the answer. empty_analysis:
    thoughts with nothing in them. wrong_terminator: a final that ends like a preamble, or a call that ends like a
    final.
    """
    ids = list(completion)
    spans = read(ids).scan.spans
    return _BUILDERS[kind](ids, spans, vocabulary, Random(seed))


def fault_masks(right: Sequence[int], wrong: Sequence[int]) -> tuple[list[int], list[int]]:
    """1 for each token of either side that makes the difference: those between their common beginning and their common
    end, and at least the first token after that beginning (where one side only has tokens more)."""
    shortest = min(len(right), len(wrong))
    start = next((i for i in range(shortest) if right[i] != wrong[i]), shortest)
    same = next((i for i in range(shortest - start) if right[-1 - i] != wrong[-1 - i]), shortest - start)
    stops = (max(start + 1, len(ids) - same) for ids in (right, wrong))
    first, second = (
        [int(start <= i < stop) for i in range(len(ids))] for ids, stop in zip((right, wrong), stops, strict=True)
    )
    return first, second


def _malformed_header(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    headers = [(start, span) for start, span in _headers(ids, spans) if CHANNEL in ids[start : span.body_start]]
    if not headers:
        return None
    start, span = random.choice(headers)
    at = ids.index(CHANNEL, start)
    faults = ["no channel", "channel twice", "no message"]
    fault = random.choice([*faults, "content type"] if span.header.recipient is None else faults)
    if fault == "content type":
        return _with_content_type(ids, span, vocabulary)
    if fault == "no channel":
        return ids[:at] + ids[at + 1 :]
    if fault == "channel twice":
        return [*ids[:at], CHANNEL, *ids[at:]]
    return ids[: span.body_start - 1] + ids[span.body_start :]


def _content_type(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    headers = [span for span in spans if span.header.channel is not None and span.header.recipient is None]
    return _with_content_type(ids, random.choice(headers), vocabulary) if headers else None


def _with_content_type(ids: list[int], span: Span, vocabulary: Vocabulary) -> list[int]:
    return [*ids[: span.body_start - 1], *vocabulary.encode(" text"), *ids[span.body_start - 1 :]]


def _wrong_channel(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    calls = [
        (start, span)
        for start, span in _headers(ids, spans)
        if span.header.recipient is not None and span.header.channel in _OTHER_CHANNEL
    ]
    if not calls:
        return None
    start, span = random.choice(calls)
    channel = span.header.channel or ""
    right, wrong = vocabulary.encode(channel), vocabulary.encode(_OTHER_CHANNEL[channel])
    at = ids.index(CHANNEL, start) + 1
    return ids[:at] + wrong + ids[at + len(right) :]


def _leaked_analysis(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    thoughts = [i for span in spans if _is_thought(span) for i in ids[span.body_start : span.body_end]]
    final = next((span for span in spans if span.header.channel == "final" and span.terminator is not None), None)
    if final is None or not thoughts:
        return None
    gap = vocabulary.encode("\n\n")
    return ids[: final.body_start] + thoughts + gap + ids[final.body_start :]


def _empty_analysis(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    thoughts = [span for span in spans if _is_thought(span) and span.body_end > span.body_start]
    if not thoughts:
        return None
    for span in reversed(thoughts):
        ids = ids[: span.body_start] + ids[span.body_end :]
    return ids


def _wrong_terminator(ids: list[int], spans: list[Span], vocabulary: Vocabulary, random: Random) -> list[int] | None:
    if not spans or spans[-1].terminator not in (RETURN, CALL):
        return None
    return [*ids[: spans[-1].body_end], END if spans[-1].terminator == RETURN else RETURN]


def _headers(ids: list[int], spans: list[Span]) -> list[tuple[int, Span]]:
    """Each message with the index at which its header begins."""
    starts = [0, *(index for index, id_ in enumerate(ids) if id_ == START)]
    return [(max(at for at in starts if at < span.body_start), span) for span in spans]


def _is_thought(span: Span) -> bool:
    return span.header.channel == "analysis" and span.header.recipient is None and span.terminator is not None


_BUILDERS: dict[str, Callable[[list[int], list[Span], Vocabulary, Random], list[int] | None]] = {
    "malformed_header": _malformed_header,
    "content_type": _content_type,
    "wrong_channel": _wrong_channel,
    "leaked_analysis": _leaked_analysis,
    "empty_analysis": _empty_analysis,
    "wrong_terminator": _wrong_terminator,
}
