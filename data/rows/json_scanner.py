"""JSON values of a document one at a time, as bytes: a top-level array's elements, or values one after another.

Strings and brackets are followed, nothing else is checked: an element that is no JSON still ends where its brackets
close, so the rows after it are read. Memory holds one element, of bounded size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from counterpoint.configs.errors import DataError
from counterpoint.data.rows.open_file import MOST_BYTES, SPLIT, TOO_LONG

_CHUNK = 1 << 20
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^\s,\[\]{}"]++', re.DOTALL)
_GAP = re.compile(rb"\s*+")


@dataclass(frozen=True, slots=True)
class Element:
    """line: of its first byte, from 1. complete: whether its brackets close before the end of the file."""

    line: int
    raw: bytes
    complete: bool


class Scanner:
    """Reads a stream from its start. `is_array`: whether the elements are those of a top-level array.

    name: the file's. DataError for an element that is too long: where it ends, and the next one begins, is not known.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._buffer = b""
        self._position = 0
        self._line = 1
        self._end = False
        self.is_array = False
        self.closed = False

    def elements(self) -> Iterator[Element]:
        """Elements of the array, or the values of the stream."""
        if self._next_byte() == b"[":
            self.is_array = True
            self._skip(1)
        while (byte := self._next_byte()) is not None:
            if byte == b"," and self.is_array:
                self._skip(1)
            elif byte == b"]" and self.is_array:
                self._skip(1)
                self.closed = True
                if self._next_byte() is not None:
                    yield self._rest()
                return
            else:
                yield self._element(byte)

    def _element(self, first: bytes) -> Element:
        line = self._line
        if first in b"{[":
            size = self._bracket_size()
        else:
            size = self._line_size() if first in b"}]:," else self._scalar_size()
        complete = size is not None
        if size is None:
            size = len(self._buffer) - self._position
        raw = self._buffer[self._position : self._position + size]
        self._skip(size)
        return Element(line, raw, complete)

    def _bracket_size(self) -> int | None:
        at, depth = self._position, 0
        while True:
            found = _TOKEN.search(self._buffer, at)
            if found is None:
                at = len(self._buffer) - self._position
                if not self._grow():
                    return None
                at += self._position
                continue
            token = found.group() if found.end() - found.start() == 1 else b""
            if token == b'"':
                offset = found.start() - self._position
                if not self._grow():
                    return None
                at = offset + self._position
                continue
            at = found.end()
            if token in (b"{", b"["):
                depth += 1
            elif token:
                depth -= 1
                if depth == 0:
                    return at - self._position

    def _line_size(self) -> int:
        """Text that no value begins with is skipped up to the end of its line."""
        while (end := self._buffer.find(b"\n", self._position)) < 0:
            if not self._grow():
                return len(self._buffer) - self._position
        return end - self._position

    def _scalar_size(self) -> int | None:
        while True:
            found = _SCALAR.match(self._buffer, self._position)
            if found is not None and (found.end() < len(self._buffer) or self._end):
                return found.end() - self._position
            if not self._grow():
                return None if found is None else found.end() - self._position

    def _rest(self) -> Element:
        line = self._line
        return Element(line, self._buffer[self._position : self._position + 1000], False)

    def _next_byte(self) -> bytes | None:
        """The next byte that is not white space; None at the end."""
        while True:
            gap = _GAP.match(self._buffer, self._position)
            if gap is not None and gap.end() > self._position:
                self._skip(gap.end() - self._position)
            if self._position < len(self._buffer):
                return self._buffer[self._position : self._position + 1]
            if not self._grow():
                return None

    def _skip(self, size: int) -> None:
        self._line += self._buffer.count(b"\n", self._position, self._position + size)
        self._position += size

    def _grow(self) -> bool:
        """Reads more after the buffer, doubling it, and drops what was consumed; False at the end of the stream."""
        if self._end:
            return False
        kept = self._buffer[self._position :]
        if len(kept) > MOST_BYTES:
            raise DataError(f"{self._name}:{self._line}: a value is {TOO_LONG}: {SPLIT}")
        chunk = self._stream.read(max(_CHUNK, len(kept)))
        self._end = not chunk
        self._buffer, self._position = kept + chunk, 0
        return bool(chunk)
