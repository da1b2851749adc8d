from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from counterpoint.data.harmony.vocabulary import CALL, START, load_vocabulary
from counterpoint.data.pages.visible import Piece, Pieces, Segment, cut, segments, visible, visible_line

VOCABULARY = load_vocabulary()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x07", "⟨U+001B⟩[31mred⟨U+0007⟩"),
        ("a\x00\r\x7f\x9b", "a⟨U+0000⟩⟨U+000D⟩⟨U+007F⟩⟨U+009B⟩"),
        ("\u202egnp.exe\u2066\u200f", "⟨U+202E⟩gnp.exe⟨U+2066⟩⟨U+200F⟩"),
        ("soft\u00adhyphen\u200b\ufeff", "soft⟨U+00AD⟩hyphen⟨U+200B⟩⟨U+FEFF⟩"),
        ("\U000e0041\ue000\ufdd0\u2028", "⟨U+E0041⟩⟨U+E000⟩⟨U+FDD0⟩⟨U+2028⟩"),
        ("می\u200cروم 🙂\u200d↔\ufe0f é", "می\u200cروم 🙂\u200d↔\ufe0f é"),
        ("\ud800", "⟨U+D800⟩"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, expected: str) -> None:
    assert visible(text) == expected


DIRECTION = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN", "B", "S")


@given(st.text(st.characters() | st.sampled_from(["\U000e0100", "\u115f", "\u034f", "\u061c", "\u200e"])))
def test_nothing_hidden_is_left(text: str) -> None:
    shown = visible(text)
    assert not set(shown) & {"\U000e0100", "\u115f", "\u034f", "\u061c", "\u200e"}
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp") and c not in "\n\t"]
    assert not [c for c in shown if unicodedata.bidirectional(c) in DIRECTION and c not in "\n\t\u200c\u200d"]
    assert visible(shown) == shown


def test_one_line() -> None:
    assert visible_line("a \n\tb\rc") == "a b⟨U+000D⟩c"
    assert visible_line("abcdef", 3) == "abc…"
    assert visible_line("abc", 3) == "abc"


def test_control_tokens_are_apart_from_text_that_only_looks_like_them() -> None:
    ids = [START, *VOCABULARY.encode("a <|start|>\x1b"), CALL, 200_050]
    assert segments(VOCABULARY, ids) == [
        Segment("<|start|>", special=True),
        Segment("a "),
        Segment("<|start|>", typed=True),
        Segment("⟨U+001B⟩"),
        Segment("<|call|>", special=True),
        Segment("<|reserved_200050|>", special=True),
    ]
    assert segments(VOCABULARY, []) == []


def test_a_character_of_several_tokens_is_one_piece() -> None:
    ids = VOCABULARY.encode("x↔!")
    assert Pieces(VOCABULARY).of(ids) == [Piece((87,), "x"), Piece((18707, 242), "↔"), Piece((0,), "!")]
    assert Pieces(VOCABULARY).of([18707]) == [Piece((18707,), "\\xe2\\x86")]
    assert Pieces(VOCABULARY).of([18707, START]) == [
        Piece((18707,), "\\xe2\\x86"),
        Piece((START,), "<|start|>", special=True),
    ]
    assert Pieces(VOCABULARY).of([18707, 64]) == [Piece((18707, 64), "\\xe2\\x86a")]


@given(st.lists(texts).map("".join))
def test_pieces_are_the_text(text: str) -> None:
    ids = VOCABULARY.encode(text)
    pieces = Pieces(VOCABULARY).of(ids)
    assert [i for piece in pieces for i in piece.ids] == ids
    assert "".join(piece.text for piece in pieces) == visible(text)
    assert "".join(segment.text for segment in segments(VOCABULARY, ids)) == visible(text)


def test_a_fold_is_never_inside_a_character() -> None:
    ids = VOCABULARY.encode("↔" * 100)
    assert len(ids) == 200
    assert cut(VOCABULARY, ids, 31, 33) == (32, 168)
    assert cut(VOCABULARY, ids, 32, 32) == (32, 168)
    assert cut(VOCABULARY, ids, 150, 40) is None
    assert cut(VOCABULARY, [242] * 100, 10, 10) is None
