"""The vocabulary: exact ids, long runs, where it comes from."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import texts

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony import vocabulary as module
from counterpoint.data.harmony.split import BREAK, MARK, SPLIT
from counterpoint.data.harmony.vocabulary import (
    RestrictedVocabulary,
    Vocabulary,
    byte_ids,
    load_vocabulary,
    ranks_of_tokenizer_json,
    vocabulary_folder,
)

FULL = load_vocabulary()
PIECES = [
    "a",
    "1",
    "!",
    "/",
    " ",
    "\n",
    "\t",
    "\r",
    "\u3000",
    "é",
    "'s",
    "  ",
    "\n\n",
    "日",
    "_",
    "\u0301",
    "²",
    "🙂",
    "\x1c",
    "\x85",
]


OFFICIAL = tiktoken.Encoding("o200k", pat_str=SPLIT, mergeable_ranks=FULL.tokens(), special_tokens={})
TIKTOKEN = Vocabulary(module._ranks_bytes(), "tiktoken", fast=False)
WHITE_SPACE = [c for c in map(chr, range(0x110000)) if regex.fullmatch(r"\p{White_Space}", c)]
JOINED = st.lists(st.sampled_from([*PIECES, *WHITE_SPACE, MARK]) | texts, max_size=30).map("".join)


@settings(max_examples=1000, deadline=None)
@given(JOINED)
@example("/\n/")
@example("!\n\n/\n\n  a")
@example("a  'S \u3000 \n\t\t1")
@example(f"  {MARK}  a")
@example("\ud800 a lone surrogate  x" * 20)
def test_cutting_at_whitespace_runs_changes_no_id(text: str) -> None:
    assert TIKTOKEN.encode(text) == OFFICIAL.encode_ordinary(text)
    assert TIKTOKEN.encode_array(text).tolist() == OFFICIAL.encode_ordinary(text)
    assert TIKTOKEN.encode_array(text * 20).tolist() == OFFICIAL.encode_ordinary(text * 20)


@settings(max_examples=300, deadline=None)
@given(st.lists(JOINED, max_size=8))
@example(["a  ", "  b", "", "\t ", "\n", "\u3000\t", "é  "])
@example(["a", BREAK, "b"])
@example(["a\x00", "b"])
@example(["\ud800", "b  c"])
@example([])
def test_texts_encoded_in_one_call_have_the_ids_of_each_alone(texts: list[str]) -> None:
    assert [ids.tolist() for ids in TIKTOKEN.encode_arrays(texts)] == list(map(OFFICIAL.encode_ordinary, texts))
    assert FULL.encode_arrays(texts) == list(map(FULL.encode_array, texts))


def test_every_pair_of_white_space_before_every_kind_of_text() -> None:
    for first in WHITE_SPACE:
        for second in (*WHITE_SPACE, "\x1c", "\u200b", "\u180e"):
            for after in ("a", "A's", "1", "!", "/", "\n", "\x1f", "", "日"):
                text = f"a{first}{second}{after}b{second}{second}{first}{after}"
                assert TIKTOKEN.encode(text) == OFFICIAL.encode_ordinary(text), ascii(text)


PATHOLOGICAL = [(" " * 2_000_000 + "x", 15_627), ("a" * 80_000, 10_000), (" \n " * 400_000, 200_002)]


@pytest.mark.parametrize(("text", "n"), PATHOLOGICAL)
@pytest.mark.parametrize("vocabulary", [FULL, TIKTOKEN])
def test_pathological_runs_neither_hang_nor_panic(text: str, n: int, vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode(text)
    assert len(ids) == n
    assert vocabulary.encode_array(text).tolist() == ids
    assert FULL.decode(ids) == text


def test_special_names_in_text_stay_text_unless_asked() -> None:
    assert max(FULL.encode("<|start|><|call|>")) < 199_998
    assert FULL.encode_with_specials("<|start|>assistant<|call|>") == [200006, 173781, 200012]
    assert FULL.decode([200006, 173781, 200000, 200012]) == "<|start|>assistant<|reserved_200000|><|call|>"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_restricted_vocabulary_spells_other_ids_in_bytes(text: str) -> None:
    kept = [*byte_ids(FULL), *FULL.encode("hello world"), 200006]
    restricted = RestrictedVocabulary(FULL, kept)
    ids = restricted.encode(text)
    assert set(ids) <= set(kept)
    assert FULL.decode(ids) == text
    assert restricted.encode("hello world") == FULL.encode("hello world")


def test_restricted_vocabulary_needs_the_single_bytes() -> None:
    with pytest.raises(ModelError, match="single-byte"):
        RestrictedVocabulary(FULL, [1, 2, 3])


def test_a_damaged_vocabulary_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / module.RANKS_FILE).write_bytes(b"aGk= 0\n")
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    with pytest.raises(ModelError, match="SHA-256"):
        module._ranks_bytes()


def test_the_folder_for_openai_harmony_is_written_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    file = vocabulary_folder() / module.RANKS_FILE
    assert module._sha256(file.read_bytes()) == module.RANKS_SHA256
    file.write_bytes(b"cut off")
    assert module._sha256((vocabulary_folder() / module.RANKS_FILE).read_bytes()) == module.RANKS_SHA256


def write_tokenizer_json(path: Path, ranks: dict[bytes, int]) -> None:
    to_unicode = {byte: char for char, byte in module._byte_of_unicode().items()}
    vocab = {"".join(to_unicode[b] for b in token): rank for token, rank in ranks.items()}
    path.write_text(json.dumps({"model": {"vocab": vocab | {"<|start|>": 200006}}}))


def test_a_checkpoints_tokenizer_json_is_rebuilt_and_checked(tmp_path: Path) -> None:
    packed = Path(module.__file__).parent / "files" / f"{module.RANKS_FILE}.gz"
    lines = gzip.decompress(packed.read_bytes()).splitlines()
    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in lines)}
    path = tmp_path / "tokenizer.json"
    write_tokenizer_json(path, ranks)
    assert ranks_of_tokenizer_json(path) == ranks
    del ranks[b"the"]
    write_tokenizer_json(path, ranks)
    with pytest.raises(ModelError, match="not gpt-oss's"):
        ranks_of_tokenizer_json(path)
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"not a tokenizer\.json"):
        ranks_of_tokenizer_json(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, max_size=40).map("".join))
def test_array_holds_the_same_ids(text: str) -> None:
    assert FULL.encode_array(text).tolist() == FULL.encode(text)
    assert FULL.encode_array(text * 20).tolist() == FULL.encode(text * 20)
