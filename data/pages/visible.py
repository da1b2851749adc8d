"""Text of users and models made safe to look at: nothing hidden, nothing that a terminal or a browser would interpret.

Control characters, bidirectional marks, characters without a shape, private ones and lone surrogates come out as
`⟨U+202E⟩`. Line feeds and tabs stay, and so do the joiners that Persian, Indic scripts and emoji need.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from counterpoint.data.harmony.vocabulary import N_TEXT, SPECIAL_IDS, Vocabulary

# Listed, and not taken from a Unicode table: tables differ by version, and new emoji must not be spelled out.
_HIDDEN_RANGES = (
    "00-08 0B-1F 7F-9F AD 34F 61C 115F-1160 17B4-17B5 180E 200B 200E-200F 2028-202E 2060-206F 3164 D800-F8FF FDD0-FDEF "
    "FE00-FE0D FEFF FFA0 FFF0-FFFB FFFE-FFFF 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF F0000-10FFFF "
) + " ".join(f"{plane:X}FFFE-{plane:X}FFFF" for plane in range(1, 15))


def _character_class(ranges: str) -> str:
    ends = [[chr(int(end, 16)) for end in item.split("-")] for item in ranges.split()]
    return "[" + "".join("-".join(map(re.escape, end)) for end in ends) + "]"


_HIDDEN = re.compile(_character_class(_HIDDEN_RANGES))
_BREAKS = re.compile(r" *[\n\t]+ *")
_TYPED = re.compile("|".join(re.escape(name) for name in SPECIAL_IDS))


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one token, or of the few that share one character (`ids`). special: a control token, by its name."""

    ids: tuple[int, ...]
    text: str
    special: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of plain text, or one control token. typed: the text spells a control token's name, which is no token."""

    text: str
    special: bool = False
    typed: bool = False


def visible(text: str) -> str:
    """`text` with every hidden or active character spelled out."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


def visible_line(text: str, longest: int | None = None) -> str:
    """The same on one line, cut after `longest` characters."""
    line = visible(_BREAKS.sub(" ", text))
    return line if longest is None or len(line) <= longest else line[:longest] + "…"


def segments(vocabulary: Vocabulary, ids: Sequence[int]) -> list[Segment]:
    """What to print for `ids`: visible text, control tokens apart from text that only looks like them."""
    out: list[Segment] = []
    start = 0
    for index, id_ in enumerate(ids):
        if id_ >= N_TEXT:
            out.extend(_text_segments(vocabulary, ids[start:index]))
            out.append(Segment(vocabulary.decode([id_]), special=True))
            start = index + 1
    out.extend(_text_segments(vocabulary, ids[start:]))
    return out


def _text_segments(vocabulary: Vocabulary, ids: Sequence[int]) -> list[Segment]:
    if not ids:
        return []
    text = vocabulary.text_bytes(list(ids)).decode("utf-8", errors="backslashreplace")
    if "<|" not in text:
        return [Segment(visible(text))]
    out, done = [], 0
    for found in _TYPED.finditer(text):
        out.append(Segment(visible(text[done : found.start()])))
        out.append(Segment(found.group(), typed=True))
        done = found.end()
    return [segment for segment in (*out, Segment(visible(text[done:]))) if segment.text]


class Pieces:
    """Token by token texts with one vocabulary; a character spread over several tokens is one piece of them all."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._whole: dict[int, Piece | None] = {}

    def of(self, ids: Sequence[int]) -> list[Piece]:
        out: list[Piece] = []
        pending: list[int] = []
        for id_ in ids:
            piece = self._single(id_)
            if pending and (piece is None or not piece.special):
                pending.append(id_)
                raw = self._vocabulary.decode_bytes(pending)
                if not _ends_inside(raw):
                    out.append(_piece(pending, raw))
                    pending = []
                continue
            if pending:
                out.append(_piece(pending, self._vocabulary.decode_bytes(pending)))
                pending = []
            if piece is None:
                pending.append(id_)
            else:
                out.append(piece)
        if pending:
            out.append(_piece(pending, self._vocabulary.decode_bytes(pending)))
        return out

    def _single(self, id_: int) -> Piece | None:
        """The piece of a single token; None where it ends inside a character."""
        if id_ not in self._whole:
            raw = self._vocabulary.decode_bytes([id_])
            special = id_ >= N_TEXT
            self._whole[id_] = None if _ends_inside(raw) and not special else _piece([id_], raw, special)
        return self._whole[id_]


def _piece(ids: Sequence[int], raw: bytes, special: bool = False) -> Piece:
    return Piece(tuple(ids), visible(raw.decode("utf-8", errors="backslashreplace")), special)


def _ends_inside(raw: bytes) -> bool:
    """Whether the bytes end in the middle of a UTF-8 character that is well formed so far."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(raw) and error.reason == "unexpected end of data"
    return False


def cut(vocabulary: Vocabulary, ids: Sequence[int], head: int, tail: int) -> tuple[int, int] | None:
    """Where to fold long `ids`: (stop of the first part, start of the last part), never inside a character.

    None where they are not longer than `head + tail` by a useful amount.
    """
    if len(ids) <= head + tail + max(8, tail // 2):
        return None
    stop, start = (_boundary(vocabulary, ids, index) for index in (head, len(ids) - tail))
    return (stop, start) if start - stop > 0 else None


def _boundary(vocabulary: Vocabulary, ids: Sequence[int], index: int) -> int:
    """The first index from `index` on whose token begins a character."""
    while index < len(ids) and vocabulary.decode_bytes([ids[index]])[:1] in _CONTINUATION:
        index += 1
    return index


_CONTINUATION = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))
