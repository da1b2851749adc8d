"""The strict check of a sampled completion, on token ids: one code a rule (`counterpoint.data.harmony.codes`).

It judges what a model sampled after a prompt that ends in `<|start|>assistant`. It never raises on any list of ids, and
runs in time linear in them. openai-harmony's own parser is a lenient reader: `official.harmony_accepts` asks it.
"""

from __future__ import annotations

import operator
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoint.data.conversation import ResponseFormat, Tool
from counterpoint.data.harmony.argument_schema import invalid, object_of, value_of
from counterpoint.data.harmony.codes import POLICY_CODES, Code, Violation
from counterpoint.data.harmony.grammar import ASSISTANT, Header, RecipientPosition, Scan, Span, scan
from counterpoint.data.harmony.text import (
    LOOP_TOKENS,
    SPECIAL,
    is_blank,
    may_break_text_rules,
    repetition_loop,
    text_faults,
    token_at,
    token_flags,
)
from counterpoint.data.harmony.vocabulary import (
    CALL,
    CHANNEL,
    N_VOCAB,
    RETURN,
    START,
    Vocabulary,
    load_vocabulary,
)

BUILTIN_NAMESPACES = frozenset({"python", "browser"})
BROWSER_FUNCTIONS = frozenset({"search", "open", "find"})
THINKING_EFFORTS = frozenset({"medium", "high"})
TOLD_OF_A_CODE = 100
_BAD_ID_STANDS_AS = 30  # "?"
_TOOL_NAME = re.compile(r"[\w.:/@-]+")


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check found.

    violations: by position, the first TOLD_OF_A_CODE of a code. recipient_positions: of each call, in order.
    """

    violations: tuple[Violation, ...]
    recipient_positions: tuple[RecipientPosition, ...]

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def codes(self) -> frozenset[str]:
        return frozenset(violation.code for violation in self.violations)

    @property
    def recipient_position(self) -> str | None:
        """`role` or `channel` (`mixed` where calls differ); None without a call."""
        positions = set(self.recipient_positions)
        return None if not positions else positions.pop() if len(positions) == 1 else "mixed"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a completion is checked against.

    tools: the function tools declared, None where that is not known (then no call is unknown). builtin_tools: names
    offered, as `python`, `browser`, or any other namespace that is called on analysis; None where that is not known.
    effort: asks for analysis where medium or high. response_format: finals hold to its schema; True where it is not
    known; either allows a content type on them.
    finish_reason: `length` means that sampling was cut. policy: whether the rules of POLICY_CODES count.
    """

    tools: Sequence[Tool] | None = None
    builtin_tools: Sequence[str] | None = None
    effort: str | None = None
    response_format: ResponseFormat | bool = False
    finish_reason: str | None = None
    policy: bool = True


@dataclass(slots=True)
class Reading:
    """A completion read once.

    ids: clean ids; packed: the same as an array of shape (N,); flags: one byte a token (`text.token_flags`);
    marks: positions of special ids; first: where the first message starts; scan: every message; spans: the assistant's
    (those of another role are a fault, and nothing else about them is reported); faults: structural ones.
    """

    ids: list[int]
    packed: npt.NDArray[np.uint32]
    flags: bytes
    marks: list[int]
    first: int
    scan: Scan
    spans: list[Span]
    faults: list[tuple[Code, int, str]]


def check(
    ids: Sequence[int],
    *,
    tools: Sequence[Tool] | None = None,
    builtin_tools: Sequence[str] | None = None,
    effort: str | None = None,
    response_format: ResponseFormat | bool = False,
    vocabulary: Vocabulary | None = None,
    finish_reason: str | None = None,
    policy: bool = True,
) -> Checked:
    """Judge the completion `ids` (a leading `<|start|>assistant` is ignored); arguments as in `Rules`.

    Positions are indices into `ids` as given. Both recipient positions are right, and recorded.
    """
    rules = Rules(tools, builtin_tools, effort, response_format, finish_reason, policy)
    return judge(read(ids), rules, vocabulary or load_vocabulary())


