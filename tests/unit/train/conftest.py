"""Small random gpt-oss models for the tests of model, adapters and loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

WINDOW = 4


@pytest.fixture
def build_gptoss() -> Callable[..., GptOssForCausalLM]:
    """`build_gptoss(dtype=..., seed=..., **config)`: 2 layers, 4 experts top-2, window 4, all eager."""

    def build(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> GptOssForCausalLM:
        torch.manual_seed(seed)
        settings: dict[str, Any] = {
            "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64,
            "hidden_size": 32, "intermediate_size": 24, "head_dim": 8, "num_attention_heads": 4,
            "num_key_value_heads": 2, "sliding_window": WINDOW, "initializer_range": 0.2, "pad_token_id": 0,
            "router_aux_loss_coef": 0.0,
        }  # fmt: skip
        config = GptOssConfig(**{**settings, **changes})
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        model = GptOssForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        return model.to(dtype)

    return build
