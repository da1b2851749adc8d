"""The full model with its adapter merged, as a copy: the frozen base is unchanged bit for bit.

Merging into the model and out again would round the base in bfloat16 each time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from counterpoint.train.checkpoints.weights import save_weights

_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")


def merged_state(model: Any, experts: bool = True) -> dict[str, torch.Tensor]:
    """Weights of a `PeftModel` with its active adapters added, under the names of the model inside; of any other model
    its own weights. experts: with the two matrices of the experts, which are the most of it."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    state = {_plain(name): tensor for name, tensor in inner.state_dict().items() if ".lora_" not in name}
    if not experts:
        state = {name: tensor for name, tensor in state.items() if not name.endswith(_EXPERTS)}
    with torch.no_grad():
        for name, module in inner.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            part: Any = module
            target = f"{_plain(name)}.{getattr(part, 'parameter_name', None) or 'weight'}"
            if target not in state:
                continue
            for adapter in part.active_adapters:
                if adapter in part.lora_variant:  # DoRA changes the length of the whole weight
                    state[target] = part.lora_variant[adapter].merge_safe(part, adapter, state[target].clone())
                    continue
                delta = part.get_delta_weight(adapter)
                state[target] = state[target] + delta.to(state[target].dtype)
    return state


def write_merged(model: Any, folder: Path) -> None:
    """A checkpoint of `merged_state` that any program can load; an existing one is overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    save_weights(inner, folder, merged_state(model))


def _plain(name: str) -> str:
    return name.replace(".base_layer", "")
