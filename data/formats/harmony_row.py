"""A conversation as a row of format `harmony`, for files that this project writes."""

from __future__ import annotations

from typing import Any

from counterpoint.data.conversation import Conversation, Message


def harmony_row(conversation: Conversation) -> dict[str, Any]:
    """The row that reads back as the conversation; its assistant messages are context, with weight 0.

    Without date, identity and response formats, and without what is kept as ids (`opening_ids`, `raw_ids`).
    """
    messages: list[dict[str, Any]] = []
    if conversation.instructions is not None:
        messages.append({"role": "developer", "content": conversation.instructions})
    row: dict[str, Any] = {"messages": messages + [_written(message) for message in conversation.messages]}
    if conversation.effort is not None:
        row["reasoning_effort"] = conversation.effort
    if conversation.tools:
        row["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    **({} if tool.parameters is None else {"parameters": dict(tool.parameters)}),
                },
            }
            for tool in conversation.tools
        ]
    if conversation.builtin_tools:
        row["builtin_tools"] = list(conversation.builtin_tools)
    return row


def _written(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    for key in ("channel", "recipient", "name", "content_type"):
        value = getattr(message, key)
        if value is not None:
            out[key] = value
    if message.role == "assistant":
        out["weight"] = 0
    return out
