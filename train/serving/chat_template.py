"""The chat template of an export, for servers that obey it: it writes what the form of training writes."""

from __future__ import annotations

import json
from pathlib import Path

from counterpoint.configs.data_section import OpeningSettings
from counterpoint.data.harmony.serving import form_of

_FILE = Path(__file__).with_name("chat_template.jinja")
_CHAT_FORMS = frozenset({"vllm", "vllm_0_30"})
_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
_TO_ASSISTANT = {"role": " to=assistant<|channel|>commentary", "channel": "<|channel|>commentary to=assistant"}


def chat_template(settings: OpeningSettings) -> str | None:
    """The Jinja template that writes a chat request as vLLM's chat API did in training, with the date of training.

    None for every other form of `data.serving`: under `transformers`, `transformers_5_19`, `llama_cpp` and `sglang` the
    base's own template is what was trained, and the rest belong to servers and APIs that read no template. It reads
    `messages`, `tools`, `reasoning_effort` and `add_generation_prompt`, and refuses what it cannot write by
    `raise_exception`. Three things are out of its reach: arguments that a server parsed before (SGLang, llama.cpp) come
    out with a space behind `:` and `,`; a control token that a user typed is a control token, as in every template;
    and without a generation prompt the last answer ends with `<|return|>`, as it was sampled, its thoughts before it.
    """
    form = form_of(settings)
    if form.name not in _CHAT_FORMS:
        return None
    date = f"\nCurrent date: {settings.date}" if settings.date else ""
    identity = _IDENTITY if settings.identity is None else settings.identity
    trained = {
        "opening": f"{identity}\nKnowledge cutoff: 2024-06{date}\n\nReasoning: ",
        "effort": settings.effort,
        "to_assistant": _TO_ASSISTANT[form.result_place],
        "reasoning": form.reasoning == "returned",
    }
    # A JSON object is a Jinja literal.
    return f"{{%- set trained = {json.dumps(trained, ensure_ascii=False)} -%}}\n{_FILE.read_text(encoding='utf-8')}"
