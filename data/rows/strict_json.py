"""JSON as RFC 8259 and RFC 7493 have it: nothing is silently accepted, and each fault has a name.

The fast path is orjson, which refuses NaN, lone surrogates, bad UTF-8 and control characters, but takes duplicate keys
and rounds numbers of more than 17 digits. Duplicate keys are found by counting: keys written in the text against keys
in the value. Only where the counts differ (or cannot be trusted, or a number may have been rounded) is the text read a
second time, slowly and with paths.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import orjson

from counterpoint.configs.errors import RowError

BOM = b"\xef\xbb\xbf"
WHOLE_ROW = "row"

NO_JSON = frozenset({"not_json", "truncated", "empty_line"})
"""Kinds of what is no JSON text, as against JSON that is refused."""
_KEY_END = re.compile(rb'"[ \t\r\n]*+:')
_BACKSLASH = 0x5C
_EXACT = 2.0**63
_DIGITS = bytes(0x30 if chr(byte) in "0123456789." else 0x20 for byte in range(256))
_MANY_DIGITS = b"0" * 17
_LONG_NUMBER = re.compile(rb"[\d.]{17,}(?:[eE][+-]?\d+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_DEPTH = 1000


def loads(raw: bytes, field: str = WHOLE_ROW) -> Any:
    """The value of one JSON text. Raises RowError, whose field is the path of the fault where there is one."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _loads_slowly(raw, field)
    keys, has_float = _keys_in_value(value)
    if keys != _keys_in_text(raw) or (has_float and _may_be_rounded(raw)):
        return _loads_slowly(raw, field)
    return value


def _may_be_rounded(raw: bytes) -> bool:
    """Whether a number of many digits is not one that Python writes itself, such as 0.30000000000000004."""
    marks = raw.translate(_DIGITS)
    at = marks.find(_MANY_DIGITS)
    while at >= 0:
        found = _LONG_NUMBER.match(raw, at)
        assert found is not None
        text = found.group().decode().strip(".")
        if not text.isdigit() and (text.count(".") > 1 or repr(float(text)) != text):
            return True
        at = marks.find(_MANY_DIGITS, found.end())
    return False


class Number(float):
    """A number that a float cannot hold: it is used as the float, and written as it was read."""

    text: str

    @classmethod
    def of(cls, text: str) -> Number:
        number = cls(text)
        number.text = text
        return number


