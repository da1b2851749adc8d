"""Rules on the text of a completion: UTF-8, markup spelled in plain tokens, blank bodies, repetition loops.

A table of one byte per token (`token_flags`) shows which tokens can break a rule at all, so that bodies are decoded
only where they hold such a token. Every function here takes time linear in its tokens. The flags of a completion are
`bytes`, one a token: most completions are short, and there `bytes` methods cost a tenth of numpy's calls.

Shapes: L = tokens of one body.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.once import once
from counterpoint.data.harmony.vocabulary import N_TEXT, N_VOCAB, Vocabulary, load_vocabulary

PARTIAL, MARKUP, INK, SPECIAL = 1, 2, 4, 8
"""Flags of a token: not UTF-8 by itself; may begin `<|...|>`; holds more than whitespace; no text at all."""

LOOP_PERIOD, LOOP_REPEATS, LOOP_TOKENS = 512, 4, 256
_MARKUP = re.compile(rb"<\|(?:start|end|message|channel|constrain|return|call)\|>")

Fault = tuple[Code, int, str]


@once
def token_flags() -> npt.NDArray[np.uint8]:
    """Flags by id, shape (N_VOCAB,): one table, since every vocabulary of this project has o200k's ids."""
    flags = bytearray(N_VOCAB)
    flags[N_TEXT:] = bytes([SPECIAL]) * (N_VOCAB - N_TEXT)
    for token, id_ in load_vocabulary().tokens().items():
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


_HARMLESS = bytes([0, INK, SPECIAL])
_PARTIALS = re.compile(b"[%s]" % re.escape(bytes(f for f in range(16) if f & PARTIAL)))
_MARKUPS = re.compile(b"[%s]" % re.escape(bytes(f for f in range(16) if f & MARKUP)))
_INKS = re.compile(b"[%s]" % re.escape(bytes(f for f in range(16) if f & (INK | SPECIAL))))


def is_blank(flags: bytes, start: int, end: int) -> bool:
    """Whether the tokens of `[start, end)` are whitespace only."""
    return _INKS.search(flags, start, end) is None


def may_break_text_rules(flags: bytes) -> bool:
    """Whether any token can break a rule on text, so that `text_faults` has to look."""
    return bool(flags.translate(None, _HARMLESS))


def text_faults(
    ids: list[int], flags: bytes, marks: Sequence[int], region: range, cut: bool, vocabulary: Vocabulary
) -> list[Fault]:
    """Text that is not UTF-8, and spelled markup: the first of each kind in every run of text tokens.

    region: the tokens to look at. marks: positions of special ids. cut: the ids end inside a message, so that their
    last character may be incomplete.
    """
    faults: list[Fault] = []
    first, end = region.start, region.stop
    for suspects, find in ((_PARTIALS, _bad_utf8), (_MARKUPS, _markup)):
        done = first
        while (suspect := suspects.search(flags, done, end)) is not None:
            at = suspect.start()
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


def repetition_loop(body_L: npt.NDArray[np.uint32]) -> tuple[int, int, int] | None:
    """A stretch of the ids `body_L` that repeats itself: its start, period and length in tokens, or None.

    A loop is a stretch of at least LOOP_TOKENS tokens in which every token equals the one `period` before it, for a
    period of at most LOOP_PERIOD, and which holds at least LOOP_REPEATS periods.

    Any loop holds an anchor (there is one every 128 tokens) followed by two full periods: for periods up to 64
    because 256 - 2 * 64 >= 128, for longer ones because 4 * period - 2 * period > 128. So it is enough to look for the
    lags at which the tokens of an anchor return; hashes of 16 tokens, which are inside the loop as well, find them.
    """
    n = len(body_L)
    if n < LOOP_TOKENS:
        return None
    windows_L = body_L.astype(np.uint64)  # hashes of 1, then 2, 4, 8, 16 tokens
    for width, mix in _MIXES:
        windows_L = windows_L[:-width] * mix + windows_L[width:]
    hash_L = np.zeros(n + LOOP_PERIOD, dtype=np.uint64)
    hash_L[: len(windows_L)] = windows_L
    n_anchors = (len(windows_L) + _ANCHORS - 1) // _ANCHORS
    for first in range(0, n_anchors, 1024):
        some = hash_L[first * _ANCHORS :]
        shape = (min(n_anchors - first, 1024), LOOP_PERIOD + 1)
        windows = np.lib.stride_tricks.as_strided(some, shape, (_ANCHORS * 8, 8), writeable=False)
        tried: list[tuple[int, int]] = []
        before = -1
        for hit in np.flatnonzero(windows[:, 1:] == windows[:, :1]).tolist():
            row, lag = divmod(hit, LOOP_PERIOD)
            anchor = (first + row) * _ANCHORS
            if anchor != before:
                tried, before = [], anchor
            found = _loop_at(body_L, anchor, lag + 1, tried)
            if found is not None:
                return found
    return None


_ANCHORS = 128
_MIXES = [(width, np.uint64(0x9E3779B97F4A7C15 ** (width + 2) % 2**64)) for width in (1, 2, 4, 8)]


def _loop_at(
    body_L: npt.NDArray[np.uint32], anchor: int, period: int, tried: list[tuple[int, int]]
) -> tuple[int, int, int] | None:
    """The loop of `period` around `anchor`; `tried` holds smaller periods, and how far from the anchor they reach."""
    at = anchor + period
    again = body_L[at : at + period]
    if len(again) < period or (body_L[anchor:at] != again).any():
        return None
    if any(period % p == 0 and period <= reach for p, reach in tried):
        return None
    start, end = anchor, at + period
    while start > 0 and body_L[start - 1] == body_L[start - 1 + period]:
        start -= 1
    while end < len(body_L) and body_L[end] == body_L[end - period]:
        end += 1
    if end - start >= max(LOOP_TOKENS, LOOP_REPEATS * period):
        return start, period, end - start
    tried.append((period, end - anchor))
    return None
