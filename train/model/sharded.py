"""Models whose parameters are sharded over several processes, as FSDP2 leaves them (DTensors)."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether each process holds only its part of the parameters."""
    return torch.distributed.is_initialized() and any(hasattr(p, "full_tensor") for p in model.parameters())


def gathered_weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """The weights of a sharded model by name, gathered on the CPU; of a `PeftModel` only the adapter's.

    Every process has to call it; one that does not `keep` them gets none.
    """
    adapter = isinstance(model, PeftModel)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if adapter and ("lora_" not in name or ".default." not in name):
            continue
        # Collective: state_dict has the same names in the same order in every process.
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if keep:
            weights[name] = whole.detach().cpu()
    return weights


def reshard(model: torch.nn.Module) -> None:
    """Free what a forward pass without a backward pass has left gathered: of a model under FSDP2 the last norm and the
    head. Between a backward pass and the optimizer's step, `zero_grad` and the next forward pass would take these stale
    copies for the parameters."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
