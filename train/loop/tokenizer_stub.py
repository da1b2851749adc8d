"""The tokenizer that SFTTrainer's constructor requires and that never tokenizes anything: our rows come as ids."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


class TokenizerStub(PreTrainedTokenizerBase):
    """No vocabulary, no special tokens. Dropped right after construction, so that no checkpoint ever holds it."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        raise AssertionError("the stand-in tokenizer must not be saved")
