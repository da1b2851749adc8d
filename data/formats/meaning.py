"""Names of fields that bear meaning: where no rule reads one, that is told as such, never as an unused field."""

from __future__ import annotations

from typing import Any

from counterpoint.data.formats.content import MEDIA_COLUMNS
from counterpoint.data.formats.loss_flags import MESSAGE_FLAGS, ROW_FLAGS, SPAN_FLAGS
from counterpoint.data.rows.strict_json import dumps

THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
# `reasoning_details` is OpenRouter's, `thinking_blocks` LiteLLM's.
ALL_THINKING_KEYS = (
    *THINKING_KEYS,
    *("reasoning_details", "thinking_blocks", "thinking_content", "reasoning_text", "reasoning_trace", "thought"),
    *("thoughts", "think", "chain_of_thought", "cot", "analysis", "rationale"),
)
_MEANINGS: dict[str, tuple[str, ...]] = {
    "a loss flag": (
        *sorted(MESSAGE_FLAGS | ROW_FLAGS | SPAN_FLAGS),
        "loss_masks",
        "weights",
        "train_on",
        "mask_history",
    ),
    "a label": ("label", "labels", "kto_tag", "desirable", "rejected", "rejected_response", "rejected_messages"),
    "media": tuple(MEDIA_COLUMNS),
    "reasoning": (*ALL_THINKING_KEYS, "Complex_CoT", "thinking_trajectories"),
    "an answer": (
        *("answer", "response", "completion", "output", "outputs", "choices", "chosen", "chosen_response", "targets"),
        *("generations", "solution", "final"),
    ),
    "effort": ("effort", "reasoning_effort", "thinking_budget"),
    "tools": ("available_tools", "tool_definitions", "tool_schemas", "tool_list", "available_functions"),
    "calls": ("tool_calls", "function_call", "expected_tool_calls", "answers"),
}
MEANING = {name: meaning for meaning, names in _MEANINGS.items() for name in names}
_LONGEST = 60


def meaning_of(field: str) -> str | None:
    """What the last name of a path is known to mean in some format; None for a name of no known meaning."""
    return MEANING.get(field.rpartition(".")[2])


def is_said(value: Any) -> bool:
    """Whether a field holds anything: empty texts and lists are what tables write for nothing."""
    return value is not None and not (isinstance(value, (str, list, dict)) and not value)


def sample_of(value: Any) -> str:
    """The beginning of a value, for a person."""
    try:
        text = dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
