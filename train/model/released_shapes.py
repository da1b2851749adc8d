"""Shapes of the released gpt-oss models, so that a plan needs no download. Taken from their published config.json."""

from __future__ import annotations

from typing import Any

_SHARED = {
    "hidden_size": 2880, "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "num_experts_per_tok": 4, "sliding_window": 128, "vocab_size": 201088,
}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    "gpt-oss-20b": {**_SHARED, "num_hidden_layers": 24, "num_local_experts": 32},
    "gpt-oss-120b": {**_SHARED, "num_hidden_layers": 36, "num_local_experts": 128},
}


def known_shape(name: str) -> dict[str, Any] | None:
    """Sizes of the released model that a Hugging Face name means (`openai/gpt-oss-20b`, `someone/gpt-oss-20b-bf16`)."""
    last = name.rpartition("/")[2].lower()
    return next((shape for key, shape in KNOWN.items() if last == key or last.startswith(f"{key}-")), None)
