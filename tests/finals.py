"""Completions that end in a given final."""

from __future__ import annotations

from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary


def finished(final: str | None, analysis: str = "Let me think.", tools: tuple[Tool, ...] = ()) -> Completion:
    """A thought and a final; without one it is cut in the thought."""
    vocabulary = load_vocabulary()
    ids = vocabulary.encode_with_specials(f"<|channel|>analysis<|message|>{analysis}")
    if final is not None:
        ids += vocabulary.encode_with_specials("<|end|><|start|>assistant<|channel|>final<|message|>")
        ids += vocabulary.encode(final)  # special tokens in it are text
        ids += vocabulary.encode_with_specials("<|return|>")
    return parse_completion(ids, vocabulary, tools=tools, finish_reason="stop" if final is not None else "length")
