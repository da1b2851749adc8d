"""The grammar of Harmony headers and messages on token ids, for completions and for whole conversations.

    <|start|>{role}{:name}?{ to=recipient}?(<|channel|>{channel}{ to=recipient}?)?({ content_type})?<|message|>...

`parse_header` is strict in what it reports and lenient in what it understands: a sloppy header still gives its channel
and recipient. `scan` walks once over the special ids. Source: github.com/openai/harmony/blob/main/docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from counterpoint.data.conversation import CHANNELS, Channel
from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    N_TEXT,
    RETURN,
    START,
    load_vocabulary,
)

ASSISTANT = 173781
_CHANNELS: dict[str, Channel] = {channel: channel for channel in CHANNELS}
PLAIN_CONTENT_TYPES = (b"json", b"code", b"text")
RecipientPosition = Literal["role", "channel"]
Fault = tuple[Code, int, str]

_BREAKS = frozenset({MESSAGE, START, END, CALL, RETURN})
_TERMINATORS = frozenset({END, CALL, RETURN})
# <|constrain|> inside a header's bytes; the byte itself never occurs in UTF-8, and is replaced where a token spells it.
_CONSTRAIN_BYTE = b"\xff"
_WORD = re.compile(rb"[^\s:\xff]*")
_CHANNEL_NAME = re.compile(rb"[^\s\xff]*")
_TAIL = re.compile(rb"(?: to=(?P<to>[^\s\xff]+))?(?: (?P<type>\xff?[A-Za-z0-9_./+-]+)\Z)?")
_RECIPIENT = re.compile(rb"(?<!\S)to=([^\s\xff]+)")
_CONTENT_TYPE = re.compile(rb"(\xff[A-Za-z0-9_./+-]+)|(?<!\S)(json|code|text)\Z")


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a header. Positions (`*_at`, those of `faults`) count from the token after `<|start|>`.

    role: the role's text; a tool's full name for its result. channel: None where it is none of the three.
    """

    role: str
    name: str | None
    channel: Channel | None
    channel_at: int
    recipient: str | None
    recipient_position: RecipientPosition | None
    recipient_at: int
    content_type: str | None
    content_type_at: int
    faults: tuple[Fault, ...]


@dataclass(slots=True)
class Span:
    """One message of a scan, as indices into the ids: header, body `[body_start, body_end)`, and its terminator.

    origin: index that the header's own positions are added to. terminator: END, CALL, RETURN, or None where it is cut.
    """

    header: Header
    origin: int
    body_start: int
    body_end: int
    terminator: int | None


@dataclass(slots=True)
class Scan:
    """Messages, structural faults (absolute positions), and where the ids ended.

    state: `stopped` (a stop token at `at`), `between` (after `<|end|>`), `header` or `body` (inside a message).
    at: the stop token, or the start of the header that was left open.
    """

    spans: list[Span]
    faults: list[Fault]
    state: Literal["stopped", "between", "header", "body"]
    at: int


def scan(ids: Sequence[int], marks: Sequence[int], first: int, *, whole: bool = False) -> Scan:
    """Walk over `ids` from `first`, whose special ids are at `marks` (ascending, none before `first`).

    The first message's role is implied (`<|start|>assistant` came before), unless `first` is a `<|start|>`.
    With `whole`, messages follow a stop token as well (a rendered conversation, not one completion).
    """
    spans: list[Span] = []
    faults: list[Fault] = []
    n, n_marks, k = len(ids), len(marks), 0
    start, implied = first, True
    if ids[first] == START:
        start, implied, k = first + 1, False, 1
    while True:
        while k < n_marks and ids[marks[k]] not in _BREAKS:
            k += 1
        if k == n_marks:
            return Scan(spans, faults, "header", start)
        at = marks[k]
        token = ids[at]
        k += 1
        if token == MESSAGE:
            header, origin = _header_of(ids, start, at, implied)
            for code, where, detail in header.faults:
                faults.append((code, max(origin + where, first), detail))
            k = _body(ids, marks, k, faults)
            end = marks[k] if k < n_marks else n
            terminator = ids[end] if end < n and ids[end] in _TERMINATORS else None
            spans.append(Span(header, origin, at + 1, end, terminator))
            if end == n:
                return Scan(spans, faults, "body", start)
            at, token = end, ids[end]
            k += 1
            if token == START:
                faults.append((Code.SPECIAL_IN_CONTENT, at, "<|start|> before the message has ended"))
        else:
            faults.append((Code.HEADER_WITHOUT_MESSAGE, at, "the header ends without <|message|>"))
        if token == START:
            start, implied = at + 1, False
            continue
        if token != END and not whole:
            if at + 1 < n:
                faults.append((Code.TOKENS_AFTER_STOP, at + 1, f"{n - at - 1} tokens after the stop"))
            return Scan(spans, faults, "stopped", at)
        if at + 1 == n:
            return Scan(spans, faults, "stopped" if token != END else "between", at)
        if ids[at + 1] == START:
            start, implied, k = at + 2, False, k + 1
            continue
        k, start, implied = _skip_stray(ids, marks, k, at + 1)
        stray = (start - 1 if not implied else n) - at - 1
        faults.append((Code.STRAY_TOKENS, at + 1, f"{stray} tokens" if stray and not implied else "no <|start|>"))
        if start > n:
            return Scan(spans, faults, "between", at)


