"""The faster encoder gives tiktoken's ids, or is not taken."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import texts

from counterpoint.data.harmony import fast_encoder as module
from counterpoint.data.harmony.fast_encoder import LONG_S, SWITCH, FastEncoder, fast_encoder, self_test_texts
from counterpoint.data.harmony.split import SPLIT
from counterpoint.data.harmony.vocabulary import RestrictedVocabulary, Vocabulary, _ranks_bytes, byte_ids

RAW = _ranks_bytes()
SLOW = Vocabulary(RAW, "slow", fast=False)
FAST = Vocabulary(RAW, "fast")
ORDINARY = SLOW.encode


def test_it_is_taken_where_it_is_installed() -> None:
    assert (FAST.encoder, SLOW.encoder) == ("splintr", "tiktoken")


ODD = st.sampled_from(["'s", "'S", LONG_S, "'" + LONG_S, "'ll", "'LL", "\u0345", "K", "ǅ", "ʰ", "\r\n", "\u3000", "²"])


@settings(max_examples=600)
@given(st.lists(st.one_of(texts, ODD, st.text(max_size=3)), max_size=30).map("".join))
@example(f"L'{LONG_S}'LLE")
@example("\ud800 a lone surrogate")
def test_ids_are_tiktokens(text: str) -> None:
    assert FAST.encode(text) == ORDINARY(text)
    assert FAST.encode_array(text).tolist() == ORDINARY(text)
    assert FAST.encode_array(text * 50).tolist() == ORDINARY(text * 50)


CONTEXTS = ("a{0}b", "A{0}'s {0} ", "1{0}.'{0}a", "\n{0}{0}日{0}🙂")


@pytest.mark.slow
def test_every_character_in_every_neighbourhood() -> None:
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000:
            for context in CONTEXTS:
                text = context.format(chr(code))
                assert FAST.encode(text) == ORDINARY(text), ascii(text)


@pytest.mark.parametrize("text", ["a" * 80_000, " " * 2_000_000, "\n" * 500_000, "日" * 200_000, "ab" * 40_000])
def test_pathological_text(text: str) -> None:
    assert FAST.encode_array(text) == SLOW.encode_array(text)


def test_a_restricted_vocabulary_is_the_same_over_both() -> None:
    kept = [*byte_ids(SLOW), *SLOW.encode("hello world")]
    text = "hello wörld, don't"
    assert RestrictedVocabulary(FAST, kept).encode(text) == RestrictedVocabulary(SLOW, kept).encode(text)


def test_the_self_test_is_short_and_sees_every_kind_of_text() -> None:
    tests = list(self_test_texts())
    assert 300 < len(tests) < 1000
    assert any(LONG_S not in t and "\u3000" in t for t in tests)
    assert module.first_difference(FastEncoder(_splintr(), ORDINARY), ORDINARY) is None


def _splintr() -> object:
    import splintr

    return splintr.Tokenizer.from_bytes(RAW, SPLIT)


def _package(encode: object) -> SimpleNamespace:
    tokenizer = SimpleNamespace(encode_ordinary=encode, encode_flat=lambda text: array("I", encode(text)).tobytes())  # type: ignore[operator]
    return SimpleNamespace(Tokenizer=SimpleNamespace(from_bytes=lambda raw, pattern: tokenizer))


@pytest.mark.parametrize(
    ("encode", "why"),
    [
        (lambda text: ORDINARY(text.replace("\u2028", " ")), "its ids differ from tiktoken's for"),
        (lambda text: [199_999] * len(text), "its ids differ"),
        (lambda text: 1 // 0, "it fails (ZeroDivisionError"),
    ],
)
def test_other_ids_are_found_at_start_and_tiktoken_is_used(
    monkeypatch: pytest.MonkeyPatch, encode: object, why: str
) -> None:
    monkeypatch.setattr(module, "import_module", lambda name: _package(encode))
    with pytest.warns(RuntimeWarning, match="splintr is not used, because ") as warned:
        vocabulary = Vocabulary(RAW, "x")
    assert why in str(warned[0].message)
    assert vocabulary.encoder == "tiktoken"
    assert vocabulary.encode("a\u2028b") == ORDINARY("a\u2028b")


def test_it_can_be_switched_off_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "tiktoken")
    assert fast_encoder(RAW, SPLIT, ORDINARY) is None
    monkeypatch.setenv(SWITCH, "fastest")
    with pytest.warns(RuntimeWarning, match="write auto or tiktoken"):
        assert fast_encoder(RAW, SPLIT, ORDINARY) is None
    monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(module, "import_module", _not_there)
    assert fast_encoder(RAW, SPLIT, ORDINARY) is None


def _not_there(name: str) -> object:
    raise ImportError(name)
