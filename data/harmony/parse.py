"""Rendered Harmony text back into messages: a whole conversation, a prompt, or one completion.

Unlike `completion.parse_completion` it takes nothing but right grammar, because what it reads becomes training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Message, Role
from counterpoint.data.harmony.checker import read
from counterpoint.data.harmony.codes import CODES, Code
from counterpoint.data.harmony.grammar import ASSISTANT, Fault, Scan, Span, scan
from counterpoint.data.harmony.vocabulary import Vocabulary, load_vocabulary

_ROLES = frozenset({"system", "developer", "user", "assistant"})


def messages_of(
    ids: Sequence[int], vocabulary: Vocabulary | None = None, *, keep_ids: bool = False
) -> tuple[Message, ...]:
    """The messages that `ids` hold; raises RowError where they are not Harmony, with the token as field.

    ids: a conversation, a prompt (its last `<|start|>assistant` is ignored), or a completion (it starts after
    `<|start|>assistant`). A system message has the role `system`, for the caller to read effort, date and tools from.
    A tool's result has the tool's full name as `name`. keep_ids: assistant messages carry theirs as `raw_ids`.
    """
    vocabulary = vocabulary or load_vocabulary()
    reading = read(ids)
    for code, at, detail in reading.faults:
        if code in (Code.ID_OUT_OF_RANGE, Code.EMPTY):
            raise _error(code, at, detail)
    start, marks = reading.first, reading.marks
    if reading.first:  # `<|start|>assistant` is the first message's own
        start, marks = 0, [0, *marks]
    found = scan(reading.ids, marks, start, whole=True)
    _refuse_faults(found, reading.ids)
    return tuple(_message(span, reading.ids, vocabulary, keep_ids) for span in found.spans)


def _refuse_faults(found: Scan, ids: list[int]) -> None:
    harmless: set[Fault] = set()
    for span in found.spans:
        for fault in span.header.faults:
            code, at, detail = fault
            if code is Code.ROLE_NOT_ASSISTANT:
                harmless.add((code, span.origin + at, detail))
    for fault in found.faults:
        if fault not in harmless:
            raise _error(*fault)
    asks = found.state == "header" and ids[found.at :] == [ASSISTANT]
    if found.state == "body" or (found.state == "header" and not asks):
        raise _error(Code.TRUNCATED, len(ids) - 1, "the last message does not end")


def _error(code: Code, at: int, detail: str) -> RowError:
    what = f"{CODES[code.value]} ({detail})"
    return RowError(code.value, f"tokens[{at}]", what, "give complete, well-formed messages")


def _message(span: Span, ids: list[int], vocabulary: Vocabulary, keep_ids: bool) -> Message:
    header = span.header
    name = header.name
    if header.role in _ROLES:
        role = cast(Role, header.role)
    else:
        role, name = "tool", header.role if name is None else f"{header.role}:{name}"
    try:
        content = vocabulary.text_bytes(ids[span.body_start : span.body_end]).decode()
    except UnicodeDecodeError as error:
        raise _error(Code.NOT_UTF8, span.body_start, error.reason) from None
    sampled = role == "assistant" and keep_ids
    return Message(
        role=role,
        content=content,
        channel=header.channel,
        recipient=header.recipient if role == "assistant" else None,
        name=name,
        content_type=header.content_type,
        raw_ids=tuple(ids[span.origin + 1 : span.body_end + 1]) if sampled else None,
    )