def _header_of(ids: Sequence[int], start: int, end: int, implied: bool) -> tuple[Header, int]:
    header = tuple(ids[start:end])
    if implied:
        header, start = (ASSISTANT, *header), start - 1
    return (parse_header(header) if len(header) <= 64 else parse_header.__wrapped__(header)), start


def _body(ids: Sequence[int], marks: Sequence[int], k: int, faults: list[Fault]) -> int:
    """Index of the mark that ends the body; the first special id inside it is a fault."""
    first: int | None = None
    count = 0
    while k < len(marks):
        at = marks[k]
        token = ids[at]
        if token in _TERMINATORS or (token == START and at + 1 < len(ids) and ids[at + 1] == ASSISTANT):
            break
        first = at if first is None else first
        count += 1
        k += 1
    if first is not None:
        faults.append((Code.SPECIAL_IN_CONTENT, first, f"{count} special ids, the first is {ids[first]}"))
    return k


def _skip_stray(ids: Sequence[int], marks: Sequence[int], k: int, at: int) -> tuple[int, int, bool]:
    """After stray tokens: the next mark, where the next header starts (beyond the end: nowhere), its role implied?"""
    j = k
    while j < len(marks) and ids[marks[j]] not in (START, MESSAGE):
        j += 1
    if j == len(marks):
        return j, len(ids) + 1, False
    if ids[marks[j]] == START:
        return j + 1, marks[j] + 1, False
    return k, at, True


@lru_cache(maxsize=4096)
def parse_header(ids: tuple[int, ...]) -> Header:
    """The header whose tokens, from the role to the one before `<|message|>`, are `ids`."""
    return _HeaderReader(ids).read()