def read(ids: Sequence[int]) -> Reading:
    """One pass over the ids: messages and structural faults. Ids that are none are read as `?`."""
    given = ids if type(ids) is list else ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    faults: list[tuple[Code, int, str]] = []
    try:
        packed_N = np.frombuffer(array("I", given), dtype=np.uint32)
        flags = token_flags().take(packed_N).tobytes()
    except (TypeError, ValueError, OverflowError, IndexError):
        given, faults = _without_bad_ids(given)
        packed_N = np.array(given, dtype=np.uint32)
        flags = token_flags().take(packed_N).tobytes()
    first = 2 if given[:2] == [START, ASSISTANT] else 0
    if len(given) == first:
        faults.append((Code.EMPTY, 0, "no token was sampled"))
        return Reading(given, packed_N, flags, [], first, Scan([], [], "between", 0), [], faults)
    marks: list[int] = []
    at = flags.find(SPECIAL, first)
    while at >= 0:
        marks.append(at)
        at = flags.find(SPECIAL, at + 1)
    found = scan(given, marks, first)
    spans = [span for span in found.spans if span.header.role == "assistant"]
    return Reading(given, packed_N, flags, marks, first, found, spans, faults + found.faults)


def _without_bad_ids(given: Iterable[Any]) -> tuple[list[int], list[tuple[Code, int, str]]]:
    clean: list[int] = []
    bad: list[tuple[int, str]] = []
    for at, value in enumerate(given):
        try:
            id_ = operator.index(value)
            what = str(id_) if abs(id_) < 10**20 else "a huge number"
        except Exception:
            id_, what = -1, f"of type {type(value).__name__}"
        if not 0 <= id_ < N_VOCAB:
            bad.append((at, what))
            id_ = _BAD_ID_STANDS_AS
        clean.append(id_)
    return clean, [(Code.ID_OUT_OF_RANGE, bad[0][0], f"{bad[0][1]} ({len(bad)} in all)")] if bad else []


def judge(reading: Reading, rules: Rules, vocabulary: Vocabulary) -> Checked:
    """The result for a completion that was read."""
    faults = reading.faults.copy()
    spans = reading.spans
    if len(reading.ids) > reading.first:
        for span in spans:
            _ending(reading.ids, span, faults)
            if span.header.content_type is not None and span.header.recipient is None:
                _content_type(span, rules, faults)
            if span.header.recipient is not None and span.header.recipient_position is not None:
                _tool(reading, span, rules, vocabulary, faults)
            _body(reading, span, faults)
            if isinstance(rules.response_format, ResponseFormat):
                _structured_final(reading, span, rules.response_format, vocabulary, faults)
        _stop(reading, rules, faults)
        _order(reading, rules, faults)
        _text(reading, vocabulary, faults)
    if not rules.policy:
        faults = [fault for fault in faults if fault[0] not in POLICY_CODES]
    faults.sort(key=operator.itemgetter(1))
    if len(faults) > TOLD_OF_A_CODE:
        faults = _first_of_each_code(faults)
    return Checked(
        tuple(Violation(code.value, at, detail) for code, at, detail in faults),
        tuple(position for span in spans if (position := span.header.recipient_position) is not None),
    )


Faults = list[tuple[Code, int, str]]


def _first_of_each_code(faults: Faults) -> Faults:
    counts: Counter[Code] = Counter()
    kept: Faults = []
    for fault in faults:
        counts[fault[0]] += 1
        if counts[fault[0]] <= TOLD_OF_A_CODE:
            kept.append(fault)
    return kept


def _ending(ids: list[int], span: Span, faults: Faults) -> None:
    """A recipient if and only if `<|call|>`; a final if and only if `<|return|>`. A cut message is not judged."""
    if span.terminator is None:
        return
    at, header = span.body_end, span.header
    ended = _NAMES.get(span.terminator, "<|end|>")
    if header.recipient is not None and span.terminator != CALL:
        faults.append((Code.RECIPIENT_WITHOUT_CALL, at, f"a call to {header.recipient[:60]} ends in {ended}"))
    if header.recipient is None and span.terminator == CALL:
        faults.append((Code.CALL_WITHOUT_RECIPIENT, at, f"a message on {header.channel} without a recipient"))
    if header.channel is None:
        return
    if header.channel == "final" and span.terminator != RETURN:
        faults.append((Code.FINAL_WITHOUT_RETURN, at, f"the final ends in {ended}"))
    if header.channel != "final" and span.terminator == RETURN:
        faults.append((Code.RETURN_WITHOUT_FINAL, at, f"a message on {header.channel} ends in <|return|>"))


