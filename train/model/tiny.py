"""The embedded tiny gpt-oss: the real architecture at a small size, real o200k ids outside, a compact range inside.

Its folder `tiny_base` is package data: `config.json`, `vocabulary_map.json`, `model.safetensors`, made by
`benchmarks/tiny_base.py` from the example data and a run of `configs/sft/tiny_base.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, finish_model
from counterpoint.train.model.vocabulary_map import VocabularyMap

WEIGHTS_FILE = "model.safetensors"


def tiny_config(n_rows: int) -> GptOssConfig:
    """Shape of the tiny model: one sliding and one full layer, hidden 64, 4 experts of which 2 are active."""
    return GptOssConfig(
        vocab_size=n_rows,
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
        initializer_range=0.1,
        max_position_embeddings=131072,
        router_aux_loss_coef=0.0,
        layer_types=["sliding_attention", "full_attention"],
    )


def random_tiny(seed: int = 0, vocabulary_ids: Iterable[int] | None = None) -> LoadedModel:
    """A tiny model with random weights (float32, CPU); `vocabulary_ids` None takes the embedded model's.

    The global random state is as before.
    """
    mapping = VocabularyMap.load(tiny_folder()) if vocabulary_ids is None else VocabularyMap.from_ids(vocabulary_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GptOssForCausalLM(tiny_config(mapping.n_rows))
    return finish_model(model, mapping, f"random tiny model, seed {seed}")
