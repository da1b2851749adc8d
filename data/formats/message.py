"""A message of any vendor on its way into a conversation: who speaks, what is said, thought, called and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.calls import calls_of, calls_of_text, has_tagged_calls
from counterpoint.data.formats.content import content_text, media
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object, as_text, text_of
from counterpoint.data.formats.loss_flags import MESSAGE_FLAGS, SPAN_FLAGS, message_weight, trains_unasked
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS, is_said
from counterpoint.data.formats.parts import add_assistant_parts, add_user_parts, has_blocks, result_text
from counterpoint.data.formats.roles import Speaker, role_of, speaker_named, speaker_of
from counterpoint.data.formats.tagged_messages import add_answer, add_responses, add_system, looks_tagged
from counterpoint.data.formats.thinking import thinking_of
from counterpoint.data.formats.wrappers import own_wrappers, split_said

CONTENT = ("content", "value", "parts", "text")
_RESULT_IDS = ("tool_call_id", "tool_use_id", "toolCallId", "call_id")
_READ = frozenset(
    {
        *("role", "from", *CONTENT, "name", "tool_calls", "tool_call_ids", "function_call", "refusal", "audio"),
        *(*_RESULT_IDS, *ALL_THINKING_KEYS, *MESSAGE_FLAGS, *SPAN_FLAGS),
    }
)
_HOLDS = frozenset({*CONTENT, "tool_calls", "function_call", "kwargs", *ALL_THINKING_KEYS})


def holds_messages(value: Any) -> bool:
    """Whether a field is a list of messages; `history` and the like may be lists of other things."""
    return isinstance(value, list) and bool(value) and is_message(value[0])


def is_message(value: Any) -> bool:
    """Whether an object has what a message has: a speaker, and something said."""
    if not isinstance(value, dict):
        return False
    inner = unwrapped(value)
    return (role_of(inner)[1] is not None and bool(_HOLDS & set(inner))) or is_exchange(value)


def is_exchange(value: Any) -> bool:
    """Whether an object is a question with its answer, by their speakers: `{"human": ..., "assistant": ...}`."""
    if not isinstance(value, dict) or not {type(text) for text in value.values()} <= {str}:
        return False
    speakers = [speaker_named(name) for name in value]
    return "user" in speakers and "assistant" in speakers and None not in speakers


def is_prompt(messages: Any) -> bool:
    """Whether messages end in a user's: reinforcement rows, whose other fields are references for the grader."""
    return last_speaker(messages) == "user"


def is_open(messages: Any) -> bool:
    """Whether messages end where the model would answer."""
    return last_speaker(messages) in ("user", "tool")


def last_speaker(messages: Any) -> Speaker | None:
    """Who speaks last; None where that cannot be told."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return speaker_named(role_of(unwrapped(last))[1]) if isinstance(last, dict) else None


def exchanges_apart(messages: Any) -> Any:
    """Exchanges (`{"human": ..., "assistant": ...}`) as two messages each; every other list as it is."""
    if not (isinstance(messages, list) and messages and all(map(is_exchange, messages))):
        return messages
    return [{"role": name, "content": text} for exchange in messages for name, text in exchange.items()]


def add_messages(draft: Draft, messages: Any, field: str, factors: Sequence[float] | None = None) -> None:
    """Adds every message of `messages` to the draft. factors: on the loss of each. Raises RowError."""
    messages = exchanges_apart(messages)
    if not as_list(messages, field):
        raise RowError("no_messages", field, "is an empty list", "write a user message and its answer")
    tagged = looks_tagged(messages)
    for i, message in enumerate(messages):
        factor = 1.0 if factors is None else factors[i]
        add_message(draft, as_object(message, f"{field}[{i}]"), f"{field}[{i}]", tagged, factor)


def add_message(
    draft: Draft,
    message: Mapping[str, Any],
    field: str,
    tagged: bool = False,
    factor: float = 1.0,
    tell_unused: bool = True,
) -> None:
    """One message. tagged: texts of the chat hold tags, so that a user's may hold results. Raises RowError."""
    message = unwrapped(message)
    speaker = speaker_of(message, field, draft.roles)
    name = text_of(message, "name", field)
    if speaker in ("assistant", "call"):
        weight = message_weight(message, field, draft.notice) * factor
        _assistant(draft, message, field, name, weight, is_call=speaker == "call")
    else:
        _other(draft, message, field, speaker, name, tagged)
        if flag := trains_unasked(message):
            draft.notice("weight_ignored", f"{field}.{flag}", f"a {speaker} message is never trained")
    for key, value in message.items() if tell_unused else ():
        if key not in _READ and value is not None and (key != "type" or role_of(message)[0] != "type"):
            draft.unused(f"messages[].{key}", f"{field}.{key}", value)


