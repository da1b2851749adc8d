"""Unsloth: its gpt-oss chat template, and `train_on_responses_only` with the markers that it sets for gpt-oss.

Both packages look for a GPU when they are imported, so the template and the function are read out of their files.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
import transformers.utils.chat_template_utils as chat
from clock import set_date
from protocol import Json, Unsupported, arguments_as_objects, calls_builtin, serve
from transformers import AutoTokenizer


def file_of(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def template() -> str:
    tree = ast.parse(file_of("unsloth", "chat_templates.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "gptoss_template":
            return ast.literal_eval(node.value)
    raise SystemExit("unsloth has no gptoss_template")


def dataset_utils() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dataset_utils", file_of("unsloth_zoo", "dataset_utils.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])
TOKENIZER.chat_template = template()
MASK = dataset_utils().train_on_responses_only(
    None,
    tokenizer=TOKENIZER,
    return_function=True,
    instruction_part="<|start|>user<|message|>",
    response_part="<|start|>assistant",
)


def train(case: Json) -> Json:
    set_date(chat, case["date"])
    row = case["row"]
    if row.get("builtin_tools") or calls_builtin(row["messages"]):
        raise Unsupported("the template has no calls to built-in tools")
    text = TOKENIZER.apply_chat_template(
        arguments_as_objects(row["messages"]),
        tools=row.get("tools"),
        tokenize=False,
        add_generation_prompt=False,
        reasoning_effort=case["effort"],
    )
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    labels = MASK({"input_ids": [ids]})["labels"][0]
    return {"examples": [{"ids": ids, "mask": [int(label != -100) for label in labels]}]}


serve("unsloth", "unsloth-zoo", "transformers", train=train)
