"""openai-harmony: its own conversation classes, `render_conversation_for_completion` and its parser."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    HarmonyEncodingName,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
    ToolDescription,
    load_harmony_encoding,
)
from protocol import Json, harmony, serve, text_of

ENCODING = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def opening(case: Json, instructions: str | None) -> list[Message]:
    builtin = case["row"].get("builtin_tools", ())
    system = SystemContent.new().with_reasoning_effort(ReasoningEffort[case["effort"].upper()])
    system = system.with_conversation_start_date(case["date"])
    system = system.with_browser_tool() if "browser" in builtin else system
    system = system.with_python_tool() if "python" in builtin else system
    messages = [Message.from_role_and_content(Role.SYSTEM, system)]
    named = [entry["function"] for entry in case["row"].get("tools", ())]
    tools = [ToolDescription.new(t["name"], t.get("description", ""), t.get("parameters")) for t in named]
    if instructions is None and not tools:
        return messages
    developer = DeveloperContent.new()
    developer = developer if instructions is None else developer.with_instructions(instructions)
    developer = developer.with_function_tools(tools) if tools else developer
    return [*messages, Message.from_role_and_content(Role.DEVELOPER, developer)]


def message(said: Json) -> Message:
    if said["role"] == "developer":
        text = DeveloperContent.new().with_instructions(said["text"])
        return Message.from_role_and_content(Role.DEVELOPER, text)
    made = Message.from_author_and_content(Author(role=Role(said["role"]), name=said.get("name")), said["text"])
    made = made.with_channel(said["channel"]) if said.get("channel") else made
    made = made.with_recipient(said["recipient"]) if said.get("recipient") else made
    return made.with_content_type(said["content_type"]) if said.get("content_type") else made


def prompt(case: Json, stop: int) -> list[int]:
    given = case["row"]["messages"][:stop]
    leads = given[0]["role"] in ("system", "developer")
    messages = opening(case, text_of(given[0]["content"]) if leads else None)
    whole = Conversation.from_messages([*messages, *map(message, harmony(given[leads:]))])
    return ENCODING.render_conversation_for_completion(whole, Role.ASSISTANT)


def read(case: Json) -> Json:
    ids = case["ids"][2:] if case["ids"][:2] == [200006, 173781] else case["ids"]
    try:
        messages = ENCODING.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is no Exception
        return {"refused": True, "code": str(error)[:80]}
    texts = ["".join(part.text for part in m.content) for m in messages]
    pairs = zip(messages, texts, strict=True)
    return {"messages": [{"channel": m.channel, "recipient": m.recipient, "text": text} for m, text in pairs]}


serve("openai-harmony", prompts=lambda case: {"prompts": [prompt(case, stop) for stop in case["at"]]}, read=read)
