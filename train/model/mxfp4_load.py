"""Load an original gpt-oss checkpoint with its experts packed as in the file, never as bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import GenerationConfig, GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from counterpoint.configs.errors import ModelError
from counterpoint.train.model.mxfp4 import frozen_mxfp4

BLOCKS, SCALES = "_blocks", "_scales"


def load_mxfp4(folder: Path, config: GptOssConfig, dtype: torch.dtype, device: torch.device) -> GptOssForCausalLM:
    """The model of a checkpoint folder on `device`: experts in MXFP4 and frozen, the rest in `dtype`.

    ModelError for a checkpoint without MXFP4 blocks, or with tensors missing, left over, or of another shape.
    """
    config = GptOssConfig.from_dict(
        {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    )
    config._attn_implementation = "eager"
    config.dtype = dtype
    with torch.device("meta"):
        model = GptOssForCausalLM(config)
    missing = {name: tensor.shape for name, tensor in model.state_dict().items()}
    halves: dict[str, dict[str, torch.Tensor]] = {}
    packed = 0
    for name, tensor in _tensors(folder, device):
        stem, kind = _split(name)
        shape = missing.pop(stem, None) if kind != SCALES else missing.get(stem, torch.Size())
        if shape is None:
            raise ModelError(f"{folder}: {name} is no tensor of gpt-oss, or a duplicate: use the original checkpoint")
        if kind is None:
            parameter = torch.nn.Parameter(tensor.to(dtype), requires_grad=True)
        else:
            missing[stem] = shape
            both = halves.setdefault(stem, {})
            both[kind] = tensor
            if len(both) < 2:
                continue
            parameter = frozen_mxfp4(both[BLOCKS], both[SCALES], dtype)
            del halves[stem], missing[stem]
            packed += 1
        if parameter.shape != shape:
            raise ModelError(f"{folder}: {name} gives {tuple(parameter.shape)}, config.json has {tuple(shape)}")
        owner, _, last = stem.rpartition(".")
        setattr(model.get_submodule(owner), last, parameter)
    if not packed:
        raise ModelError(f"{folder}: no MXFP4 experts (`*_proj_blocks`) in this checkpoint: set model.base to bf16")
    if missing:
        raise ModelError(f"{folder}: {sorted(missing)[0]} is missing ({len(missing)} in all): is the copy complete?")
    model.model.rotary_emb = GptOssRotaryEmbedding(config).to(device)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return model.eval()


def _tensors(folder: Path, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor on `device`) of every shard, one at a time."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        if not (folder / shard).is_file():
            raise ModelError(f"{folder}: {shard} is missing: copy the checkpoint again")
        with safe_open(folder / shard, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 (not a dictionary)
                yield name, file.get_tensor(name)


def _split(name: str) -> tuple[str, str | None]:
    for kind in (BLOCKS, SCALES):
        if name.endswith(kind):
            return name.removesuffix(kind), kind
    return name, None
