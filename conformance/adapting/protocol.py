"""What every adapter speaks: JSON lines. A case comes in on standard input, an answer with its id goes out.

in   {"id", "row", "effort", "date", "at": [index of the assistant message of each action]}      a training case
     {"id", "ids", "tools"?, "builtin_tools"?, "response_format"?}                              a completion
out  {"versions": {...}}                          first, once
     {"id", "examples": [{"ids", "mask"}]}        what is trained
     {"id", "prompts": [ids or null]}             with the argument `prompts`: what a server puts before the model
     {"id", "messages": [{"channel", "recipient", "text"}]}                  what it says, or as a chat message:
     {"id", "message": {"thinking"?, "content"?, "tool_calls"}}
     {"id", "refused": true, "code"?}             a completion is malformed
     {"id", "unsupported": why}, {"id", "error": what}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

Json = dict[str, Any]
# Libraries print when they are imported: standard output is kept for answers, and theirs goes to standard error.
_out = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)


class Unsupported(Exception):  # noqa: N818
    """The peer has no way to express this case."""


def cases() -> Iterator[Json]:
    for line in sys.stdin.buffer:
        if line.strip():
            yield json.loads(line)


def answer(id_: str, what: Json) -> None:
    print(json.dumps({"id": id_, **what}), file=_out, flush=True)


def text_of(content: object) -> str:
    return "".join(part["text"] for part in content) if isinstance(content, list) else str(content or "")


def harmony(messages: list[Json]) -> Iterator[Json]:
    """OpenAI chat messages as Harmony's: role, channel, recipient, name, content_type, text. The first message is the
    caller's where it is a system or developer message."""
    called: dict[str, str] = {}
    for said in messages:
        role, text = said["role"], text_of(said.get("content"))
        if role in ("system", "developer"):
            yield {"role": "developer", "text": text}
        elif role == "user":
            yield {"role": "user", "name": said.get("name"), "text": text}
        elif role == "tool":
            name = called[said["tool_call_id"]]
            channel = "commentary" if name.startswith("functions.") else "analysis"
            yield {"role": "tool", "name": name, "channel": channel, "recipient": "assistant", "text": text}
        else:
            calls = said.get("tool_calls") or []
            for channel, part in (("analysis", said.get("thinking")), ("commentary" if calls else "final", text)):
                if part:
                    yield {"role": "assistant", "channel": channel, "text": part}
            for call in calls:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                builtin = name.partition(".")[0] in ("python", "browser")
                called[call["id"]] = recipient = name if builtin else f"functions.{name}"
                yield {
                    "role": "assistant",
                    "channel": "analysis" if builtin else "commentary",
                    "recipient": recipient,
                    "content_type": "code" if builtin else "<|constrain|>json",
                    "text": arguments if isinstance(arguments, str) else json.dumps(arguments),
                }


def arguments_as_objects(messages: list[Json]) -> list[Json]:
    """Chat messages with the arguments of calls parsed, as chat templates of Hugging Face document them; without
    fields that are null."""
    made: list[Json] = []
    for said in messages:
        message = {key: value for key, value in said.items() if value is not None or key == "content"}
        calls = [dict(call, function=dict(call["function"])) for call in said.get("tool_calls") or ()]
        for call in calls:
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
        made.append({**message, "tool_calls": calls} if calls else message)
    return made


def calls_builtin(messages: list[Json]) -> bool:
    names = (call["function"]["name"] for said in messages for call in said.get("tool_calls") or ())
    return any(name.partition(".")[0] in ("python", "browser") for name in names)


def versions(*packages: str, **more: str) -> None:
    """The first line: the versions of packages as they are installed."""
    print(json.dumps({"versions": {name: version(name) for name in packages} | more}), file=_out, flush=True)


def serve(*packages: str, **handlers: Callable[[Json], Json]) -> None:
    """Answers each case by `train`, `prompts` (with the argument `prompts`) or `read`; without the one it needs, the
    case is unsupported."""
    versions(*packages)
    for case in cases():
        kind = "read" if "ids" in case else "prompts" if "prompts" in sys.argv[1:] else "train"
        try:
            if kind not in handlers:
                raise Unsupported(f"it has no call for this ({kind})")
            answer(case["id"], handlers[kind](case))
        except Unsupported as why:
            answer(case["id"], {"unsupported": str(why)})
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic is no Exception
            answer(case["id"], {"error": f"{type(error).__name__}: {error}"[:300]})
