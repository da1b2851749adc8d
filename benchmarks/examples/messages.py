"""Harmony messages of the example rows, as the format `harmony` has them."""

from __future__ import annotations

import json
from typing import Any

from counterpoint.data.conversation import CONSTRAIN_JSON

Message = dict[str, Any]


def user_says(text: str) -> Message:
    return {"role": "user", "content": text}


def calls_tool(
    arguments: dict[str, Any] | str, recipient: str = "functions.calculator", channel: str = "commentary"
) -> Message:
    """arguments: what is no dict is written as it is."""
    return {
        "role": "assistant",
        "channel": channel,
        "recipient": recipient,
        "content_type": CONSTRAIN_JSON,
        "content": arguments if isinstance(arguments, str) else json.dumps(arguments),
    }


def tool_says(content: str, name: str = "functions.calculator") -> Message:
    return {"role": "tool", "name": name, "channel": "commentary", "content": content}


def thinks(text: str) -> Message:
    return {"role": "assistant", "channel": "analysis", "content": text}


def answers(text: str, content_type: str | None = None) -> Message:
    message = {"role": "assistant", "channel": "final", "content": text}
    return message if content_type is None else message | {"content_type": content_type}
