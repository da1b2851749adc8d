"""tinker-cookbook: `GptOssRenderer`, one example for each assistant message, and its parser."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
from protocol import Json, Unsupported, calls_builtin, serve, text_of
from tinker_cookbook.exceptions import RendererError
from tinker_cookbook.renderers.base import ParseTermination, ToolCall, TrainOnWhat
from tinker_cookbook.renderers.gpt_oss import GptOssRenderer
from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])


def message(said: Json, called: dict[str, str]) -> Json:
    """A message as its documentation shows it: thoughts are a part of the content, results name their tool."""
    text = text_of(said.get("content"))
    if said["role"] == "tool":
        call = said["tool_call_id"]
        return {"role": "tool", "name": called[call], "tool_call_id": call, "content": text}
    if said["role"] != "assistant":
        return {"role": said["role"], "content": text}
    thinking = said.get("thinking")
    parts = [{"type": "thinking", "thinking": thinking}] if thinking else []
    made: Json = {"role": "assistant", "content": [*parts, {"type": "text", "text": text}]}
    calls = [(call["id"], call["function"]) for call in said.get("tool_calls") or ()]
    called |= {id_: function["name"] for id_, function in calls}
    bodies = [(f["name"], f["arguments"]) for _, f in calls]
    wanted = [(n, a if isinstance(a, str) else json.dumps(a)) for n, a in bodies]
    if wanted:
        made["tool_calls"] = [ToolCall(function=ToolCall.FunctionBody(name=n, arguments=a)) for n, a in wanted]
    return made


def train(case: Json) -> Json:
    row, called = case["row"], {}
    if row.get("builtin_tools") or calls_builtin(row["messages"]):
        raise Unsupported("it has no built-in tools")
    renderer = GptOssRenderer(
        TOKENIZER, use_system_prompt=True, reasoning_effort=case["effort"], current_date=case["date"]
    )
    given = row["messages"]
    prefix: list[Json] = []
    if row.get("tools"):
        leads = given[0]["role"] in ("system", "developer")
        instructions = text_of(given[0]["content"]) if leads else ""
        tools = [entry["function"] for entry in row["tools"]]
        prefix, given = renderer.create_conversation_prefix_with_tools(tools, instructions), given[leads:]
    messages = [*prefix, *(message(said, called) for said in given)]
    made = renderer.build_supervised_examples(messages, train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    return {"examples": [{"ids": m.to_ints(), "mask": [int(w > 0) for w in weights.tolist()]} for m, weights in made]}


def read(case: Json) -> Json:
    renderer = GptOssRenderer(TOKENIZER, use_system_prompt=True, reasoning_effort="medium")
    try:
        found, ended = renderer.parse_response(case["ids"])
    except RendererError as error:
        return {"refused": True, "code": str(error)[:80]}
    if ended != ParseTermination.STOP_SEQUENCE or found.get("unparsed_tool_calls"):
        return {"refused": True, "code": str(ended)}
    made = renderer.to_openai_message(found)
    calls = [call["function"] for call in made.get("tool_calls", ())]
    return {"message": {"thinking": made.get("reasoning_content"), "content": made["content"], "tool_calls": calls}}


serve("tinker-cookbook", "tinker", train=train, read=read)
