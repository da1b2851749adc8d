"""Builds a Conversation from the contents of any chat format: instructions, users, assistants, tool results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import (
    CONSTRAIN_JSON,
    Channel,
    Conversation,
    Effort,
    Message,
    Notice,
    ResponseFormat,
    Tool,
)
from counterpoint.data.formats.call_arguments import arguments_text, with_required_nulls
from counterpoint.data.formats.call_pairing import Event, pair
from counterpoint.data.formats.harmony_system import parse_system
from counterpoint.data.formats.meaning import is_said, meaning_of, sample_of
from counterpoint.data.formats.roles import Speaker
from counterpoint.data.formats.tool_names import ToolNames
from counterpoint.data.rows.strict_json import dumps, loads
from counterpoint.data.rows.tables import Padded

_MARKUP = re.compile(r"<\|(?:start|end|message|channel|constrain|call|return|startoftext|endoftext)\|>")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as a source gives it.

    custom: the arguments are free text, not JSON. native: the source's format has arguments as an object.
    """

    name: str
    arguments: Any
    field: str
    id: str | None = None
    arguments_field: str = ""
    custom: bool = False
    native: bool = False


class Draft:
    """A conversation under construction. Fields in its methods are paths in the source row, for notices and errors."""

    def __init__(self, format: str, options: ConversionSettings, builtin_tools: Sequence[str] = ()) -> None:
        self.format = format
        self.options = options
        self.notices: list[Notice] = []
        self.metadata: dict[str, Any] = {}
        self.response_formats: tuple[ResponseFormat, ...] = ()
        self.effort: Effort | None = None
        self.date: str | None = None
        self.identity: str | None = None
        self.weight = 1.0
        self.parallel_calls_allowed = True
        self.is_context = False  # while it is set, assistant messages are context: their weight is 0
        self.roles: Mapping[str, Speaker] = {}  # names of speakers, of the source's own
        self.names = ToolNames(options, self.notice, tuple(dict.fromkeys((*options.builtin_tools, *builtin_tools))))
        self.instructions: list[str] = []
        self._events: list[Event] = []
        self._seen_unused: set[str] = set()
        self._group = 0

    def notice(self, kind: str, field: str, detail: str) -> None:
        self.notices.append(Notice(kind, field, detail))

    def unused(self, key: str, field: str, value: Any) -> None:
        """A field that no rule reads: kept in the metadata, reported once per key with a sample; by its meaning where
        its name has one."""
        self.metadata[field] = value
        if key in self._seen_unused:
            return
        self._seen_unused.add(key)
        meaning = meaning_of(key) if is_said(value) else None
        if meaning is None:
            self.notice("unused_field", key, f"kept as metadata, not rendered: {sample_of(value)}")
        else:
            self.notice("unread_field", key, f"is the name of {meaning}, and was not read here: {sample_of(value)}")

    def declare(self, tools: Sequence[Tool], builtin_tools: Sequence[str], field: str) -> None:
        """Tools that the row declares. Raises RowError where two of one name differ."""
        self.names.declare(tools, field)
        self.names.offer(builtin_tools)

    def system(self, text: str, field: str, name: str | None = None) -> None:
        """A system or developer message: the instructions, as long as the conversation has not begun."""
        self._check_text(text, field)
        begun = any(event.message.role != "developer" for event in self._events)
        if not begun and name is None:
            self.opening_text(text, field)
            return
        if begun and self.options.late_system == "quarantine":
            what = "a system message after the conversation began"
            raise RowError("late_system", field, what, "move it to the front, or set data.late_system: developer")
        kind = "late_system" if begun else "named_system"
        self.notice(kind, field, "written as a developer message in its place")
        self._add(Message("developer", text, name=name), field)

    def opening_text(self, text: str, field: str) -> None:
        """A system or developer text that opens the conversation."""
        if self.options.harmony_system == "parse":
            rest = self._harmony_block(text, field)
            if text and not rest:
                return
            text = rest
        if any(self.instructions):
            self.notice("second_system", field, "a developer message of its own, as servers write it")
            self._add(Message("developer", text), field)
            return
        self.instructions.append(text)

    def _harmony_block(self, text: str, field: str) -> str:
        """Takes the settings of Harmony's own system block; the rest are instructions."""
        if self.format == "harmony" and text.startswith("# Instructions\n\n"):
            self.notice("harmony_developer", field, "the heading # Instructions was taken off")
            return text.removeprefix("# Instructions\n\n")
        block = parse_system(text)
        if block is None:
            return text
        self.notice("harmony_system", field, "a Harmony system block: effort, date and identity taken from it")
        self.effort, self.date, self.identity = block.effort or self.effort, block.date, block.identity
        self.names.offer(block.builtin_tools)
        if block.rest:
            self.notice("harmony_system_rest", field, "text of the block that gpt-oss's does not have: instructions")
        return block.rest

    def user(self, text: str, field: str, name: str | None = None) -> None:
        self._check_text(text, field)
        self._add(Message("user", text, name=name), field)

    def assistant(
        self,
        field: str,
        *,
        thinking: str | None = None,
        text: str | None = None,
        calls: Sequence[Call] = (),
        weight: float = 1.0,
        name: str | None = None,
        text_field: str | None = None,
        phase: Literal["commentary", "final"] | None = None,
    ) -> None:
        """One assistant message. Thinking goes before everything else; text in a message with calls is a preamble.

        phase: the kind of the text, where the source names it.
        """
        text_field = text_field or f"{field}.content"
        if self.is_context:
            weight = 0.0
        if thinking is not None and thinking.strip():
            self._check_text(thinking, field)
            self._say(thinking, "analysis", field, weight, name)
        if text:
            self._check_text(text, text_field)
            channel: Channel = phase or "final"
            if calls and phase is None:
                thought = bool(thinking and thinking.strip())
                as_analysis = self.options.text_beside_call == "analysis" and not thought
                channel = "analysis" if as_analysis else "commentary"
                self.notice("text_beside_call", text_field, f"text next to a tool call was written on {channel}")
            self._say(text, channel, text_field, weight, name)
        elif text is not None and not calls and not (thinking and thinking.strip()):
            if weight > 0:
                what = "an empty answer would be trained"
                raise RowError("empty_answer", text_field, what, "write the answer, or weight 0 for context only")
            self._say("", "final", text_field, weight, name)
            self.notice("empty_content", text_field, "is empty")
        if calls:
            self._calls(calls, field, weight, name)

    def result(self, text: str, field: str, id: str | None = None, name: str | None = None) -> None:
        """A tool's result. id: of the call that it answers; name: the tool's, where the source gives one."""
        self._check_text(text, field)
        if name is not None:
            name = self.names.used(name)
        message = Message("tool", text, name=name)
        self._events.append(Event(message, field, "result", id))

    def _say(self, text: str, channel: Channel, field: str, weight: float, name: str | None) -> None:
        self._add(Message("assistant", text, channel=channel, weight=weight, name=name), field)

    def _add(self, message: Message, field: str) -> None:
        self._events.append(Event(message, field))

    def _calls(self, calls: Sequence[Call], field: str, weight: float, name: str | None) -> None:
        if len(calls) > 1 and not self.parallel_calls_allowed:
            what = f"{len(calls)} calls although parallel_tool_calls is false"
            raise RowError(
                "parallel_calls", calls[1].field, what, "keep one call a message, or say parallel_tool_calls: true"
            )
        if len(calls) > 1:
            how = (
                "kept together, the first trained" if self.options.parallel_calls == "together" else "paired one by one"
            )
            self.notice("parallel_calls", field, f"{len(calls)} calls at once were {how}")
            if self.options.parallel_calls == "first":
                self.notice("call_dropped", calls[1].field, f"{len(calls) - 1} parallel calls were left out")
                calls = calls[:1]
        self._group += 1
        for number, call in enumerate(calls):
            # Behind a first call nothing is sampled before its result is there.
            factor = 0.0 if number and self.options.parallel_calls == "together" else weight
            self._events.append(Event(self._call_message(call, factor, name), call.field, "call", call.id, self._group))

    def _call_message(self, call: Call, weight: float, name: str | None) -> Message:
        where = call.arguments_field or f"{call.field}.arguments"
        recipient = self.names.recipient(call.name, call.field)
        if not recipient.startswith("functions."):
            code = builtin_text(recipient, call.arguments, where, self)
            return Message("assistant", code, "analysis", recipient, name, "code", weight)
        arguments = call.arguments
        if isinstance(arguments, Padded):
            arguments = with_required_nulls(arguments, self.names.parameters(call.name))
        if call.custom:
            text = arguments if isinstance(arguments, str) else ""
            self.notice("custom_tool", call.field, "a call with free text: written without a content type")
            content_type = None
        elif call.native and isinstance(arguments, dict):
            text, content_type = dumps(arguments), CONSTRAIN_JSON
        else:
            text = arguments_text(arguments, where, self.options, self.notice)
            content_type = CONSTRAIN_JSON
        self._check_text(text, where)
        return Message("assistant", text, "commentary", recipient, name, content_type, weight)

    def _check_text(self, text: str, field: str) -> None:
        if "<|" in text and (found := _MARKUP.search(text)):
            if self.options.harmony_markup == "quarantine":
                what = f"holds the control token {found.group()}"
                raise RowError("harmony_markup", field, what, "remove it, or read the file with format harmony")
            self.notice("harmony_markup", field, f"{found.group()} was kept as plain text")
        if "\x00" in text:
            self.notice("nul", field, "holds a NUL character")
        if not text:
            self.notice("empty_content", field, "is empty")

    def finish(self) -> Conversation:
        """The conversation. Raises RowError where it cannot be one."""
        self._preambles()
        messages = pair(self._events, self.options, self.notice)
        messages = self._open_end(messages)
        if messages and messages[-1].role != "assistant" and any(m.is_call or m.is_final for m in messages):
            self.notice(
                "open_end", "messages", f"ends in a {messages[-1].role} message: a prompt, its end is not trained"
            )
        if not any(message.role in ("user", "assistant") for message in messages):
            what = "no user and no assistant message" if messages or self.instructions else "no messages"
            raise RowError("no_dialogue", "messages", what, "write a user message and its answer")
        if messages[-1].role == "assistant" and messages[-1].channel == "analysis" and not messages[-1].is_call:
            raise RowError(
                "thinking_only", "messages", "ends in thinking without an answer or a call", "add the answer"
            )
        if not any(message.role == "user" for message in messages):
            raise RowError("no_user", "messages", "no user message", "write what the assistant answers")
        if (field := missing_thinking(messages)) is not None:
            self.notice("missing_thinking", field, "an answer or a call without thinking before it")
        return self.conversation(tuple(messages))

    def conversation(self, messages: tuple[Message, ...], opening_ids: tuple[int, ...] | None = None) -> Conversation:
        """What was collected, around messages that are Harmony's already."""
        return Conversation(
            messages=messages,
            instructions="\n\n".join(part for part in self.instructions if part) if self.instructions else None,
            tools=self.names.declared(),
            builtin_tools=self.names.builtin_tools(messages),
            response_formats=self.response_formats,
            effort=self.effort,
            date=self.date,
            identity=self.identity,
            weight=self.weight,
            opening_ids=opening_ids,
            metadata=self.metadata,
            notices=tuple(self.notices),
            format=self.format,
        )

    def _preambles(self) -> None:
        """A final directly followed by a message of the same speaker that calls a tool is the text before that call."""
        for i, event in enumerate(self._events[:-1]):
            following = self._events[i + 1]
            if not event.message.is_final or following.message.role != "assistant":
                continue
            if following.kind == "call" or (
                following.message.channel in ("analysis", "commentary") and self._calls_before_final(i + 1)
            ):
                event.message = replace(event.message, channel="commentary")
                self.notice("text_beside_call", event.field, "text right before a tool call was written on commentary")
            else:
                self.notice("consecutive_assistant", following.field, "two assistant messages in a row")

    def _calls_before_final(self, index: int) -> bool:
        for event in self._events[index : index + 4]:
            if event.kind == "call":
                return True
            if event.message.role != "assistant" or event.message.is_final:
                return False
        return False

    def _open_end(self, messages: list[Message]) -> list[Message]:
        if self.options.unanswered == "keep" or not messages or messages[-1].role == "assistant":
            return messages
        if self.options.unanswered == "quarantine":
            what = f"ends in a {messages[-1].role} message"
            raise RowError("unanswered", "messages", what, "add the answer, or set data.unanswered: trim")
        end = max((i + 1 for i, m in enumerate(messages) if m.role == "assistant"), default=0)
        if end:
            self.notice("trimmed_end", "messages", f"{len(messages) - end} messages after the last answer were cut")
            return messages[:end]
        return messages


def missing_thinking(messages: Sequence[Message]) -> str | None:
    """Where the first trained turn without analysis is, as `turn N`; None where there is none."""
    turn, thought, trained = 0, False, False
    for message in messages:
        if message.role == "user":
            if trained and not thought:
                return f"turn {turn}"
            turn, thought, trained = turn + 1, False, False
        elif message.role == "assistant":
            thought = thought or message.channel == "analysis"
            trained = trained or (message.weight > 0 and (message.is_final or message.is_call))
    return f"turn {turn}" if trained and not thought else None


def builtin_text(recipient: str, arguments: Any, field: str, draft: Draft) -> str:
    """What a call to a built-in tool holds: code for python, JSON for the browser."""
    if recipient == "python" and isinstance(arguments, str):
        text = arguments.strip()
        if not text.startswith("{"):
            return arguments
        try:
            arguments = loads(text.encode("utf-8", "surrogatepass"))
        except RowError:
            return text
    if recipient == "python" and isinstance(arguments, dict):
        code = arguments.get("code", arguments.get("input"))
        if isinstance(code, str):
            draft.notice("builtin_code", field, "the code was taken out of the arguments")
            return code
    return arguments_text(arguments, field, draft.options, draft.notice)
