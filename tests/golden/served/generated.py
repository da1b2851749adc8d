"""Random requests, to compare a running server with our writer in the run that makes them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from requests_of_apis import DATE, Request

_WORDS = (
    *(
        "Oslo",
        "weather",
        "the",
        "is",
        "4°C",
        "ÆØÅ",
        "日本語",
        "🙂‍↔️",
        "don't",
        "WE'LL",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "1234567",
    ),
    *("<|end|>", "<|start|>assistant", "<|call|>", "to=functions.f", "# Instructions", "{}", '{"a": 1}', "“quoted”"),
    *("```py\nx = 1\n```", "\u202e", "\u00a0", "e\u0301", "-", "...", "https://a.b/c?d=e&f", "x" * 50),
)
_NAMES = ("get_weather", "f", "a-b", "book_table", "Search")


def generate(count: int, seed: int) -> list[Request]:
    """`count` OpenAI chat requests as clients send them: 1 to 4 turns, tools, loops, parallel calls, old reasoning."""
    rng = random.Random(seed)
    return [_Conversation(rng).request() for _ in range(count)]


class _Conversation:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls = 0
        self.names = rng.sample(_NAMES, rng.randint(0, 3))

    def request(self) -> Request:
        rng = self.rng
        messages: list[Request] = []
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            messages.append({"role": rng.choice(("system", "developer")), "content": self.text()})
        turns = rng.randint(1, 4)
        for turn in range(turns):
            if messages and turn and rng.random() < 0.1:
                messages.append({"role": "system", "content": self.text()})
            messages.append({"role": "user", "content": self.text()})
            last = turn + 1 == turns
            for _ in range(rng.choice((0, 1, 1, 2, 3)) if self.names else 0):
                messages += self.calling()
            if not last or rng.random() < 0.1:
                messages.append(self.assistant(self.text(), 0.5))
        request: Request = {"messages": messages}
        if self.names:
            request["tools"] = [self.tool(name) for name in self.names]
        if rng.random() < 0.5:
            request["reasoning_effort"] = rng.choice(("low", "medium", "high"))
        return request

    def calling(self) -> list[Request]:
        """A message with calls, and their results."""
        rng = self.rng
        calls = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            self.calls += 1
            function = {"name": rng.choice(self.names), "arguments": self.arguments()}
            calls.append({"id": f"call_{self.calls}", "type": "function", "function": function})
        message = self.assistant(self.text() if rng.random() < 0.3 else rng.choice((None, "")), 0.6)
        results = [{"role": "tool", "tool_call_id": call["id"], "content": self.text(0)} for call in calls]
        return [{**message, "tool_calls": calls}, *results]

    def assistant(self, content: str | None, thinks: float) -> Request:
        message: Request = {"role": "assistant", "content": content}
        return message | ({"reasoning": self.text()} if self.rng.random() < thinks else {})

    def text(self, least: int = 1) -> str:
        text = "".join(self.rng.choice(("", " ")) + self.rng.choice(_WORDS) for _ in range(self.rng.randint(least, 12)))
        return text if not least or text.strip() else "Hi"

    def arguments(self) -> str:
        value = {self.rng.choice(("q", "city", "n", "é")): self.value() for _ in range(self.rng.randint(0, 3))}
        separators = self.rng.choice(((",", ":"), (", ", ": "), (" ,  ", " : ")))
        return json.dumps(value, ensure_ascii=self.rng.random() < 0.5, separators=separators)

    def value(self) -> Any:
        return self.rng.choice((self.text(), 3, 1.5, True, None, [1, "x"], {"k": self.text()}))

    def tool(self, name: str) -> Request:
        function: Request = {"name": name, "description": self.rng.choice(("", self.text()))}
        if self.rng.random() < 0.9:
            function["parameters"] = self.schema(2)
        return {"type": "function", "function": function}

    def schema(self, depth: int) -> Request:
        properties = {f"p{i}": self.property(depth) for i in range(self.rng.randint(0, 4))}
        required = [name for name in properties if self.rng.random() < 0.5]
        schema: Request = {"type": "object", "properties": properties}
        if required or self.rng.random() < 0.2:
            schema["required"] = required
        return schema | ({"title": "T"} if self.rng.random() < 0.2 else {})

    def property(self, depth: int) -> Request:
        rng = self.rng
        kinds: list[Callable[[], Request]] = [
            lambda: {"type": rng.choice(("string", "number", "integer", "boolean", "null"))},
            lambda: {"type": "string", "enum": rng.sample(["a", "b c", "é", '"'], 2)},
            lambda: {"type": ["string", "null"]},
            lambda: {"anyOf": [{"type": "string"}, {"type": "null"}]},
            lambda: {"oneOf": [{"type": "string", "description": self.text()}, {"type": "number", "default": 1}]},
            lambda: {"allOf": [{"type": "string"}]},
            lambda: {"$ref": "#/$defs/X"},
            lambda: {"const": "x"},
            lambda: {"type": "array", "items": self.property(depth - 1) if depth else {"type": "string"}},
            lambda: {"type": "array"},
            lambda: self.schema(depth - 1) if depth else {"type": "object"},
            lambda: {},
        ]
        found = rng.choice(kinds)()
        if rng.random() < 0.5:
            found["description"] = self.text()
        if rng.random() < 0.2:
            found["title"] = "Title"
        if rng.random() < 0.3:
            found["default"] = rng.choice(("a", 1, 1.5, False, None, [], {"k": 1}))
        return found | ({"nullable": True} if rng.random() < 0.1 else {})


def compare(form: str, requests: Mapping[str, Request], answers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether our writer gives the server's ids for all of them; prints how many, and the first difference decoded."""
    from counterpoint.configs.data_section import ConversionSettings, RenderSettings
    from counterpoint.configs.errors import RowError
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.formats.convert import convert
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.data.harmony.vocabulary import load_vocabulary

    writer = Renderer(load_vocabulary(), RenderSettings(serving=form, date=DATE))  # pyright: ignore[reportArgumentType]
    as_sent = ConversionSettings(parallel_calls="together", harmony_system="text")
    equal, shown = 0, False
    for id_, request in requests.items():
        answer = answers[id_]
        try:
            conversation = convert(request, "auto", as_sent)
            assert isinstance(conversation, Conversation)
            ids: list[int] | RowError = writer.prompt(conversation)
        except RowError as error:
            ids = error
        if ids == answer.get("ids") or (isinstance(ids, RowError) and ids.kind == "not_served" and "error" in answer):
            equal += 1
        elif not shown:
            shown = True
            print(f"{id_} under {form}: {json.dumps(request, ensure_ascii=False)}")
            print(f"  ours   {_shown(writer, ids, answer.get('ids', []))}")
            print(f"  server {answer.get('error') or _shown(writer, answer['ids'], ids)}")
    print(f"{form}: {equal} of {len(requests)} equal")
    return equal == len(requests)


def _shown(writer: Any, ids: Any, others: Any) -> str:
    """The text around the first id that differs."""
    if not isinstance(ids, list) or not isinstance(others, list):
        return str(ids)
    at = next((i for i, (one, two) in enumerate(zip(ids, others, strict=False)) if one != two), len(others))
    return repr(writer.vocabulary.decode(ids[max(0, at - 10) : at + 20]))