_NAMES = {CALL: "<|call|>", RETURN: "<|return|>"}


def _content_type(span: Span, rules: Rules, faults: Faults) -> None:
    header = span.header
    if not (rules.response_format and header.channel == "final"):
        at = span.origin + header.content_type_at
        faults.append((Code.CONTENT_TYPE_WITHOUT_RECIPIENT, at, f"{header.content_type} on {header.channel}"))


def _tool(reading: Reading, span: Span, rules: Rules, vocabulary: Vocabulary, faults: Faults) -> None:
    """Name, channel and arguments of a call."""
    header = span.header
    recipient = header.recipient or ""
    at = span.origin + header.recipient_at
    namespace, dot, name = recipient.partition(".")
    offered = rules.builtin_tools
    builtin = namespace in BUILTIN_NAMESPACES or (offered is not None and {namespace, recipient} & {*offered})
    schema = None
    if namespace == "functions" and dot:
        if header.channel not in ("commentary", None):
            faults.append((Code.FUNCTION_NOT_ON_COMMENTARY, _channel_at(span), f"{recipient[:60]} on {header.channel}"))
        declared = None if rules.tools is None else next((t for t in rules.tools if t.name == name), None)
        if declared is None and (rules.tools is not None or not _TOOL_NAME.fullmatch(name)):
            faults.append((Code.UNKNOWN_TOOL, at, f"{recipient[:80]!r} is not declared"))
        schema = declared.parameters if declared is not None else None
    elif not dot and not (builtin and recipient != "browser"):
        faults.append((Code.BARE_NAME, at, f"{recipient[:80]!r} has no namespace"))
        return
    elif builtin:
        if header.channel not in ("analysis", None):
            faults.append((Code.BUILTIN_NOT_ON_ANALYSIS, _channel_at(span), f"{recipient[:60]} on {header.channel}"))
        if offered is not None and not {namespace, recipient} & {*offered}:
            faults.append((Code.BUILTIN_NOT_OFFERED, at, f"{namespace} was not offered"))
        elif (namespace == "python" and dot) or (namespace == "browser" and name not in BROWSER_FUNCTIONS):
            faults.append((Code.UNKNOWN_TOOL, at, f"{recipient[:80]!r} is no function of {namespace}"))
    elif rules.tools is not None or offered is not None or not _TOOL_NAME.fullmatch(recipient):
        faults.append((Code.UNKNOWN_TOOL, at, f"{recipient[:80]!r} is not declared"))
    if span.terminator is not None and _takes_json(namespace, header):
        _arguments(reading, span, schema, vocabulary, faults)


def _takes_json(namespace: str, header: Header) -> bool:
    return namespace in ("functions", "browser") or (header.content_type or "").endswith("json")


def _arguments(reading: Reading, span: Span, schema: Any, vocabulary: Vocabulary, faults: Faults) -> None:
    body, text, plain = _text_of(reading, span, vocabulary)
    arguments, character, why = object_of(text)
    if arguments is None:
        offset = len(text.decode("utf-8", "replace")[:character].encode())
        at = span.body_start + (token_at(body, offset, vocabulary) if plain else 0)
        faults.append((Code.ARGUMENTS_NOT_OBJECT, at, why[:200]))
    elif schema is not None and (wrong := invalid(schema, arguments)) is not None:
        faults.append((Code.ARGUMENTS_INVALID, span.body_start, wrong))


def _structured_final(
    reading: Reading, span: Span, wanted: ResponseFormat, vocabulary: Vocabulary, faults: Faults
) -> None:
    if span.header.channel != "final" or span.header.recipient is not None or span.terminator is None:
        return
    value, _, why = value_of(_text_of(reading, span, vocabulary)[1])
    wrong = f"not JSON: {why}" if why else invalid(wanted.schema, value)
    if wrong is not None:
        faults.append((Code.FINAL_INVALID, span.body_start, wrong[:200]))


def _text_of(reading: Reading, span: Span, vocabulary: Vocabulary) -> tuple[list[int], bytes, bool]:
    """The ids of a body, its bytes, and whether no special id is in it."""
    body = reading.ids[span.body_start : span.body_end]
    plain = reading.flags.find(SPECIAL, span.body_start, span.body_end) < 0
    return body, vocabulary.text_bytes(body) if plain else vocabulary.decode_bytes(body), plain


