"""renderers: `GptOssRenderer` with `build_training_sample` for each turn, and its parser.

An argument `auto_drop_analysis=False` sets that field of its configuration.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
from protocol import Json, Unsupported, calls_builtin, serve
from renderers import GptOssRendererConfig, build_training_sample
from renderers.base import ToolCallParseStatus
from renderers.gpt_oss import GptOssRenderer
from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])
OPENING = TOKENIZER("<|start|>assistant", add_special_tokens=False).input_ids
KEEP = "auto_drop_analysis=False" in sys.argv


@lru_cache(maxsize=8)
def renderer(effort: str, date: str) -> GptOssRenderer:
    config = GptOssRendererConfig(reasoning_effort=effort, conversation_start_date=date, auto_drop_analysis=not KEEP)
    return GptOssRenderer(TOKENIZER, config)


def train(case: Json) -> Json:
    row = case["row"]
    if row.get("builtin_tools") or calls_builtin(row["messages"]):
        raise Unsupported("it has no built-in tools")
    called: dict[str, str] = {}
    messages: list[Json] = []
    for said in row["messages"]:
        message = {key: value for key, value in said.items() if key != "thinking" and value is not None}
        if said["role"] == "tool":
            message["name"] = called[said["tool_call_id"]]
        called |= {call["id"]: call["function"]["name"] for call in said.get("tool_calls") or ()}
        if said.get("thinking"):
            message["reasoning_content"] = said["thinking"]
        messages.append(message)
    tools = [entry["function"] for entry in row.get("tools") or ()] or None
    sample = build_training_sample(renderer(case["effort"], case["date"]), messages, tools=tools)
    return {"examples": [{"ids": list(sample.token_ids), "mask": [int(kept) for kept in sample.loss_mask]}]}


def read(case: Json) -> Json:
    # Its parser takes a completion with the opening that the prompt ends in.
    ids = case["ids"] if case["ids"][:2] == OPENING else [*OPENING, *case["ids"]]
    found = renderer("medium", "2025-06-28").parse_response(ids)
    if any(call.status != ToolCallParseStatus.OK for call in found.tool_calls) or found.reasoning_complete is False:
        return {"refused": True, "code": "tool call or reasoning not complete"}
    calls = [{"name": call.name, "arguments": call.arguments} for call in found.tool_calls]
    return {"message": {"thinking": found.reasoning_content, "content": found.content, "tool_calls": calls}}


serve("renderers", train=train, read=read)