class _HeaderReader:
    """Reads one header; a class only because its steps share the offsets and the list of faults."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.faults: list[Fault] = []
        self.sections: list[tuple[bytes, int]] = []  # bytes, and the offset of their first one
        self.offsets: list[int] = []  # of each token
        self.recipients: list[tuple[bytes, RecipientPosition, int]] = []
        self.content_type: tuple[bytes, int] | None = None
        token_bytes = load_vocabulary().decode_bytes
        section, start, length = [], 0, 0
        for at, id_ in enumerate(ids):
            self.offsets.append(length)
            if id_ == CHANNEL:
                self.sections.append((b"".join(section), start))
                section, start, length = [], length + 1, length + 1
                continue
            if id_ == CONSTRAIN:
                piece = _CONSTRAIN_BYTE
            elif id_ < N_TEXT:
                piece = token_bytes((id_,)).replace(_CONSTRAIN_BYTE, b"?")
            else:
                piece = b""
                self.faults.append((Code.HEADER_GRAMMAR, at, f"special id {id_} in a header"))
            section.append(piece)
            length += len(piece)
        self.sections.append((b"".join(section), start))

    def read(self) -> Header:
        (role_bytes, _), *channels = self.sections
        role, name = self._role(role_bytes, bool(channels))
        channel, channel_at = self._channel(channels, role)
        if len(self.recipients) > 1:
            self._fault(Code.TWO_RECIPIENTS, self.recipients[1][2], "a second recipient")
        recipient, position, at = self.recipients[0] if self.recipients else (None, None, 0)
        content_type, type_at = self.content_type or (None, 0)
        return Header(
            role=role,
            name=name,
            channel=channel,
            channel_at=channel_at,
            recipient=None if recipient is None else recipient.decode("utf-8", "replace"),
            recipient_position=position,
            recipient_at=self._token(at),
            content_type=None if content_type is None else _type_text(content_type),
            content_type_at=self._token(type_at),
            faults=tuple(self.faults),
        )

    def _role(self, text: bytes, has_channel: bool) -> tuple[str, str | None]:
        match = _WORD.match(text)
        assert match is not None
        role, rest, name = match.group(), match.end(), None
        if role.startswith(b"assistant") and role != b"assistant":
            role, rest = b"assistant", len(b"assistant")
        if text[rest : rest + 1] == b":" and text[:rest] == role:
            end = text.find(b" to=", rest)
            end = len(text) if end < 0 else end
            name, rest = text[rest + 1 : end].decode("utf-8", "replace"), end
        if role != b"assistant" or name is not None:
            found = text[:rest].decode("utf-8", "replace")
            self._fault(Code.ROLE_NOT_ASSISTANT, 0, f"the role is {found[:60]!r}")
        self._tail(text[rest:], rest, "role", typed=not has_channel)
        return role.decode("utf-8", "replace"), name

    def _channel(self, channels: list[tuple[bytes, int]], role: str) -> tuple[Channel | None, int]:
        """The channel understood: the last known one; faults are those of the first."""
        if not channels:
            if role == "assistant":
                self._fault(Code.NO_CHANNEL, self.offsets[-1], "no <|channel|>")
            return None, 0
        understood: tuple[Channel | None, int] = (None, self._token(channels[0][1]))
        for number, (text, offset) in enumerate(channels):
            match = _CHANNEL_NAME.match(text)
            assert match is not None
            name = match.group().decode("utf-8", "replace")
            if name in _CHANNELS:
                understood = (_CHANNELS[name], self._token(offset))
            elif number == 0 and not name:
                self._fault(Code.EMPTY_CHANNEL, offset - 1, "no name after <|channel|>")
            elif number == 0:
                self._fault(Code.UNKNOWN_CHANNEL, offset, f"the channel is {name[:60]!r}")
            if number == 1:
                self._fault(Code.SECOND_CHANNEL, offset - 1, "a second <|channel|>")
            self._tail(text[match.end() :], offset + match.end(), "channel", typed=True)
        return understood

    def _tail(self, text: bytes, offset: int, position: RecipientPosition, *, typed: bool) -> None:
        """What follows a role or channel name: ` to=recipient`, then ` content_type`."""
        match = _TAIL.match(text)
        assert match is not None
        kind = match["type"]
        fine = match.end() == len(text) and (kind is None or (typed and _is_content_type(kind)))
        if fine:
            if match["to"] is not None:
                self.recipients.append((match["to"], position, offset + match.start("to")))
            if kind is not None:
                self.content_type = (kind, offset + match.start("type"))
            return
        found = list(_RECIPIENT.finditer(text))
        self.recipients.extend((m[1], position, offset + m.start(1)) for m in found)
        loose = _CONTENT_TYPE.search(text)
        if loose is not None:
            self.content_type = (loose.group(), offset + loose.start())
        if len(found) != 2 or not _TAIL.fullmatch(text[: found[1].start() - 1] + text[found[1].end() :]):
            bad = match.end() if match.end() < len(text) else match.start("type")
            readable = text.replace(_CONSTRAIN_BYTE, b"<|constrain|>").decode("utf-8", "replace")
            self._fault(Code.HEADER_GRAMMAR, offset + bad, f"the header continues with {readable[:80]!r}")

    def _fault(self, code: Code, offset: int, detail: str) -> None:
        self.faults.append((code, self._token(offset), detail))

    def _token(self, offset: int) -> int:
        """Index of the token that holds the byte at `offset` (the last one where it is beyond them)."""
        low, high = 0, len(self.offsets)
        while high - low > 1:
            middle = (low + high) // 2
            if self.offsets[middle] <= offset:
                low = middle
            else:
                high = middle
        return low


def _is_content_type(kind: bytes) -> bool:
    return kind.startswith(_CONSTRAIN_BYTE) or kind in PLAIN_CONTENT_TYPES


def _type_text(kind: bytes) -> str:
    return kind.replace(_CONSTRAIN_BYTE, b"<|constrain|>").decode("utf-8", "replace")
