"""inspect's chat messages into a Harmony conversation, and a completion into inspect's output, channels kept.

    analysis   ContentReasoning          final      text, if it counts as an answer (`scorers.answer_of`)
    preambles  text                      calls      ToolCall, with a parse error where the arguments are no object

What was sampled is kept as ids in the message's metadata, and enters later prompts as it was sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    ResponseSchema,
    StopReason,
)
from inspect_ai.tool import ToolCall, ToolInfo

from counterpoint.configs.errors import DataError, RowError
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Effort, Message, ResponseFormat, Tool
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.completion import ToolCall as SampledCall
from counterpoint.data.harmony.parse import messages_of
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.scoring.scorers import answer_of

METADATA = "counterpoint"
_EFFORTS: dict[str, Effort] = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_STOPS: dict[str, StopReason] = {"return": "stop", "call": "tool_calls", "length": "max_tokens"}


def effort_of(config: GenerateConfig, default: Effort) -> Effort:
    """`reasoning_effort` as one of gpt-oss's three."""
    return default if config.reasoning_effort is None else _EFFORTS[config.reasoning_effort]


def conversation_of(
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolInfo],
    vocabulary: Vocabulary,
    response_schema: ResponseSchema | None = None,
) -> Conversation:
    """Leading system messages become the instructions, later ones developer messages. DataError for images, audio."""
    leading: list[str] = []
    out: list[Message] = []
    for message in messages:
        if message.role == "system" and not out:
            leading.append(_text(message))
        elif message.role == "system":
            out.append(Message("developer", _text(message)))
        elif message.role == "user":
            out.append(Message("user", _text(message)))
        elif isinstance(message, ChatMessageTool):
            out.append(_tool_result(message, out))
        elif isinstance(message, ChatMessageAssistant):
            out += _assistant(message, vocabulary)
    formats: tuple[ResponseFormat, ...] = ()
    if response_schema is not None:
        schema = response_schema.json_schema.model_dump(exclude_none=True)
        formats = (ResponseFormat(response_schema.name, schema, response_schema.description or ""),)
    return Conversation(
        messages=tuple(out),
        instructions="\n\n".join(leading) or None,
        tools=tuple(_tool(tool) for tool in tools),
        response_formats=formats,
    )


def _tool(tool: ToolInfo) -> Tool:
    schema = tool.parameters.model_dump(exclude_none=True)
    return Tool(tool.name, tool.description, schema if schema.get("properties") else None)


def _text(message: ChatMessage) -> str:
    for part in message.content_list:
        if part.type not in ("text", "reasoning"):
            raise DataError(f"a {message.role} message holds {part.type}, and gpt-oss reads text only: leave it out")
    return message.text


def _tool_result(message: ChatMessageTool, before: Sequence[Message]) -> Message:
    call = next((m for m in reversed(before) if m.is_call), None)
    content = message.error.message if message.error is not None else _text(message)
    name = call.recipient if call is not None and call.recipient else f"functions.{message.function or 'tool'}"
    return Message("tool", content, channel=call.channel if call is not None else "commentary", name=name)


def _assistant(message: ChatMessageAssistant, vocabulary: Vocabulary) -> list[Message]:
    """As sampled, where it was sampled by us and nobody changed it; else written from its parts."""
    ids = ((message.metadata or {}).get(METADATA) or {}).get("ids")
    if ids:
        completion = parse_completion(ids, vocabulary)
        if _shown(completion) == message.text and len(completion.calls) == len(message.tool_calls or ()):
            try:
                return list(messages_of(ids, vocabulary, keep_ids=True))
            except RowError:
                pass  # malformed: its parts are all that can be kept
    return _written(message)


def _written(message: ChatMessageAssistant) -> list[Message]:
    reasoning = "\n".join(part.reasoning for part in message.content_list if isinstance(part, ContentReasoning))
    text = _text(message)
    out = [Message("assistant", reasoning, channel="analysis")] if reasoning else []
    calls = message.tool_calls or []
    if text or not calls:
        out.append(Message("assistant", text, channel="commentary" if calls else "final"))
    for call in calls:
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        recipient = f"functions.{call.function}"
        out.append(
            Message("assistant", arguments, channel="commentary", recipient=recipient, content_type=CONSTRAIN_JSON)
        )
    return out


def output_of(
    completion: Completion, model: str, n_prompt: int, details: dict[str, Any], text: str, seconds: float
) -> ModelOutput:
    """inspect's view of a completion; `details` go into its metadata with ids, raw text, and the check's result."""
    shown = _shown(completion)
    parts: list[Content] = []
    if completion.analysis is not None:
        parts.append(ContentReasoning(reasoning=completion.analysis))
    if shown:
        parts.append(ContentText(text=shown))
    told = {
        **details,
        "ids": list(completion.ids),
        "text": text,
        "stop": completion.stop,
        "tokens": completion.n_tokens_by_channel,
        "violations": [{"code": v.code, "position": v.position, "detail": v.detail} for v in completion.violations],
    }
    message = ChatMessageAssistant(
        content=parts or "",
        tool_calls=[_call(call) for call in completion.calls] if completion.stop == "call" else None,
        model=model,
        source="generate",
        metadata={METADATA: told},
    )
    usage = ModelUsage(
        input_tokens=n_prompt,
        output_tokens=len(completion.ids),
        total_tokens=n_prompt + len(completion.ids),
        reasoning_tokens=completion.n_tokens_by_channel["analysis"],
    )
    choice = ChatCompletionChoice(message=message, stop_reason=_STOPS.get(completion.stop, "unknown"))
    return ModelOutput(model=model, choices=[choice], usage=usage, time=seconds, metadata={METADATA: told})


def _shown(completion: Completion) -> str:
    """The text that a scorer may take for the answer: a finished final, or what was said before a call."""
    final = answer_of(completion)
    if final:
        return "\n".join([*completion.preambles, final])
    return "\n".join(completion.preambles) if completion.stop == "call" else ""


def _call(call: SampledCall) -> ToolCall:
    id = uuid4().hex[:12]
    if call.arguments is not None:
        return ToolCall(id=id, function=call.name, arguments=call.arguments)
    if call.recipient == "python":
        return ToolCall(id=id, function="python", arguments={"code": call.arguments_text})
    error = f"the arguments are not a JSON object: {call.arguments_text[:200]}"
    return ToolCall(id=id, function=call.name, arguments={}, parse_error=error)
