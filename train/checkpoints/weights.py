"""Trained weights in a folder: the adapter in PEFT's format, or the full model in transformers'. safetensors only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers.trainer_utils import load_sharded_checkpoint

from counterpoint.configs.errors import ModelError

ADAPTER_FILE = "adapter_model.safetensors"
MODEL_FILE = "model.safetensors"


def save_weights(model: Any, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapter of a `PeftModel`, or all weights of any other model, into `folder`."""
    if isinstance(model, PeftModel):
        # PEFT would ask the hub whether the base model's embedding was resized; it was not.
        model.save_pretrained(
            str(folder), state_dict=state_dict, save_embedding_layers=False, selected_adapters=["default"]
        )
        (folder / "README.md").unlink(missing_ok=True)
    else:
        # The original format of a base that was unpacked from MXFP4 has no place for these weights.
        model.save_pretrained(str(folder), state_dict=state_dict, save_original_format=False)
    # safetensors makes files that only their owner can read, whatever the umask is.
    plain = next(folder.glob("*config.json"))
    for path in folder.glob("*.safetensors"):
        shutil.copymode(plain, path)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load what `save_weights` wrote. ModelError when names or shapes differ."""
    if isinstance(model, PeftModel):
        result = set_peft_model_state_dict(model, load_file(folder / ADAPTER_FILE))
        missing = [key for key in result.missing_keys if ".lora_" in key and ".default." in key]
        wrong = [*missing, *result.unexpected_keys]
    elif (folder / MODEL_FILE).is_file():
        result = model.load_state_dict(load_file(folder / MODEL_FILE), strict=False)
        wrong = [*result.missing_keys, *result.unexpected_keys]
    else:
        result = load_sharded_checkpoint(model, str(folder), strict=False)
        wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise ModelError(f"{folder}: its weights are not this model's: {wrong[0]} ({len(wrong)} in all)")


def state_bytes(model: nn.Module) -> int:
    """About what a checkpoint takes: each trained weight and the two moments of its optimizer."""
    return sum(3 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
