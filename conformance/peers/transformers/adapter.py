"""transformers: `apply_chat_template` with gpt-oss's own template, what a server does that obeys the checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
import transformers.utils.chat_template_utils as chat
import trl
from clock import set_date
from jinja2 import TemplateError
from protocol import Json, Unsupported, arguments_as_objects, calls_builtin, serve
from transformers import AutoTokenizer

TOKENIZER = AutoTokenizer.from_pretrained(os.environ["GPT_OSS_FOLDER"])
# TRL keeps a copy of the template that OpenAI's checkpoint has.
TOKENIZER.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gptoss.jinja").read_text("utf-8")
PARSED = "arguments=objects" in sys.argv


def prompts(case: Json) -> Json:
    set_date(chat, case["date"])
    row, found, refused = case["row"], [], {}
    builtin = row.get("builtin_tools")
    if any(isinstance(said.get("content"), list) for said in row["messages"]):
        raise Unsupported("the template takes content as text only")
    for stop in case["at"]:
        messages = row["messages"][:stop]
        # As llama.cpp and SGLang do; without the argument they are OpenAI's strings.
        messages = arguments_as_objects(messages) if PARSED else messages
        if calls_builtin(messages):
            raise Unsupported("the template has no calls to built-in tools")
        options = {"reasoning_effort": case["effort"], **({"builtin_tools": builtin} if builtin else {})}
        try:
            text = TOKENIZER.apply_chat_template(
                messages, tools=row.get("tools"), add_generation_prompt=True, tokenize=False, **options
            )
            found.append(TOKENIZER(text, add_special_tokens=False).input_ids)
        except (TemplateError, TypeError, ValueError) as error:
            found.append(None)
            refused = {"refused": f"{type(error).__name__}: {error}"[:200]}
    return {"prompts": found, **refused}


serve("transformers", "trl", prompts=prompts)