def _channel_at(span: Span) -> int:
    return span.origin + span.header.channel_at


def _body(reading: Reading, span: Span, faults: Faults) -> None:
    """Blank finals and analyses, and repetition loops."""
    header = span.header
    length = span.body_end - span.body_start
    code = _BLANK.get(header.channel or "") if header.recipient is None and span.terminator is not None else None
    if code is not None and is_blank(reading.flags, span.body_start, span.body_end):
        faults.append((code, span.body_start, f"the {header.channel} holds no text"))
    if length >= LOOP_TOKENS:
        _loop(reading, span.body_start, span.body_end, faults)


_BLANK = {"final": Code.EMPTY_FINAL, "analysis": Code.EMPTY_ANALYSIS}


def _loop(reading: Reading, start: int, end: int, faults: Faults) -> None:
    loop = repetition_loop(reading.packed[start:end])
    if loop is not None:
        at, period, length = loop
        faults.append((Code.REPETITION_LOOP, start + at, f"{period} tokens over and over, {length} in all"))


def _stop(reading: Reading, rules: Rules, faults: Faults) -> None:
    """How the completion stops: truncated, or with neither a final nor a call."""
    found, last = reading.scan, len(reading.ids) - 1
    spans = reading.spans
    if found.state == "header":
        _open_header(reading, faults)
    ended = spans[-1].header if spans else None
    complete = found.state == "stopped" or (
        found.state == "between" and ended is not None and (ended.channel == "final" or ended.recipient is not None)
    )
    if not complete:
        faults.append((Code.TRUNCATED, last, "no <|return|> or <|call|>"))
    elif rules.finish_reason == "length":
        faults.append((Code.TRUNCATED, last, "finish_reason is length"))
    if found.state == "stopped" and spans and all(span.header.channel is not None for span in spans):
        unread = any(fault[0] in (Code.HEADER_WITHOUT_MESSAGE, Code.ROLE_NOT_ASSISTANT) for fault in reading.faults)
        answers = any(s.header.channel == "final" or s.header.recipient is not None for s in spans)
        if not answers and not unread:
            faults.append((Code.NO_FINAL_OR_CALL, found.at, "neither a final nor a call"))


def _open_header(reading: Reading, faults: Faults) -> None:
    """A header that the ids end in is judged only where no valid one could begin like it."""
    start, ids = reading.scan.at, reading.ids
    end = next((at for at in range(start, len(ids)) if ids[at] == CHANNEL), len(ids))
    role = ids[start:end]
    implied = start == reading.first and ids[start - 1 : start] != [START]
    if not implied and role[:1] == [ASSISTANT]:
        role, implied = role[1:], True
    if implied and role:
        text = load_vocabulary().decode_bytes(role[:64])
        if not (text.startswith(b" to=") or b" to=".startswith(text)):
            start_text = text[:60].decode("utf-8", "replace")
            faults.append((Code.HEADER_GRAMMAR, end - len(role), f"the header starts with {start_text!r}"))
    if len(ids) - start >= LOOP_TOKENS:
        _loop(reading, start, len(ids), faults)


def _order(reading: Reading, rules: Rules, faults: Faults) -> None:
    """Analysis before final, one final, and analysis where the effort asks for it."""
    finals, thought, answered = 0, False, False
    for span in reading.spans:
        header, at = span.header, span.origin + span.header.channel_at
        if header.channel == "analysis" and finals:
            faults.append((Code.ANALYSIS_AFTER_FINAL, at, "analysis after the final"))
        if header.channel == "final":
            finals += 1
            if finals == 2:
                faults.append((Code.SECOND_FINAL, at, "a second final"))
        answers = header.channel == "final" or header.recipient is not None
        if answers and not thought and not answered and rules.effort in THINKING_EFFORTS:
            faults.append((Code.NO_ANALYSIS, reading.first, f"effort {rules.effort} without analysis"))
        thought = thought or (header.channel == "analysis" and header.recipient is None)
        answered = answered or answers


def _text(reading: Reading, vocabulary: Vocabulary, faults: Faults) -> None:
    found = reading.scan
    end = found.at if found.state == "stopped" else len(reading.ids)
    if may_break_text_rules(reading.flags):
        cut = found.state in ("header", "body")
        region = range(reading.first, end)
        faults.extend(text_faults(reading.ids, reading.flags, reading.marks, region, cut, vocabulary))
