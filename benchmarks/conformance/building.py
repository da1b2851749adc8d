"""How a case is built: from an OpenAI chat row to the actions that training must show, with ids and headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from counterpoint.data.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    load_vocabulary,
)

DATE = "2025-06-28"
Json = dict[str, Any]
Status = Literal["required", "arguable"]
BUILTINS = ("python", "browser")


def ids_of(text: str) -> list[int]:
    return load_vocabulary().encode(text)


def system(text: str, **more: Any) -> Json:
    return {"role": "system", "content": text, **more}


def developer(text: str) -> Json:
    return {"role": "developer", "content": text}


def user(text: Any, **more: Any) -> Json:
    return {"role": "user", "content": text, **more}


def answer(text: Any, thinking: str | None = None) -> Json:
    return {"role": "assistant", "content": text, **({} if thinking is None else {"thinking": thinking})}


def calls(*made: tuple[str, str], thinking: str | None = None, text: Any = None, first: int = 1) -> Json:
    """An assistant message with tool calls (name, arguments); ids count from `first`."""
    listed = [
        {"id": f"call_{first + i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(made)
    ]
    thought = {} if thinking is None else {"thinking": thinking}
    return {"role": "assistant", "content": text, **thought, "tool_calls": listed}


def result(text: Any, number: int = 1) -> Json:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


def tool(name: str, description: str | None = None, parameters: Any = None) -> Json:
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def recipient_of(name: str) -> str:
    return name if name.partition(".")[0] in BUILTINS else f"functions.{name}"


def header_spellings(channel: str, recipient: str | None, types: Sequence[str | None]) -> list[list[int]]:
    """Ids between the role and the content, `<|message|>` included, in every spelling that the grammar allows."""
    named = [CHANNEL, *ids_of(channel)]
    found: list[list[int]] = []
    for place, kind in product(("channel", "role"), types):
        to = [] if recipient is None else ids_of(f" to={recipient}")
        head = [*named, *to] if place == "channel" else [*to, *named]
        spelled = [*head, *content_type(kind), MESSAGE]
        if spelled not in found:
            found.append(spelled)
    return found


def content_type(kind: str | None) -> list[int]:
    if kind is None:
        return []
    if kind.startswith("<|constrain|>"):
        return [*ids_of(" "), CONSTRAIN, *ids_of(kind.removeprefix("<|constrain|>"))]
    return ids_of(f" {kind}")


CALL_TYPES = ("<|constrain|>json", "json", None)
CODE_TYPES = ("code", None)
FINAL_TYPES = (None, "<|constrain|>json", "json")


def message(channel: str, text: str, recipient: str | None = None, structured: bool = False) -> Json:
    """One message of a target: its content, how its header may be spelled, and its last token."""
    types: tuple[str | None, ...] = (None,)
    if recipient is not None:
        types = CALL_TYPES if recipient.startswith("functions.") else (*CODE_TYPES, *CALL_TYPES[:2])
    elif structured and channel == "final":
        types = FINAL_TYPES
    end = CALL if recipient is not None else RETURN if channel == "final" else END
    return {
        "channel": channel,
        "recipient": recipient,
        "content_type": types[0],
        "text": text,
        "body_ids": ids_of(text),
        "headers": header_spellings(channel, recipient, types),
        "end": end,
    }


def text_of(content: Any) -> str | None:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content


def targets(row: Json) -> Iterator[Json]:
    """The actions of a row: each assistant message up to its first call or its answer. Further calls of a message are
    optional, because sampling stops at the first `<|call|>`."""
    for at, said in enumerate(row["messages"]):
        if said["role"] != "assistant":
            continue
        made = said.get("tool_calls") or []
        thinking, text = said.get("thinking"), text_of(said.get("content"))
        structured = row.get("response_format", {}).get("type") in ("json_schema", "json_object")
        target = [message("analysis", thinking)] if thinking else []
        if text and made:
            target.append(message("commentary", text))
        if not made:
            target.append(message("final", text or "", structured=structured))
        for number, call in enumerate(made):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            recipient = recipient_of(name)
            channel = "commentary" if recipient.startswith("functions.") else "analysis"
            body = arguments if isinstance(arguments, str) else json.dumps(arguments)
            target.append(message(channel, body, recipient))
            yield {"at": at, "optional": number > 0, "target": target}
            target = []
        if target:
            yield {"at": at, "optional": False, "target": target}


@dataclass
class Category:
    """The cases of one file, numbered in the order in which they are added."""

    name: str
    about: str
    cases: list[Json] = field(default_factory=list)

    def _add(self, status: Status, property_: str, why: str, rest: Json) -> None:
        assert status == "required" or why, f"{property_}: say why it is arguable"
        case = {"id": f"{self.name}-{len(self.cases) + 1:03d}", "property": property_, "status": status}
        self.cases.append({**case, **({"why": why} if why else {}), **rest})

    def render(
        self,
        property_: str,
        messages: list[Json],
        tools: list[Json] | None = None,
        *,
        effort: str = "medium",
        status: Status = "required",
        why: str = "",
        **row: Any,
    ) -> None:
        """A row, and what training on it must show."""
        whole: Json = {"messages": messages, **({"tools": tools} if tools is not None else {}), **row}
        actions = list(targets(whole))
        assert actions, property_
        self._add(status, property_, why, {"row": whole, "effort": effort, "date": DATE, "actions": actions})

    def completion(
        self,
        property_: str,
        ids: Sequence[int],
        *,
        valid: bool,
        expect: list[Json] | None = None,
        code: str = "",
        group: str = "",
        status: Status = "required",
        why: str = "",
        tools: list[Json] | None = None,
        **rules: Any,
    ) -> None:
        """A sampled completion: with what must be read out of it, or to be refused with the reason `code`."""
        verdict: Json = {"valid": True, "expect": expect} if valid else {"valid": False, "code": code, "group": group}
        given = {"ids": list(ids), **({"tools": tools} if tools is not None else {}), **rules}
        self._add(status, property_, why, {**given, **verdict})


def header_table(cases: Sequence[Json]) -> dict[str, list[list[int]]]:
    """Spellings of whole headers, `<|start|>` to `<|message|>`, that name the same message: the recipient in the role
    or the channel section, a content type as ` json` or ` <|constrain|>json`."""
    called: dict[tuple[str, str], None] = {}
    for case in cases:
        for said in (said for action in case.get("actions", ()) for said in action["target"]):
            if said["recipient"] is not None:
                called[said["channel"], said["recipient"]] = None
    table: dict[str, list[list[int]]] = {}
    assistant = [START, *ids_of("assistant")]
    for channel, recipient in called:
        for name, types in (("", (None,)), (" json", CALL_TYPES[:2]), (" code", ("code", "<|constrain|>code"))):
            spelled = header_spellings(channel, recipient, types)
            table[f"assistant to={recipient} {channel}{name}"] = [[*assistant, *ids] for ids in spelled]
        role = [START, *ids_of(recipient)]
        spelled = header_spellings(channel, "assistant", (None,))
        table[f"{recipient} to=assistant {channel}"] = [[*role, *ids] for ids in spelled]
    for kind, types in (("", (None,)), (" json", CALL_TYPES[:2])):
        table[f"assistant final{kind}"] = [[*assistant, *ids] for ids in header_spellings("final", None, types)]
    return table
