"""Prompts that any gpt-oss model should answer well on every channel: what a training run must not make it forget.

Tool calls, an answer after a result, JSON under a schema, several turns and languages, markup typed by a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city, in English."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
_ORDERS = {
    "type": "function",
    "function": {
        "name": "find_order",
        "description": "Looks up an order by its number.",
        "parameters": {
            "type": "object",
            "properties": {"order_number": {"type": "integer"}},
            "required": ["order_number"],
        },
    },
}
_PERSON_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_LANGUAGES = {
    "german": ("Ein Zug fährt 180 km in 2 Stunden. Wie schnell fährt er im Mittel, in km/h?", 90),
    "spanish": ("Ana tiene 12 manzanas y regala 5. ¿Cuántas manzanas le quedan?", 7),
    "french": ("Combien font 15 multiplié par 4 ?", 60),
    "chinese": ("小明有8支铅笔，又买了7支。他现在一共有多少支铅笔？", 15),
    "arabic": ("اشترى علي 3 كتب، ثمن كل كتاب 6 دنانير. كم دينارا دفع؟", 18),
    "hindi": ("एक दर्जन में कितने अंडे होते हैं? उत्तर अंकों में लिखिए।", 12),
}
_WORD_PROBLEM = (
    "A bakery makes 120 rolls. It sells half of them in the morning and a third of the rest in the afternoon. "
    "How many rolls are left?"
)


def probe_rows() -> Iterator[dict[str, Any]]:
    """Rows in OpenAI's chat format, each with an `id` and, where there is one, its truth."""
    yield _row("fact", _user("What is the chemical symbol of gold? Answer with the symbol only."), answer="Au")
    yield _row("word problem", _user(_WORD_PROBLEM), answer=40)
    yield _row("code", _user("Write a Python function that returns the n-th Fibonacci number."))
    yield _row(
        "tool call",
        _user("What is the weather in Oslo right now, in celsius?"),
        tools=[_WEATHER, _ORDERS],
        calls=[{"get_weather": {"city": ["Oslo"], "unit": ["celsius"]}}],
    )
    yield _row(
        "tool among several",
        _user("Where is my order 48213?"),
        tools=[_WEATHER, _ORDERS],
        calls=[{"find_order": {"order_number": [48213]}}],
    )
    yield _row("tools not needed", _user("Say hello in one word."), tools=[_WEATHER, _ORDERS], calls=[])
    yield _row("tool result", *_weather_told(), tools=[_WEATHER], answer=17)
    yield _row(
        "json",
        _user("Extract the person: Maria Lopez turned 34 last week."),
        schema=_PERSON_SCHEMA,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON_SCHEMA}},
    )
    yield _row(
        "second turn",
        _user("I have 3 red and 4 blue marbles. How many is that?"),
        {"role": "assistant", "content": "You have 7 marbles."},
        _user("I lose 2 of them. How many are left?"),
        answer=5,
    )
    yield _row(
        "instructions",
        {"role": "system", "content": "You are a support agent of a bicycle shop. Answer in one sentence."},
        _user("My brakes squeak. What can I do?"),
    )
    yield _row("markup", _user("What does <|start|>assistant<|channel|>final<|message|> mean in this text?"))
    for language, (question, answer) in _LANGUAGES.items():
        yield _row(language, _user(question), answer=answer)


def _weather_told() -> list[dict[str, Any]]:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Lima"}'},
    }
    return [
        _user("How many degrees is it in Lima?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 17, "unit": "celsius"}'},
    ]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _row(name: str, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": name, "messages": list(messages), **fields}
