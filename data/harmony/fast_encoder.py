"""A faster encoder of the same ids: splintr, which the extra `counterpoint[fast]` installs.

It is taken where it is installed and gives tiktoken's ids for every text of a self-test at start.
`COUNTERPOINT_ENCODER=tiktoken` leaves it out. Source: https://github.com/ml-rust/splintr (MIT licence).
"""

from __future__ import annotations

import os
import random
import warnings
from array import array
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

SWITCH = "COUNTERPOINT_ENCODER"
CHOICES = ("auto", "tiktoken")
# tiktoken's split pattern folds case by Unicode, where ſ is an s: 'ſ is read like 's. splintr folds ASCII only.
LONG_S = "\u017f"

_TEXTS = (
    "it's I'LL don'T we'Ve x'm'd The HTTPServer größer schöner naïve ÉCOLE ǅ ʰa ß İstanbul ﬁne",
    "日本語 東京 مرحبا हिन्दी ² ½ ٣ १२३४ 1234567 3.14 -- ... !? // /\n <|start|> <|call|> { }",
    "\u0301 \u0345 \u200b \u200d 🙂 👋🏽 🇩🇪 \U0001faa9",
)
_PIECES = [piece for text in _TEXTS for piece in text.split(" ")]
_SPACES = (" ", "  ", "\n", "\r\n", "\t", "\n \n", "\xa0", "\u3000", "\u2028", "\x85", "\x0b", "\x00")


class FastEncoder:
    """Ids of plain text by `fast`, or by `slow` (tiktoken) for the few texts that `fast` may encode differently."""

    def __init__(self, fast: Any, slow: Callable[[str], list[int]]) -> None:
        self._fast, self._packed, self._slow = fast.encode_ordinary, fast.encode_flat, slow

    def ids(self, text: str) -> list[int]:
        if LONG_S in text:
            return self._slow(text)
        try:
            return self._fast(text)
        except UnicodeEncodeError:  # a lone surrogate
            return self._slow(text)

    def packed(self, text: str) -> array[int]:
        """The same as an `array("i")`; no Python object of an id is made."""
        if LONG_S in text:
            return array("i", self._slow(text))
        try:
            return array("i", self._packed(text))
        except UnicodeEncodeError:
            return array("i", self._slow(text))


def fast_encoder(ranks: bytes, pattern: str, slow: Callable[[str], list[int]]) -> FastEncoder | None:
    """splintr over the vocabulary file `ranks`; None where it is not installed, switched off, or gives other ids."""
    choice = os.environ.get(SWITCH) or "auto"
    if choice not in CHOICES:
        warnings.warn(f"{SWITCH}={choice}: write {' or '.join(CHOICES)}; tiktoken is used", RuntimeWarning, 2)
    if choice != "auto":
        return None
    try:
        splintr = import_module("splintr")
    except ImportError:
        return None
    try:
        encoder = FastEncoder(splintr.Tokenizer.from_bytes(ranks, pattern), slow)
        wrong = first_difference(encoder, slow)
        if wrong is None:
            return encoder
    except Exception as error:
        wrong = f"it fails ({type(error).__name__}: {error})"[:200]
    warnings.warn(f"splintr is not used, because {wrong}: install the version of counterpoint[fast]", RuntimeWarning, 2)
    return None


def first_difference(encoder: FastEncoder, slow: Callable[[str], list[int]]) -> str | None:
    """Where the encoder's ids are not those of `slow`, in words; None where all texts of the self-test agree."""
    for text in self_test_texts():
        expected = slow(text)
        if encoder.ids(text) != expected or encoder.packed(text).tolist() != expected:
            return f"its ids differ from tiktoken's for {text[:40]!a}"
    return None


def self_test_texts() -> Iterator[str]:
    """Words, marks and spaces of many scripts in every neighbourhood that a fixed seed draws, and long runs."""
    draw = random.Random(0)
    yield ""
    yield from _PIECES
    for _ in range(300):
        some = draw.choices(_PIECES, k=draw.randint(2, 12))
        yield "".join(piece + draw.choice((*_SPACES, "", "", " ")) for piece in some)
    for piece in ("a", "A", "1", " ", "\n", "!", "日", "🙂", "\u0301"):
        yield piece * 300 + "x"
