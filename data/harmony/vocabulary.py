"""The o200k vocabulary of gpt-oss: text to ids and back, without a network.

Sources of the 199,998 byte sequences, in this order (docs/decisions/0002-vocabulary.md):
the folder named by `TIKTOKEN_ENCODINGS_BASE`, then the gzip that the package brings. A checkpoint's `tokenizer.json` is
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
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.fast_encoder import fast_encoder

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

# The split pattern of o200k (tiktoken, MIT licence): part of the vocabulary's definition.
_SPLIT = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# On whitespace runs of several hundred thousand characters tiktoken's regex engine dies of a BaseException.
_LONG_RUN = 20_000
_WHITESPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


_SHORT = 150  # characters; below, the list is faster than the buffer

_WHITESPACE_SET = frozenset(c for c in map(chr, range(0x3001)) if re.fullmatch(f"[{_WHITESPACE}]", c))


class Vocabulary:
    """Text <-> ids of one vocabulary. `encode` never writes a special id, whatever the text holds.

    `fingerprint` identifies the mapping (for caches and run folders). Not picklable; workers call `load_vocabulary`.
    """

    def __init__(self, raw: bytes, fingerprint: str, fast: bool = True) -> None:
        """raw: the vocabulary file. fast: may take the encoder of `counterpoint[fast]`; the ids are the same."""
        self.fingerprint = fingerprint
        self._encoding = tiktoken.Encoding(
            name="counterpoint_o200k", pat_str=_SPLIT, mergeable_ranks=_parse_ranks(raw), special_tokens=SPECIAL_IDS
        )
        self._long_run = _LONG_RUN
        self._fast = fast_encoder(raw, _SPLIT, self._encoding.encode_ordinary) if fast else None
        self._ordinary = self._encoding.encode_ordinary if self._fast is None else self._fast.ids

    @property
    def encoder(self) -> str:
        """The program that encodes text: `splintr` or `tiktoken`."""
        return "tiktoken" if self._fast is None else "splintr"

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: `<|start|>` typed in it becomes five ordinary tokens."""
        if len(text) < self._long_run or not self._long_run_pattern.search(text):
            return self._ordinary(text)
        return self._encode_with_long_runs(text)

    def encode_array(self, text: str) -> array[int]:
        """`encode` as an `array("i")`: long texts make no Python object of an id, a fifth faster."""
        if len(text) >= self._long_run and self._long_run_pattern.search(text):
            return array("i", self._encode_with_long_runs(text))
        if len(text) < _SHORT:
            return array("i", self._ordinary(text))
        if self._fast is not None:
            return self._fast.packed(text)
        return array("i", self._encoding.encode_to_numpy(text, disallowed_special=()).tobytes())

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

    @staticmethod
    def _takes_newlines(text: str, done: int, start: int) -> bool:
        """Whether the piece before a whitespace run is punctuation, which takes the newlines behind it."""
        word = start
        while word > done and text[word - 1] not in _WHITESPACE_SET:
            word -= 1
        pieces = regex.findall(_SPLIT, text[max(done, word - 1) : start] + "\n")
        return not _WHITESPACE_SET.issuperset(pieces[-1])

    @cached_property
    def _long_run_pattern(self) -> re.Pattern[str]:
        return re.compile(f"[{_WHITESPACE}]{{{self._long_run},}}")

    def _encode_with_long_runs(self, text: str) -> list[int]:
        """Cut at the long whitespace runs exactly where the split pattern would, so that it never sees one."""
        ids: list[int] = []
        done = 0
        for run in self._long_run_pattern.finditer(text):
            start, end = max(run.start(), done), run.end()
            if self._takes_newlines(text, done, start):
                while start < len(text) and text[start] in "\r\n/":
                    start += 1
                if start >= end:
                    continue
            newline = max(text.rfind("\n", start, end), text.rfind("\r", start, end))
            cuts = [start, newline + 1 if newline >= start else start]
            if end == len(text):
                cuts.append(end)
            elif end - cuts[-1] > 1:  # `\s+(?!\S)` leaves the last one to the word that follows
                cuts.append(end - 1)
            ids.extend(self._ordinary(text[done:start]))
            for a, b in pairwise(cuts):
                if b > a:
                    ids.extend(self._encoding._encode_single_piece(text[a:b]))
            done = cuts[-1]
        return ids + self._ordinary(text[done:])


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
        self._ordinary = base._ordinary
        self._long_run = base._long_run
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


@lru_cache(maxsize=1)
def load_vocabulary() -> Vocabulary:
    """The full o200k vocabulary (about 0.5 s the first time in a process, then cached)."""
    return Vocabulary(_ranks_bytes(), fingerprint=f"o200k_harmony:{RANKS_SHA256[:16]}")


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
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines() if line)}


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _byte_of_unicode() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, as Hugging Face writes them in tokenizer.json."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
