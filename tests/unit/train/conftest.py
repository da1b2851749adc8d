"""Small random gpt-oss models for the tests of model, adapters and loss, and the small training run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

WINDOW = 4
SCRIPT = Path(__file__).parent / "tiny_run.py"


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


@pytest.fixture
def kept_bytes() -> Callable[..., tuple[Any, int]]:
    """`kept_bytes(forward, own)`: what `forward()` gives, and the bytes it keeps for backward besides tensors `own`."""

    def measure(forward: Callable[[], Any], own: Iterable[torch.Tensor]) -> tuple[Any, int]:
        known = {tensor.untyped_storage().data_ptr() for tensor in own}
        kept: dict[int, torch.Tensor] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in known:
                kept[address] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            result = forward()
        return result, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    return measure


@pytest.fixture(scope="session")
def tiny_run() -> ModuleType:
    """The module tests/unit/train/tiny_run.py."""
    if "tiny_run" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_run", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_run"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_run"]