def dumps(value: Any) -> str:
    """Compact JSON, non-ASCII characters as they are; equal values give equal text. A `Number` keeps its digits."""
    if _has_number(value):
        return _written(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _has_number(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Number)


def _written(value: Any) -> str:
    if isinstance(value, Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{dumps(key)}:{_written(child)}" for key, child in value.items()) + "}"
    return "[" + ",".join(map(_written, value)) + "]" if isinstance(value, list) else dumps(value)


def _keys_in_text(raw: bytes) -> int:
    """Keys written in `raw`, or more: an unescaped quote before a colon ends a key, or begins a string such as ":)"."""
    count = 0
    for found in _KEY_END.finditer(raw):
        quote = found.start()
        before = quote
        while before and raw[before - 1] == _BACKSLASH:
            before -= 1
        count += (quote - before) % 2 == 0
    return count


def _keys_in_value(value: Any) -> tuple[int, bool]:
    """Keys of all objects in `value`, and whether it holds a float; -1 keys where one is too large to be sure that it
    was no integer."""
    if isinstance(value, (str, bool)) or value is None:
        return 0, False
    count, has_float = 0, False
    stack: list[Any] = [[value]]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            count += len(node)
            node = node.values()
        for child in node:
            kind = type(child)
            if kind is dict or kind is list:
                stack.append(child)
            elif kind is float:
                has_float = True
                if not -_EXACT < child < _EXACT:
                    return -1, True
    return count, has_float


class _Odd:
    """A constant that JSON does not have, kept until its path is known."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Repeated(dict[str, Any]):
    """An object with a key twice."""

    key = ""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        repeated = _Repeated(out)
        for key, _ in pairs:
            if key in seen:
                repeated.key = key
                break
            seen.add(key)
        return repeated
    return out


def _float(text: str) -> float | _Odd:
    number = float(text)
    if number - number != 0:
        return _Odd(text)
    return number if len(text) < 17 or Decimal(repr(number)) == Decimal(text) else Number.of(text)


def _loads_slowly(raw: bytes, field: str) -> Any:
    text = decode(raw, field)
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_Odd, parse_float=_float)
    except json.JSONDecodeError as error:
        raise _syntax(text, error, field) from None
    except RecursionError:
        raise _too_deep(field) from None
    except ValueError as error:  # int() refuses more than 4,300 digits
        raise RowError("bad_number", field, str(error).split(";")[0], "write a shorter number or a string") from None
    _reject_odd_values(value, field)
    return value


def decode(raw: bytes, field: str) -> str:
    """UTF-8 text without a byte order mark and without NUL bytes. Raises RowError."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RowError("bad_utf8", field, "the file is UTF-16, not UTF-8", "save it as UTF-8")
    if raw.startswith(BOM):
        raise RowError("bom", field, "a byte order mark inside the file", "remove the bytes EF BB BF")
    if b"\x00" in raw:
        at = raw.index(b"\x00")
        raise RowError("nul", field, f"a NUL byte at byte {at + 1}", "remove it, or write \\u0000 inside a string")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = raw[error.start : error.start + 1].hex().upper()
        what = f"not UTF-8: byte {bad} at byte {error.start + 1}"
        raise RowError("bad_utf8", field, what, "save the file as UTF-8") from None


def _syntax(text: str, error: json.JSONDecodeError, field: str) -> RowError:
    if not text.strip():
        return RowError("empty_line", field, "nothing but white space", "remove the line")
    end = len(text.rstrip())
    if error.pos >= end or error.msg.startswith("Unterminated string"):
        return RowError("truncated", field, f"the JSON text ends early, after character {end}", "write the row again")
    if error.msg.startswith("Extra data"):
        what = f"something follows the JSON value at character {error.pos + 1}"
        return RowError("not_json", field, what, "write one JSON object a line")
    near = text[max(0, error.pos - 10) : error.pos + 10].encode("unicode_escape").decode()
    what = f"not JSON: {error.msg} at character {error.pos + 1}, near `{near}`"
    return RowError("not_json", field, what, "write valid JSON (RFC 8259)")


def _too_deep(field: str) -> RowError:
    return RowError("too_deep", field, f"nested more than {_MAX_DEPTH} levels deep", "flatten the row")


def _reject_odd_values(value: Any, field: str) -> None:
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    while stack:
        path, node, depth = stack.pop()
        where = path or field
        if depth > _MAX_DEPTH:
            raise _too_deep(field)
        if isinstance(node, _Odd):
            fix = "write null, a finite number or a string"
            raise RowError("not_a_number", where, f"{node.name} is not a JSON number", fix)
        if isinstance(node, str):
            _reject_surrogate(node, where)
        elif isinstance(node, dict):
            if isinstance(node, _Repeated):
                where = f"{path}.{node.key}" if path else node.key
                raise RowError("duplicate_key", where, "the key is written twice in one object", "keep one of them")
            for key, child in node.items():
                _reject_surrogate(key, where)
                stack.append((f"{path}.{key}" if path else key, child, depth + 1))
        elif isinstance(node, list):
            stack.extend((f"{path}[{i}]", child, depth + 1) for i, child in enumerate(node))


def _reject_surrogate(text: str, field: str) -> None:
    if found := _SURROGATE.search(text):
        what = f"a lone surrogate U+{ord(found.group()):04X} at character {found.start() + 1}"
        raise RowError("lone_surrogate", field, what, "write the complete pair, or the character itself")
