"""verl: rows as `MultiTurnSFTDataset` tokenises them, and its tool parser for gpt-oss."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
import pandas
import transformers.utils.chat_template_utils as chat
from clock import set_date
from protocol import Json, Unsupported, calls_builtin, serve
from transformers import AutoTokenizer
from verl.experimental.agent_loop.tool_parser import ToolParser
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset


def gptoss_template() -> str:
    """The template of OpenAI's checkpoint, of which TRL keeps a copy."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / "gptoss.jinja").read_text("utf-8")


TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])
TOKENIZER.chat_template = gptoss_template()
PARSER = ToolParser.get_tool_parser("gpt-oss", TOKENIZER)
LOOP = asyncio.new_event_loop()


def train(case: Json) -> Json:
    set_date(chat, case["date"])
    row = case["row"]
    if row.get("builtin_tools") or calls_builtin(row["messages"]):
        raise Unsupported("the template has no calls to built-in tools")
    columns = {
        "messages": [[{k: v for k, v in said.items() if v is not None or k == "content"} for said in row["messages"]]]
    }
    if row.get("tools"):
        columns["tools"] = [row["tools"]]
    options = {
        "pad_mode": "no_padding",
        "max_length": 16_384,
        "apply_chat_template_kwargs": {"reasoning_effort": case["effort"]},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "row.parquet")
        pandas.DataFrame(columns).to_parquet(file)
        made = MultiTurnSFTDataset(file, TOKENIZER, options)[0]
    return {"examples": [{"ids": made["input_ids"].tolist(), "mask": made["loss_mask"].tolist()}]}


def read(case: Json) -> Json:
    expects = any(token == 200012 for token in case["ids"])
    _, calls = LOOP.run_until_complete(PARSER.extract_tool_calls(case["ids"]))
    if not calls and not expects:
        raise Unsupported("it reads calls only")
    return {"message": {"tool_calls": [{"name": call.name, "arguments": call.arguments} for call in calls]}}


serve("verl", "transformers", train=train, read=read)
