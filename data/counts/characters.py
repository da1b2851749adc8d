"""What the tokenizer makes of a text: characters and tokens by kind (script of letters, numbers, emoji, code, ...).

A token's cost is spread over its bytes, so that the kinds add up to the number of tokens although tokens cross
characters and characters cross tokens.

Shapes: C characters, B bytes, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import regex

from counterpoint.data.harmony.vocabulary import N_TEXT, Vocabulary

CODE, EMOJI, NUMBERS, SPACE, SIGNS, OTHER = "code", "emoji", "numbers", "white space", "punctuation and signs", "other"
SCRIPTS = (
    *("Latin", "Han", "Cyrillic", "Arabic", "Devanagari", "Hiragana", "Katakana", "Hangul", "Greek", "Hebrew", "Thai"),
    *("Bengali", "Tamil", "Telugu", "Kannada", "Malayalam", "Gujarati", "Gurmukhi", "Oriya", "Sinhala", "Khmer", "Lao"),
    *("Myanmar", "Tibetan", "Georgian", "Armenian", "Ethiopic", "Mongolian"),
)
KINDS = (CODE, EMOJI, NUMBERS, SPACE, SIGNS, OTHER, *SCRIPTS)
_CODES = {kind: code for code, kind in enumerate(KINDS)}

# In this order: what comes later wins (Arabic digits are numbers).
_PATTERNS = {
    **{script: rf"\p{{Script={script}}}" for script in SCRIPTS},
    SIGNS: r"[\p{P}\p{S}]",
    SPACE: r"[\s\p{Z}]",
    NUMBERS: r"\p{N}",
    EMOJI: r"[\p{Emoji_Presentation}\p{Emoji_Modifier}\p{Regional_Indicator}\uFE0F\u2600-\u27BF]",
}
_TABLE = 0x20000
_FENCE = regex.compile(r"^((?:`{3,}+)|(?:~{3,}+))[^\n]*+\n.*?(?:^\1[`~]*+[ \t]*+$|\Z)", regex.DOTALL | regex.MULTILINE)


class CharacterCounts:
    """Characters, tokens and texts of each of `KINDS`."""

    def __init__(self) -> None:
        self.characters_K = np.zeros(len(KINDS), dtype=np.int64)
        self.tokens_K = np.zeros(len(KINDS), dtype=np.float64)
        self.rows_K = np.zeros(len(KINDS), dtype=np.int64)
        self.rows = 0

    def add(self, texts: Sequence[str], vocabulary: Vocabulary) -> None:
        """Counts the texts of one row."""
        joined = "".join(texts)
        encoded = [np.frombuffer(vocabulary.encode_array(text), dtype=np.int32) for text in texts if text]
        if not encoded:
            self.rows += 1
            return
        lengths_N = _byte_lengths(vocabulary)[np.concatenate(encoded)]
        points_C = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32)
        widths_C = 1 + (points_C > 0x7F) + (points_C > 0x7FF) + (points_C > 0xFFFF)
        kinds_C = kinds_of(points_C)
        start = 0
        for text in texts:
            for first, last in _fences(text):
                kinds_C[start + first : start + last] = _CODES[CODE]
            start += len(text)
        share_B = np.repeat(1.0 / lengths_N, lengths_N)
        if len(share_B) != int(widths_C.sum()):  # lone surrogates, which the sources refuse
            return
        share_C = np.add.reduceat(share_B, np.cumsum(widths_C) - widths_C)
        self.rows += 1
        self.tokens_K += np.bincount(kinds_C, weights=share_C, minlength=len(KINDS))
        counts_K = np.bincount(kinds_C, minlength=len(KINDS))
        self.characters_K += counts_K
        self.rows_K += counts_K > 0

    def merge(self, other: CharacterCounts) -> None:
        self.characters_K += other.characters_K
        self.tokens_K += other.tokens_K
        self.rows_K += other.rows_K
        self.rows += other.rows

    def as_rows(self) -> list[dict[str, float | int | str]]:
        """Kinds that occur, most characters first."""
        order = [int(k) for k in np.argsort(-self.characters_K, kind="stable") if self.characters_K[k]]
        return [
            {
                "kind": KINDS[k],
                "characters": int(self.characters_K[k]),
                "tokens": round(float(self.tokens_K[k]), 1),
                "tokens_per_character": round(float(self.tokens_K[k] / self.characters_K[k]), 4),
                "rows": int(self.rows_K[k]),
            }
            for k in order
        ]


def kinds_of(points_C: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Index in `KINDS` of each code point."""
    table = _table()
    kinds_C = table[np.minimum(points_C, _TABLE - 1)]
    beyond = points_C >= _TABLE
    if beyond.any():
        kinds_C[beyond & (points_C < 0x33480)] = _CODES["Han"]
    return kinds_C


def _fences(text: str) -> Iterable[tuple[int, int]]:
    if "```" in text or "~~~" in text:
        for match in _FENCE.finditer(text):
            yield match.span()


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.uint8]:
    """Kind of every code point of the first two planes (surrogates: other); about 0.1 s, once a process."""
    table = np.full(_TABLE, _CODES[OTHER], dtype=np.uint8)
    points = [point for point in range(_TABLE) if not 0xD800 <= point < 0xE000]
    text = "".join(map(chr, points))
    numbers = np.array(points)
    for kind, pattern in _PATTERNS.items():
        for match in regex.finditer(f"{pattern}+", text):
            table[numbers[match.start() : match.end()]] = _CODES[kind]
    return table


@lru_cache(maxsize=2)
def _byte_lengths(vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """(N_TEXT,) bytes of each text token."""
    lengths = np.zeros(N_TEXT, dtype=np.int64)
    tokens = vocabulary.tokens()
    lengths[np.fromiter(tokens.values(), dtype=np.int64, count=len(tokens))] = [len(token) for token in tokens]
    return lengths
