"""The official chat template by `apply_chat_template`. Arguments: the checkpoint's folder, the template's file."""

from __future__ import annotations

import datetime as real
import hashlib
import sys
from pathlib import Path
from typing import Any

from worker import answer_requests, version  # isort: skip

from requests_of_apis import DATE, with_thoughts_in
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class _Day(real.datetime):
    @classmethod
    def now(cls, tz: real.tzinfo | None = None) -> real.datetime:
        return real.datetime.fromisoformat(DATE)


chat_template_utils.datetime = _Day  # the template writes today's date
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
template = Path(sys.argv[2]).read_text(encoding="utf-8")
maps_reasoning = hasattr(chat_template_utils, "_alias_reasoning_fields")


def ids(request: dict[str, Any]) -> list[int]:
    request = with_thoughts_in(request, "reasoning_content")
    # A null that a client sends is an absent field behind a server's own models.
    messages = [{key: value for key, value in m.items() if value is not None} for m in request["messages"]]
    tools = request.get("tools") or None
    effort = {"reasoning_effort": request["reasoning_effort"]} if "reasoning_effort" in request else {}
    return tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=True, return_dict=False, **effort
    )


form = "transformers" if maps_reasoning else "transformers_5_19"
head = {"version": version("transformers"), "harmony": "", "form": form}
answer_requests({"template": ({**head, "template": hashlib.sha256(template.encode()).hexdigest()}, ids)})
