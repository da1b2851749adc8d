"""Rules on the text of a completion: UTF-8, markup spelled in plain tokens, blank bodies, repetition loops.

A table of one byte a token (`token_flags`) tells which tokens can break a rule at all, so that bodies are decoded only
where they hold such a token. Every function here takes time linear in its tokens.

Shapes: N = tokens of a completion.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.vocabulary import N_TEXT, N_VOCAB, Vocabulary, load_vocabulary

PARTIAL, MARKUP, INK, SPECIAL = 1, 2, 4, 8
"""Flags of a token: not UTF-8 by itself; may begin `<|...|>`; holds more than whitespace; no text at all."""

LOOP_PERIOD, LOOP_REPEATS, LOOP_TOKENS = 512, 4, 256
_MARKUP = re.compile(rb"<\|(?:start|end|message|channel|constrain|return|call)\|>")

Fault = tuple[Code, int, str]
Flags_N = npt.NDArray[np.uint8]


@lru_cache(maxsize=1)
def token_flags() -> npt.NDArray[np.uint8]:
    """Flags by id, shape (N_VOCAB,): one table, since every vocabulary of this project has o200k's ids."""
    flags = bytearray(N_VOCAB)
    flags[N_TEXT:] = bytes([SPECIAL]) * (N_VOCAB - N_TEXT)
    text_bytes = load_vocabulary().text_bytes
    for id_ in range(N_TEXT):
        token = text_bytes((id_,))
        flag = 0
        if not token.isascii():
            try:
                flag = 0 if token.decode().isspace() else INK
            except UnicodeDecodeError:
                flag = PARTIAL | INK
        elif not token.isspace():
            flag = INK
        if b"<|" in token or token.endswith(b"<"):
            flag |= MARKUP
        flags[id_] = flag
    return np.frombuffer(bytes(flags), dtype=np.uint8)


def text_faults(
    ids: list[int], flags_N: Flags_N, marks: Sequence[int], region: range, cut: bool, vocabulary: Vocabulary
) -> list[Fault]:
    """Text that is not UTF-8, and spelled markup: the first of each kind in every run of text tokens.

    region: the tokens to look at. marks: positions of special ids. cut: the ids end inside a message, so that their
    last character may be incomplete.
    """
    faults: list[Fault] = []
    first, end = region.start, region.stop
    for flag, find in ((PARTIAL, _bad_utf8), (MARKUP, _markup)):
        done = first
        for at in (np.flatnonzero(flags_N[first:end] & flag) + first).tolist():
            if at < done:
                continue
            k = bisect_right(marks, at)
            start = max(marks[k - 1] + 1, first) if k else first
            done = min(marks[k], end) if k < len(marks) else end
            run = ids[start:done]
            found = find(vocabulary.text_bytes(run), cut and done == len(ids))
            if found is not None:
                code, offset, detail = found
                faults.append((code, start + token_at(run, offset, vocabulary), detail))
    return faults


def _bad_utf8(text: bytes, cut: bool) -> Fault | None:
    try:
        codecs.utf_8_decode(text, "strict", not cut)
    except UnicodeDecodeError as error:
        return Code.NOT_UTF8, error.start, f"byte {text[error.start]:#04x}: {error.reason}"
    return None


def _markup(text: bytes, cut: bool) -> Fault | None:
    del cut
    match = _MARKUP.search(text)
    return None if match is None else (Code.MARKUP_IN_TEXT, match.start(), f"{match.group().decode()} as plain text")


def token_at(ids: Sequence[int], offset: int, vocabulary: Vocabulary) -> int:
    """Index of the text token that holds the byte at `offset` (the last one where it is beyond them)."""
    for at, id_ in enumerate(ids):
        offset -= len(vocabulary.text_bytes((id_,)))
        if offset < 0:
            return at
    return max(len(ids) - 1, 0)


def repetition_loop(body: Sequence[int]) -> tuple[int, int, int] | None:
    """A stretch of `body` that repeats itself: its start, period and length in tokens, or None.

    A loop is a stretch of at least LOOP_TOKENS tokens in which every token equals the one `period` before it, for a
    period of at most LOOP_PERIOD, and which holds at least LOOP_REPEATS periods. Of several the first is told.
    Anchors stand so near to each other that any loop holds one with two whole periods behind it.
    """
    best: tuple[int, int, int] | None = None
    shortest = 1
    for longest in (64, 128, 256, LOOP_PERIOD):
        stride = max(longest, LOOP_TOKENS // 2)
        if len(body) < max(LOOP_TOKENS, LOOP_REPEATS * shortest):
            break
        for anchor in range(0, len(body) - shortest, stride):
            found = _loop_at(body, anchor, shortest, longest)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
                break
        shortest = longest + 1
    return best


def _loop_at(body: Sequence[int], anchor: int, shortest: int, longest: int) -> tuple[int, int, int] | None:
    """The loop around `anchor` with a period from `shortest` to `longest`."""
    token, stop = body[anchor], min(anchor + longest + 1, len(body))
    at = anchor + shortest - 1
    tried: list[tuple[int, int]] = []  # periods, and the length from the anchor that they hold for
    while True:
        try:
            at = body.index(token, at + 1, stop)
        except ValueError:
            return None
        period = at - anchor
        if body[anchor:at] != body[at : at + period] or any(period % p == 0 and period <= n for p, n in tried):
            continue
        start, end = anchor, at + period
        while start > 0 and body[start - 1] == body[start - 1 + period]:
            start -= 1
        while end < len(body) and body[end] == body[end - period]:
            end += 1
        if end - start >= max(LOOP_TOKENS, LOOP_REPEATS * period):
            return start, period, end - start
        tried.append((period, end - anchor))
