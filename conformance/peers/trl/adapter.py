"""TRL: what `SFTTrainer` makes of a row with `assistant_only_loss=True`, and `parse_response`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
import transformers.utils.chat_template_utils as chat
import trl
from clock import set_date
from protocol import Json, Unsupported, arguments_as_objects, calls_builtin, serve
from transformers import AutoTokenizer
from trl.chat_template_utils import add_response_schema, get_training_chat_template, parse_response

TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])
# TRL keeps a copy of the template that OpenAI's checkpoint has, and knows the checkpoint by it.
TOKENIZER.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gptoss.jinja").read_text("utf-8")
TEMPLATE = get_training_chat_template(TOKENIZER)
READER = add_response_schema(TOKENIZER)
PREFIX = TOKENIZER("<|start|>assistant", add_special_tokens=False).input_ids


def train(case: Json) -> Json:
    set_date(chat, case["date"])
    row = case["row"]
    if calls_builtin(row["messages"]):
        raise Unsupported("the template has no calls to built-in tools")
    builtin = {"builtin_tools": row["builtin_tools"]} if row.get("builtin_tools") else {}
    made = TOKENIZER.apply_chat_template(
        arguments_as_objects(row["messages"]),
        chat_template=TEMPLATE,
        tools=row.get("tools"),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        reasoning_effort=case["effort"],
        **builtin,
    )
    return {"examples": [{"ids": made["input_ids"], "mask": made["assistant_masks"]}]}


def read(case: Json) -> Json:
    message = parse_response(READER, case["ids"], prefix=PREFIX, tools=case.get("tools"))
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return {
        "message": {
            "thinking": message.get("thinking") or message.get("reasoning_content"),
            "content": message.get("content"),
            "tool_calls": [{"name": call["name"], "arguments": call["arguments"]} for call in calls],
        }
    }


serve("trl", "transformers", train=train, read=read)
