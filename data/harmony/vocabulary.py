"""The o200k vocabulary of gpt-oss: text to ids and back, without a network.

Sources of the 199,998 byte sequences, in this order (docs/decisions/0002-vocabulary.md):
the folder named by `TIKTOKEN_ENCODINGS_BASE`, then the gzip included in the package. A checkpoint's `tokenizer.json` is
compared with it by `ranks_of_tokenizer_json`. Every source is checked against one SHA-256.

Ids: https://github.com/openai/harmony and tiktoken's `o200k_harmony`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import tempfile
from array import array
from binascii import a2b_base64
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import tiktoken

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.fast_encoder import fast_encoder
from counterpoint.data.harmony.once import once
from counterpoint.data.harmony.split import BREAK, MARK, SPLIT, SPLIT_OF_PIECES, joined, marked, pieces

STARTOFTEXT, ENDOFTEXT = 199998, 199999
RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = 200002, 200003, 200005, 200006, 200007, 200008, 200012
N_TEXT = 199998
N_VOCAB = 201088
STOP_IDS = (RETURN, CALL)

SPECIAL_IDS: dict[str, int] = {
    "<|startoftext|>": STARTOFTEXT,
    "<|endoftext|>": ENDOFTEXT,
    "<|return|>": RETURN,
    "<|constrain|>": CONSTRAIN,
    "<|channel|>": CHANNEL,
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|call|>": CALL,
}
SPECIAL_NAMES: dict[int, str] = {id_: name for name, id_ in SPECIAL_IDS.items()}

RANKS_FILE = "o200k_base.tiktoken"
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

_FINGERPRINT = f"o200k_harmony:{RANKS_SHA256[:16]}"
_MARK_ID, _BREAK_ID = N_VOCAB, N_VOCAB + 1
_MARKS, _BREAKS = {MARK}, {MARK, BREAK}
_SHORT = 150  # characters; below, the list is faster than the buffer


class Vocabulary:
    """Text <-> ids of one vocabulary. `encode` never writes a special id, whatever the text holds.

    `fingerprint` identifies the mapping (for caches and run folders). Not picklable; workers call `load_vocabulary`.
    """

    def __init__(self, raw: bytes, fingerprint: str, fast: bool = True) -> None:
        """raw: the vocabulary file. fast: may take the encoder of `counterpoint[fast]`; the ids are the same."""
        self.fingerprint = fingerprint
        self._encoding = tiktoken.Encoding(
            name="counterpoint_o200k",
            pat_str=SPLIT_OF_PIECES,
            mergeable_ranks=_parse_ranks(raw),
            special_tokens=SPECIAL_IDS | {MARK: _MARK_ID, BREAK: _BREAK_ID},
        )
        self._core = self._encoding._core_bpe
        self._fast = fast_encoder(raw, SPLIT, self._tiktoken) if fast else None
        self._ordinary = self._tiktoken if self._fast is None else self._fast.ids

    @property
    def encoder(self) -> str:
        """The program that encodes text: `splintr` or `tiktoken`."""
        return "tiktoken" if self._fast is None else "splintr"

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: `<|start|>` typed in it becomes five ordinary tokens."""
        return self._ordinary(text)

    def encode_array(self, text: str) -> array[int]:
        """`encode` as an `array("i")`: long texts make no Python object of an id, a fifth faster."""
        if len(text) < _SHORT:
            return array("i", self._ordinary(text))
        if self._fast is not None:
            return self._fast.packed(text)
        found = self._in_one_call([text])
        return array("i", self._tiktoken(text)) if found is None else found[0]

    def encode_arrays(self, texts: Sequence[str]) -> list[array[int]]:
        """`encode_array` of each text; tiktoken is called once for all of them, which is faster for short texts."""
        found = self._in_one_call(texts) if self._fast is None and len(texts) > 1 else None
        return list(map(self.encode_array, texts)) if found is None else found

    def _in_one_call(self, texts: Sequence[str]) -> list[array[int]] | None:
        """tiktoken's ids of each text; None where one of them holds a NUL, as our marks do, or a lone surrogate."""
        whole = joined(texts)
        if whole is None:
            return None
        try:
            ids_N = np.frombuffer(self._core.encode_to_tiktoken_buffer(whole, _BREAKS), dtype=np.int32)
        except UnicodeEncodeError:
            return None
        if MARK in whole:
            ids_N = ids_N[ids_N != _MARK_ID]
        ids = array("i", ids_N.tobytes())
        stops = np.flatnonzero(ids_N == _BREAK_ID).tolist()
        return [ids[start + 1 : stop] for start, stop in pairwise((-1, *stops, len(ids)))]

    def _tiktoken(self, text: str) -> list[int]:
        cut = marked(text)
        if cut is text:
            try:
                return self._core.encode_ordinary(text)
            except UnicodeEncodeError:  # a lone surrogate, which the line below replaces
                return self._encoding.encode_ordinary(text)
        if MARK in text:
            return [i for piece in pieces(text) for i in self._encoding.encode_ordinary(piece)]
        ids = self._encoding.encode(cut, allowed_special=_MARKS, disallowed_special=())
        return [i for i in ids if i != _MARK_ID]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`; specials as their names (`<|call|>`), ids without a token as `<|reserved_N|>`."""
        single = self._encoding.decode_single_token_bytes
        return b"".join(
            single(i) if 0 <= i < N_TEXT or i in SPECIAL_NAMES else f"<|reserved_{i}|>".encode() for i in ids
        )

    def tokens(self) -> dict[bytes, int]:
        """The id of every text token by its bytes; not to be changed."""
        return self._encoding._mergeable_ranks

    def text_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes of ids that all are text (below `N_TEXT`), in one call: seven times faster than `decode_bytes`."""
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of raw Harmony text, in which the names of special tokens are those tokens (server logs, templates)."""
        ids: list[int] = []
        for piece in _SPECIAL_PATTERN.split(text):
            if piece in SPECIAL_IDS:
                ids.append(SPECIAL_IDS[piece])
            elif piece:
                ids.extend(self.encode(piece))
        return ids


class RestrictedVocabulary(Vocabulary):
    """A vocabulary that knows only `kept` ids: any other id is spelled in single-byte tokens (byte fallback).

    The embedded tiny model uses it: ids stay real o200k ids, the model needs few rows. `kept` must hold the 256
    single-byte ids (`byte_ids`), else ModelError.
    """

    def __init__(self, base: Vocabulary, kept: Sequence[int]) -> None:
        digest = hashlib.sha256(repr(sorted(kept)).encode()).hexdigest()[:16]
        self.fingerprint = f"{base.fingerprint}/{digest}"
        self._encoding = base._encoding
        self._fast = base._fast
        self._base = base
        self._kept = frozenset(kept)
        self._spelling: dict[int, list[int]] = {}
        if not self._kept.issuperset(byte_ids(base)):
            raise ModelError("vocabulary map: it lacks single-byte tokens: add all of byte_ids()")

    def encode(self, text: str) -> list[int]:
        ids = self._base.encode(text)
        if self._kept.issuperset(ids):
            return ids
        out: list[int] = []
        for i in ids:
            if i in self._kept:
                out.append(i)
            else:
                out.extend(self._spell(i))
        return out

    def encode_array(self, text: str) -> array[int]:
        return array("i", self.encode(text))

    def encode_arrays(self, texts: Sequence[str]) -> list[array[int]]:
        return list(map(self.encode_array, texts))

    def _spell(self, id_: int) -> list[int]:
        spelled = self._spelling.get(id_)
        if spelled is None:
            single = self._encoding.encode_single_token
            spelled = self._spelling[id_] = [single(bytes([b])) for b in self._encoding.decode_single_token_bytes(id_)]
        return spelled


_SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(name) for name in SPECIAL_IDS) + ")")


def byte_ids(vocabulary: Vocabulary) -> list[int]:
    """Ids of the 256 single-byte tokens, by byte."""
    return [vocabulary._encoding.encode_single_token(bytes([b])) for b in range(256)]


@once
def load_vocabulary() -> Vocabulary:
    """The full o200k vocabulary (about 0.5 s the first time in a process, then cached)."""
    return Vocabulary(_ranks_bytes(), fingerprint=_FINGERPRINT)


def full_fingerprint() -> str:
    """The fingerprint of `load_vocabulary()`; only the file is checked. Raises ModelError where it is damaged."""
    _ranks_bytes()
    return _FINGERPRINT


def vocabulary_folder() -> Path:
    """A folder that holds `o200k_base.tiktoken` uncompressed, as openai-harmony wants it; written once a machine."""
    folder = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    if folder and (Path(folder) / RANKS_FILE).is_file():
        return Path(folder)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "counterpoint" / RANKS_SHA256[:16]
    target = cache / RANKS_FILE
    if not (target.is_file() and _sha256(target.read_bytes()) == RANKS_SHA256):
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            cache = Path(tempfile.mkdtemp(prefix="counterpoint-vocabulary-"))
            target = cache / RANKS_FILE
        handle, part = tempfile.mkstemp(dir=cache)
        with os.fdopen(handle, "wb") as file:
            file.write(_ranks_bytes())
        os.replace(part, target)
    return cache


def ranks_of_tokenizer_json(path: Path) -> dict[bytes, int]:
    """The byte sequences of a Hugging Face `tokenizer.json`, whose ids below 199998 are o200k's ranks.

    Raises ModelError where the file is another vocabulary.
    """
    try:
        vocab = json.loads(path.read_bytes())["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a tokenizer.json ({type(error).__name__}): copy gpt-oss's own") from None
    to_byte = _byte_of_unicode()
    ranks: dict[bytes, int] = {}
    for token, id_ in vocab.items():
        if id_ < N_TEXT and not (token.startswith("<|") and token.endswith("|>")):
            ranks[bytes(to_byte[c] for c in token)] = id_
    lines = b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in sorted(ranks.items(), key=lambda kv: kv[1]))
    if _sha256(lines) != RANKS_SHA256:
        raise ModelError(f"{path}: its vocabulary is not gpt-oss's o200k (hash differs): use a gpt-oss tokenizer")
    return ranks


def _ranks_bytes() -> bytes:
    folder = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    if folder and (path := Path(folder) / RANKS_FILE).is_file():
        raw, where = path.read_bytes(), str(path)
    else:
        packed = resources.files("counterpoint.data.harmony").joinpath(f"files/{RANKS_FILE}.gz").read_bytes()
        raw, where = gzip.decompress(packed), "the package's vocabulary"
    if _sha256(raw) != RANKS_SHA256:
        raise ModelError(f"{where}: damaged, its SHA-256 is not {RANKS_SHA256[:12]}...: replace the file")
    return raw


def _parse_ranks(raw: bytes) -> dict[bytes, int]:
    words = raw.split()
    return dict(zip(map(a2b_base64, words[::2]), map(int, words[1::2]), strict=True))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _byte_of_unicode() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, as Hugging Face writes them in tokenizer.json."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