def unwrapped(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """LangChain's serialized message as the message that it is."""
    kwargs = message.get("kwargs")
    if "lc" not in message or not isinstance(kwargs, dict):
        return message
    path = message.get("id")
    named = str(path[-1]) if isinstance(path, list) and path else ""
    role = kwargs.get("type") or named.removesuffix("Chunk").removesuffix("Message").lower()
    extras = kwargs.get("additional_kwargs")
    inner = {key: value for key, value in kwargs.items() if key not in ("type", "additional_kwargs") and is_said(value)}
    return {"role": role, **(extras if isinstance(extras, dict) else {}), **inner}


def _content_key(message: Mapping[str, Any]) -> str:
    return next((key for key in CONTENT if message.get(key) is not None), "value" if "from" in message else "content")


def _other(
    draft: Draft, message: Mapping[str, Any], field: str, speaker: Speaker, name: str | None, tagged: bool
) -> None:
    key = _content_key(message)
    where, content = f"{field}.{key}", message.get(key)
    if speaker == "user" and isinstance(content, list) and has_blocks(content):
        add_user_parts(draft, content, where, name)
        return
    if speaker == "tool" and isinstance(content, list) and has_blocks(content):
        add_user_parts(draft, content, where, None)
        return
    if speaker == "tool":
        text = result_text(content, where, draft)
    else:
        text = content_text(content, where, draft.options, draft.notice)
    if text is None:
        raise RowError("no_content", where, "missing or null", "write a string")
    if speaker == "system":
        add_system(draft, text, where, name)
    elif tagged and add_responses(draft, text, where):
        pass
    elif speaker == "user":
        draft.user(text, where, name)
    elif role_of(message) == ("role", "function") and not name:
        raise RowError("no_name", f"{field}.name", "missing: a function's result names it", "write its name")
    else:
        draft.result(text, where, _result_id(message, field), name)


def _assistant(
    draft: Draft, message: Mapping[str, Any], field: str, name: str | None, weight: float, is_call: bool
) -> None:
    key = _content_key(message)
    where, content = f"{field}.{key}", message.get(key)
    thinking = thinking_of(draft, message, field)
    if isinstance(content, dict):
        content = [content]
    blocks = content if isinstance(content, list) and has_blocks(content) else None
    text = None if blocks else content_text(content, where, draft.options, draft.notice)
    refusal = text_of(message, "refusal", field)
    if refusal:
        draft.notice("refusal", f"{field}.refusal", "a refusal was taken as the answer")
        text = f"{text or ''}{refusal}"
    if message.get("audio") is not None:
        spoken = media("audio", f"{field}.audio", draft.options, draft.notice)
        text = text or spoken
    calls = calls_of(draft, message, field)
    if blocks is not None:
        parts = [*blocks, {"type": "text", "text": text}] if text else blocks
        add_assistant_parts(draft, parts, where, thinking=thinking, calls=calls, weight=weight, name=name)
        return
    if is_call and text and not has_tagged_calls(text):
        said = split_said(text, where, draft.notice, own_wrappers(draft.options.think_tags))
        thinking = "\n\n".join(part for part in (thinking, *(one.thinking for one in said)) if part) or None
        calls = [*calls, *calls_of_text("".join(one.text for one in said).strip(), where)]
        text = None
    if text is None and not calls and thinking is None:
        fix = "write the answer in content, or the calls in tool_calls"
        raise RowError("no_content", where, "an assistant message without content and calls", fix)
    add_answer(draft, field, text=text, text_field=where, thinking=thinking, calls=calls, weight=weight, name=name)


def _result_id(message: Mapping[str, Any], field: str) -> str | None:
    ids = message.get("tool_call_ids")
    if message.get("tool_call_id") is None and isinstance(ids, list) and len(ids) == 1:
        return as_text(ids[0], f"{field}.tool_call_ids[0]")
    key = next((key for key in _RESULT_IDS if message.get(key) is not None), "tool_call_id")
    return text_of(message, key, field)
