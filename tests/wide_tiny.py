"""The embedded model in a form that vLLM serves: the whole vocabulary, and heads of 32 numbers instead of 16.

It computes what the embedded model computes, up to rounding. An id that the embedded model has no row for has a logit of
0, and those of what it says are far above: `min_p: 0.001` draws none of the others.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterpoint.data.harmony.vocabulary import N_VOCAB
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.vocabulary_map import VocabularyMap

HEAD, OLD_HEAD = 32, 16


def write_wide_tiny(folder: Path) -> Path:
    """A checkpoint with configuration, tokenizer and weights (float32) in `folder`, which is made."""
    sys.path.insert(0, str(Path(__file__).parent / "golden" / "served"))
    try:
        importlib.import_module("checkpoint_folder").write_checkpoint_folder(folder)
    finally:
        sys.path.pop(0)
    config = json.loads((tiny_folder() / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": N_VOCAB, "head_dim": HEAD}))
    kept = VocabularyMap.load(tiny_folder()).kept
    assert kept is not None
    old = load_file(tiny_folder() / "model.safetensors")
    new = {name: _widened(name, weight, torch.from_numpy(kept)).contiguous() for name, weight in old.items()}
    save_file(new, folder / "model.safetensors", {"format": "pt"})
    return folder


def _widened(name: str, old: Tensor, kept: Tensor) -> Tensor:
    layer = name.split(".")[-2]
    if layer in ("embed_tokens", "lm_head"):
        return old.new_zeros(N_VOCAB, old.shape[1]).index_copy_(0, kept, old)
    if layer == "q_proj":  # the scores are divided by the root of the head's size
        return _wide_heads(old, 0, rotated=True) * math.sqrt(HEAD / OLD_HEAD)
    if layer in ("k_proj", "v_proj"):
        return _wide_heads(old, 0, rotated=layer == "k_proj")
    return _wide_heads(old, 1, rotated=False) if name.endswith("o_proj.weight") else old


def _wide_heads(old: Tensor, dim: int, rotated: bool) -> Tensor:
    """Zeros beside the numbers of each head along `dim`. Rotated ones stand at every other place of each half, where the
    wider head turns them by the same angle."""
    heads = old.unflatten(dim, (-1, OLD_HEAD))
    half = torch.arange(OLD_HEAD // 2)
    places = torch.cat([2 * half, HEAD // 2 + 2 * half]) if rotated else torch.arange(OLD_HEAD)
    shape = list(heads.shape)
    shape[dim + 1] = HEAD
    return heads.new_zeros(shape).index_copy_(dim + 1, places, heads).flatten(dim, dim + 1)
