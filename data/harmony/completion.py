"""A sampled completion as a typed result: what scorers, rewards and reports read instead of a decoded string.

It is lenient where the model is sloppy (stray words in a header still leave its channel and recipient), and never takes
an unfinished message for an answer or a call. The faults are in `violations`, from the same single pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from counterpoint.data.conversation import Channel, ResponseFormat, Tool
from counterpoint.data.harmony.argument_schema import object_of
from counterpoint.data.harmony.checker import Reading, Rules, judge, read
from counterpoint.data.harmony.codes import Violation
from counterpoint.data.harmony.grammar import RecipientPosition, Span
from counterpoint.data.harmony.text import SPECIAL
from counterpoint.data.harmony.vocabulary import RETURN, Vocabulary, load_vocabulary

Stop = Literal["return", "call", "length", "end", "empty"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A finished call.

    recipient: as written (`functions.f`); namespace and name: its two parts (`python` has no namespace).
    arguments: the JSON object of `arguments_text`, None where it is none (code for the `python` tool, or malformed).
    """

    name: str
    namespace: str | None
    recipient: str
    arguments_text: str
    arguments: dict[str, Any] | None
    recipient_position: RecipientPosition
    channel: Channel | None


@dataclass(frozen=True, slots=True)
class Completion:
    """What a completion holds, by channel.

    analysis: all chain of thought, messages joined by a newline, an unfinished one included; None without any.
    preambles: finished commentary without a recipient. calls: finished messages with a recipient, in order.
    final: the first finished final; None where there is none. unfinished: text of the message in which the ids end,
    with its channel. n_tokens_by_channel: tokens of the bodies (`other`: of messages whose channel is unknown).
    stop: `return` or `call`, the stop token; `length`: cut inside a message, or by `finish_reason`;
    `end`: nothing after an `<|end|>`; `empty`: no token.
    """

    analysis: str | None
    preambles: tuple[str, ...]
    calls: tuple[ToolCall, ...]
    final: str | None
    unfinished: str | None
    unfinished_channel: Channel | None
    n_tokens_by_channel: dict[str, int]
    stop: Stop
    violations: tuple[Violation, ...]
    ids: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Right by every rule."""
        return not self.violations

    @property
    def codes(self) -> frozenset[str]:
        return frozenset(violation.code for violation in self.violations)


def parse_completion(
    ids: Sequence[int],
    vocabulary: Vocabulary | None = None,
    *,
    tools: Sequence[Tool] | None = None,
    builtin_tools: Sequence[str] | None = None,
    effort: str | None = None,
    response_format: ResponseFormat | bool = False,
    finish_reason: str | None = None,
    policy: bool = True,
) -> Completion:
    """Read and judge the completion `ids` (a leading `<|start|>assistant` is ignored); arguments as in `Rules`.

    Never raises on any list of ids. Text that is not UTF-8 holds U+FFFD.
    """
    vocabulary = vocabulary or load_vocabulary()
    rules = Rules(tools, builtin_tools, effort, response_format, finish_reason, policy)
    reading = read(ids)
    violations = judge(reading, rules, vocabulary).violations
    analysis: list[str] = []
    preambles: list[str] = []
    calls: list[ToolCall] = []
    final: str | None = None
    unfinished: tuple[str, Channel | None] | None = None
    tokens = {"analysis": 0, "commentary": 0, "final": 0, "other": 0}
    for span in reading.spans:
        header = span.header
        tokens[header.channel or "other"] += span.body_end - span.body_start
        text = _text(reading, span, vocabulary)
        if span.terminator is None:
            unfinished = (text, header.channel)
        if header.channel == "analysis" and header.recipient is None:
            analysis.append(text)
        elif span.terminator is None:
            continue
        elif header.recipient is not None:
            calls.append(_call(span, text))
        elif header.channel == "commentary":
            preambles.append(text)
        elif header.channel == "final" and final is None:
            final = text
    return Completion(
        analysis="\n".join(analysis) if analysis else None,
        preambles=tuple(preambles),
        calls=tuple(calls),
        final=final,
        unfinished=unfinished[0] if unfinished else None,
        unfinished_channel=unfinished[1] if unfinished else None,
        n_tokens_by_channel=tokens,
        stop=_stop(reading, finish_reason),
        violations=violations,
        ids=tuple(ids),
    )


class FinishedMessage(TypedDict):
    """A message of a completion as it was read; `content_type` as in the header."""

    channel: Channel | None
    recipient: str | None
    content_type: str | None
    text: str


def finished_messages(reading: Reading, vocabulary: Vocabulary) -> list[FinishedMessage]:
    """Every finished message of a completion, in order; text that is not UTF-8 holds U+FFFD."""
    return [
        FinishedMessage(
            channel=span.header.channel,
            recipient=span.header.recipient,
            content_type=span.header.content_type,
            text=_text(reading, span, vocabulary),
        )
        for span in reading.spans
        if span.terminator is not None
    ]


def _text(reading: Reading, span: Span, vocabulary: Vocabulary) -> str:
    body = reading.ids[span.body_start : span.body_end]
    if reading.flags.find(SPECIAL, span.body_start, span.body_end) >= 0:
        return vocabulary.decode(body)
    return vocabulary.text_bytes(body).decode("utf-8", "replace")


def _call(span: Span, text: str) -> ToolCall:
    header = span.header
    recipient = header.recipient or ""
    namespace, dot, name = recipient.partition(".")
    return ToolCall(
        name=name if dot else recipient,
        namespace=namespace if dot else None,
        recipient=recipient,
        arguments_text=text,
        arguments=object_of(text.encode())[0],
        recipient_position=header.recipient_position or "channel",
        channel=header.channel,
    )


def _stop(reading: Reading, finish_reason: str | None) -> Stop:
    found = reading.scan
    if len(reading.ids) == reading.first:
        return "empty"
    if finish_reason == "length" or found.state in ("header", "body"):
        return "length"
    if found.state == "between":
        return "end"
    return "return" if reading.ids[found.at] == RETURN else "call"
