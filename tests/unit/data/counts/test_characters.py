"""Characters and tokens by kind: they add up, and each kind is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from counterpoint.data.counts.characters import KINDS, CharacterCounts, kinds_of
from counterpoint.data.harmony.vocabulary import RestrictedVocabulary, byte_ids, load_vocabulary

FULL = load_vocabulary()


@pytest.mark.parametrize(
    ("character", "kind"),
    [
        ("a", "Latin"), ("ß", "Latin"), ("Ж", "Cyrillic"), ("日", "Han"), ("𠀀", "Han"), ("ひ", "Hiragana"),
        ("カ", "Katakana"), ("한", "Hangul"), ("ع", "Arabic"), ("क", "Devanagari"), ("7", "numbers"), ("٣", "numbers"),
        ("🙂", "emoji"), ("🏽", "emoji"), (" ", "white space"), ("\n", "white space"), ("!", "punctuation and signs"),
        ("€", "punctuation and signs"), ("\x00", "other"), ("\U0010ffff", "other"),
    ],
)  # fmt: skip
def test_kinds_of_characters(character: str, kind: str) -> None:
    assert KINDS[kinds_of(np.array([ord(character)], dtype=np.uint32))[0]] == kind


@pytest.mark.parametrize("vocabulary", [FULL, RestrictedVocabulary(FULL, byte_ids(FULL))], ids=["full", "bytes"])
def test_counts_add_up_to_the_texts(vocabulary: object) -> None:
    assert isinstance(vocabulary, type(FULL))

    @given(st.lists(texts, max_size=4))
    def check(parts: list[str]) -> None:
        counts = CharacterCounts()
        counts.add(parts, vocabulary)
        assert counts.characters_K.sum() == sum(map(len, parts))
        assert counts.tokens_K.sum() == pytest.approx(sum(len(vocabulary.encode(part)) for part in parts))
        assert counts.rows == 1

    check()


def test_a_token_is_spread_over_its_bytes() -> None:
    counts = CharacterCounts()
    counts.add([" hello"], FULL)  # one token of six bytes
    by_kind = {row["kind"]: row for row in counts.as_rows()}
    assert (by_kind["Latin"]["tokens"], by_kind["white space"]["tokens"]) == (0.8, 0.2)
    assert by_kind["Latin"]["tokens_per_character"] == round(1 / 6, 4)


def test_fenced_code_is_one_kind_whatever_is_in_it() -> None:
    code = "```python\nx = 'я' + 1\n```"
    counts = CharacterCounts()
    counts.add([f"before\n{code}\nafter ~~~ no fence", "~~~\nopen to the end 1"], FULL)
    by_kind = {row["kind"]: row["characters"] for row in counts.as_rows()}
    assert by_kind["code"] == len(code) + len("~~~\nopen to the end 1")
    assert "Cyrillic" not in by_kind
    assert "numbers" not in by_kind


def test_many_fences_and_backticks_take_no_time() -> None:
    counts = CharacterCounts()
    counts.add(["`" * 200_000, "```\n" * 20_000, "```x\n~~~\n" * 5_000], FULL)
    assert counts.rows == 1
