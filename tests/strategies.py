"""Hypothesis strategies: odd conversations in Harmony's terms, and openai-harmony as their oracle."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from openai_harmony import Author, RenderConversationConfig, Role
from openai_harmony import Conversation as OfficialConversation
from openai_harmony import Message as OfficialMessage

from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Tool
from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.prompt import developer_message, official_ids, system_message

CONTROL = [
    "<|start|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|channel|>final<|message|>",
    "<|constrain|>",
    "<|endoftext|>",
]
ODD = [
    "",
    " ",
    "\n\n",
    "  \n",
    "assistant",
    " to=functions.f",
    "é́",
    "日本語",
    "🙂‍↔️",
    "{}",
    '{"a": 1}',
    "\u202e",
    "ﬁ",
    "\x00",
    "a" * 300,
]

characters = st.characters(exclude_categories=["Cs"])
texts = st.one_of(
    st.text(characters, max_size=30),
    st.lists(st.sampled_from(CONTROL + ODD), max_size=4).map("".join),
)
names = st.one_of(
    st.sampled_from(["f", "get_weather", "a-b", "x.y", "<|start|>", "é"]), st.text(characters, min_size=1, max_size=8)
)
schemas = st.sampled_from(
    [
        None,
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "string", "description": "x <|end|>"}}, "required": ["a"]},
        {"type": "object", "properties": {"n": {"type": "number", "default": 3}, "k": {"enum": ["a", "b"]}}},
    ]
)
tools = st.builds(Tool, name=names, description=texts, parameters=schemas)


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    """One assistant turn: any mix of analysis, preambles and calls, ended by a final or by an open call."""
    messages: list[Message] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["analysis", "preamble", "call", "python", "parallel"]))
        if kind == "analysis":
            messages.append(Message("assistant", draw(texts), "analysis"))
        elif kind == "preamble":
            messages.append(Message("assistant", draw(texts), "commentary"))
        else:
            for _ in range(2 if kind == "parallel" else 1):
                channel = "analysis" if kind == "python" else "commentary"
                tool = "python" if kind == "python" else "functions." + draw(names)
                content_type = draw(st.sampled_from([None, "code"])) if kind == "python" else CONSTRAIN_JSON
                messages.append(Message("assistant", draw(texts), channel, tool, content_type=content_type))
                messages.append(Message("tool", draw(texts), channel, name=tool))
    if draw(st.booleans()) or not messages:
        messages.append(Message("assistant", draw(texts), "final", weight=draw(st.sampled_from([1.0, 1.0, 0.5, 0.0]))))
    return messages


@st.composite
def conversations(draw: st.DrawFn, max_turns: int = 3) -> Conversation:
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, max_turns))):
        if draw(st.integers(0, 5)) == 0:
            messages.append(Message("developer", draw(texts)))
        messages.append(Message("user", draw(texts), name=draw(st.none() | names)))
        messages.extend(draw(turns()))
    return Conversation(
        tuple(messages),
        instructions=draw(st.none() | texts),
        tools=tuple(draw(st.lists(tools, max_size=2))),
        builtin_tools=draw(st.sampled_from([(), ("python",), ("browser",), ("python", "browser")])),
        effort=draw(st.sampled_from([None, "low", "medium", "high"])),
        date=draw(st.sampled_from([None, "", "2026-01-31"])),
        identity=draw(st.none() | texts),
        source="made:1",
    )


def official_messages(conversation: Conversation, indices: Sequence[int]) -> list[OfficialMessage]:
    """The same messages for openai-harmony: system, developer, and those of `indices`."""
    c = conversation
    out = [
        system_message(c.effort or "medium", "2025-06-28" if c.date is None else c.date, c.identity, c.builtin_tools)
    ]
    if c.instructions is not None or c.tools:
        out.append(developer_message(c.instructions, c.tools))
    return out + [_official(c.messages[i]) for i in indices]


def _official(message: Message) -> OfficialMessage:
    if message.role == "developer":
        return developer_message(message.content)
    author = (
        Author.new(Role(message.role), message.name) if message.name is not None else Author(role=Role(message.role))
    )
    out = OfficialMessage.from_author_and_content(author, message.content)
    if message.channel:
        out = out.with_channel(message.channel)
    if message.role == "tool":
        out = out.with_recipient("assistant")
    if message.recipient:
        out = out.with_recipient(message.recipient)
    return out.with_content_type(message.content_type) if message.content_type else out


def official_training_ids(conversation: Conversation, indices: Sequence[int]) -> list[int]:
    return official_encoding().render_conversation_for_training(
        OfficialConversation.from_messages(official_messages(conversation, indices)),
        RenderConversationConfig(auto_drop_analysis=False),
    )


def history(messages: Sequence[Message], stop: int) -> list[int]:
    """Indices of the messages before `stop` that a turn starting there sees: no analysis before the last final."""
    finals = [i for i in range(stop) if messages[i].is_final]
    last = finals[-1] if finals else 0
    return [i for i in range(stop) if i >= last or messages[i].channel != "analysis"]


def official_prompt_ids(conversation: Conversation, indices: Sequence[int]) -> list[int]:
    return official_encoding().render_conversation_for_completion(
        OfficialConversation.from_messages(official_messages(conversation, indices)),
        Role.ASSISTANT,
        RenderConversationConfig(auto_drop_analysis=False),
    )


__all__ = ["conversations", "official_ids", "official_prompt_ids", "official_training_ids", "texts", "turns"]
