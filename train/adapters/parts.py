"""The parts of a gpt-oss model by the names of its parameters, and full fine-tuning that leaves some as they are."""

from __future__ import annotations

from typing import Any

from counterpoint.configs.errors import ModelError
from counterpoint.configs.train_section import ModelPart, TrainSettings
from counterpoint.train.adapters.attach import layer_of

_PARTS: tuple[tuple[str, ModelPart], ...] = (
    ("embed_tokens", "embeddings"), ("lm_head", "head"), (".router.", "router"), (".experts.", "experts"),
    (".self_attn.", "attention"), ("norm", "norms"),
)  # fmt: skip


def model_part(name: str) -> ModelPart | None:
    """The part that a parameter, or an adapter on it, belongs to; None for no part of gpt-oss."""
    return next((part for word, part in _PARTS if word in name), None)


def freeze(model: Any, train: TrainSettings) -> None:
    """Freeze `train.frozen` and `train.frozen_layers`. ModelError where the model lacks such a layer, or nothing is
    left."""
    if not (train.frozen or train.frozen_layers):
        return
    count = model.config.num_hidden_layers
    if wrong := [layer for layer in train.frozen_layers if layer >= count]:
        raise ModelError(f"train.frozen_layers: this model has layers 0 to {count - 1}, not {wrong}: correct the list")
    for name, parameter in model.named_parameters():
        if model_part(name) in train.frozen or layer_of(name) in train.frozen_layers:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("train.frozen, train.frozen_layers: together they freeze every weight: leave something out")
