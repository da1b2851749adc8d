"""ms-swift: the template `gpt_oss` with thoughts as markup in the content, as its documentation writes them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
import swift.template.templates.llm as llm
from clock import set_date
from protocol import Json, Unsupported, calls_builtin, serve, text_of
from swift.model import get_processor
from swift.template import get_template

TEMPLATE = get_template(get_processor(os.environ["GPT_OSS_FOLDER"], model_type="gpt_oss"), template_type="gpt_oss")
TEMPLATE.set_mode("train")
THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"


def train(case: Json) -> Json:
    set_date(llm, case["date"])
    row = case["row"]
    if row.get("tools") or row.get("builtin_tools") or calls_builtin(row["messages"]):
        raise Unsupported("its template for gpt-oss declares no tools")
    messages = []
    for said in row["messages"]:
        if said["role"] == "developer":
            raise Unsupported("its messages have no role developer")
        text = text_of(said.get("content"))
        if said.get("thinking"):
            text = THOUGHT.format(said["thinking"], text)
        messages.append({"role": said["role"], "content": text})
    made = TEMPLATE.encode({"messages": messages})
    labels = made["labels"]
    return {"examples": [{"ids": list(made["input_ids"]), "mask": [int(label != -100) for label in labels]}]}


serve("ms-swift", "transformers", train=train)
