"""Seeded rows for the benchmarks: made-up dialogues in the shape of real ones, as messages with `thinking`.

Words are drawn from the vocabulary by Zipf's law, some of them run together so that they need several tokens; a part of
the text is code, numbers, other scripts and emoji. Nothing is downloaded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal

from openai_harmony import Author, Role
from openai_harmony import Message as OfficialMessage

from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.prompt import developer_message, system_message
from counterpoint.data.harmony.vocabulary import load_vocabulary

Kind = Literal["mixed", "short", "turns"]

_OTHER = (
    "Это предложение написано по-русски, чтобы проверить другой алфавит.",
    "これは日本語の文章です。東京の天気は晴れです。",
    "هذه جملة باللغة العربية لاختبار الكتابة من اليمين إلى اليسار.",
    "Dies ist ein Satz mit Umlauten: größer, schöner, über.",
    "यह हिन्दी में एक वाक्य है।",
    "🙂 Great! 🚀✨ See you 👋🏽",
)
_CODE = (
    "```python\ndef area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n\n\nprint(area({n}))\n```",
    '```json\n{{"id": {n}, "values": [1.5, 2.25, {n}], "ok": true}}\n```',
    "```sql\nSELECT name, COUNT(*) FROM orders WHERE total > {n} GROUP BY name ORDER BY 2 DESC;\n```",
)
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{verb} by key.",
            "parameters": {
                "type": "object",
                "properties": {
                    "key": {"type": "string", "description": "What to look for."},
                    "limit": {"type": "integer", "description": "How many at most."},
                },
                "required": ["key"],
            },
        },
    }
    for name, verb in (("search_orders", "Finds orders"), ("get_weather", "Reads the weather"), ("lookup", "Looks up"))
]


@lru_cache(maxsize=1)
def words() -> tuple[list[str], list[float]]:
    """Words of the vocabulary and their cumulative weights, 1/rank."""
    vocabulary = load_vocabulary()
    found = [
        text[1:]
        for i in range(1000, 40_000)
        if (text := vocabulary.decode([i])).startswith(" ") and text[1:].isalpha() and text.isascii()
    ]
    total, weights = 0.0, []
    for rank in range(1, len(found) + 1):
        total += 1 / rank
        weights.append(total)
    return found, weights


def rows(kind: Kind, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """mixed: one to four turns, a third with tools. short: ten turns of a few words. turns: twelve turns."""
    rng = random.Random(f"{kind}{seed}")
    instructions = [_text(rng, 20, 120) for _ in range(40)]
    for _ in range(count):
        yield _ROWS[kind](rng, instructions)


def _mixed(rng: random.Random, instructions: list[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.7:
        messages.append({"role": "system", "content": rng.choice(instructions)})
    tools = rng.random() < 0.35
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        messages.append({"role": "user", "content": _text(rng, 8, 120)})
        if tools and rng.random() < 0.7:
            messages += _call(rng)
        messages.append({"role": "assistant", "thinking": _text(rng, 30, 250), "content": _text(rng, 20, 200)})
    return {"messages": messages, "tools": _TOOLS} if tools else {"messages": messages}


def _call(rng: random.Random) -> list[dict[str, Any]]:
    name = rng.choice(_TOOLS)["function"]["name"]
    arguments = {"key": _text(rng, 1, 4), "limit": rng.randint(1, 50)}
    call = {"id": f"call_{rng.getrandbits(40):x}", "type": "function"}
    result = json.dumps([{"id": rng.randint(1, 10**6), "name": _text(rng, 2, 6)} for _ in range(rng.randint(1, 6))])
    called = {**call, "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
    return [
        {"role": "assistant", "thinking": _text(rng, 10, 80), "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call["id"], "name": name, "content": result},
    ]


def _short(rng: random.Random, instructions: list[str]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for _ in range(10):
        messages.append({"role": "user", "content": _plain(rng, 1, 8)})
        messages.append({"role": "assistant", "thinking": _plain(rng, 2, 8), "content": _plain(rng, 1, 6)})
    return {"messages": messages}


def _turns(rng: random.Random, instructions: list[str]) -> dict[str, Any]:
    messages = [{"role": "system", "content": rng.choice(instructions)}]
    for _ in range(12):
        messages.append({"role": "user", "content": _text(rng, 5, 60)})
        messages.append({"role": "assistant", "thinking": _text(rng, 10, 100), "content": _text(rng, 10, 100)})
    return {"messages": messages}


_ROWS = {"mixed": _mixed, "short": _short, "turns": _turns}


def _plain(rng: random.Random, low: int, high: int) -> str:
    found, weights = words()
    return " ".join(rng.choices(found, cum_weights=weights, k=rng.randint(low, high))) + rng.choice(".?!")


def _text(rng: random.Random, low: int, high: int) -> str:
    found, weights = words()
    drawn = rng.choices(found, cum_weights=weights, k=rng.randint(low, high))
    out: list[str] = []
    for word in drawn:
        dice = rng.random()
        if dice < 0.05:
            word += rng.choice(drawn)
        elif dice < 0.08:
            word = str(rng.randint(0, 10**6))
        elif dice < 0.16:
            word += rng.choice((",", ".", ":", ";", "?", ".\n\n", "\n- "))
        out.append(word)
    text = " ".join(out)
    dice = rng.random()
    if high > 50 and dice < 0.1:
        text += "\n\n" + rng.choice(_CODE).format(n=rng.randint(1, 9999))
    elif high > 50 and dice < 0.25:
        text += " " + rng.choice(_OTHER)
    return text


def official_messages(conversation: Conversation, indices: Iterable[int]) -> list[OfficialMessage]:
    """The conversation's opening and the messages of `indices` as openai-harmony's objects."""
    c = conversation
    out = [system_message(c.effort or "medium", c.date or "2025-06-28", c.identity, c.builtin_tools)]
    if c.instructions is not None or c.tools:
        out.append(developer_message(c.instructions, c.tools))
    return out + [_official(c.messages[i]) for i in indices]


def _official(message: Message) -> OfficialMessage:
    author = Author.new(Role(message.role), message.name) if message.name else Author(role=Role(message.role))
    out = OfficialMessage.from_author_and_content(author, message.content)
    if message.channel:
        out = out.with_channel(message.channel)
    if message.role == "tool":
        out = out.with_recipient("assistant")
    if message.recipient:
        out = out.with_recipient(message.recipient)
    return out.with_content_type(message.content_type) if message.content_type else out
