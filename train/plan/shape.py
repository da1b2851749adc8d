"""What a run file's model is made of, without its weights: from config.json, or from the shapes shipped here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from transformers import GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.train_section import TrainSettings
from counterpoint.train.adapters.attach import ATTENTION, DOWN, GATE_UP, AttachmentTable, attach_lora, attachment_table
from counterpoint.train.adapters.parts import freeze
from counterpoint.train.loop.optimizers import FULL_SIZE
from counterpoint.train.model.load import load_config

MXFP4_BYTES = 17 / 32
"""A number in MXFP4: half a byte, and one byte of scale for each 32."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a gpt-oss model, and what of it trains.

    origin: where the sizes come from. base: parameters of the model, of which `packable` are in the experts'
    projections; largest: of one tensor. small: of them that train in tensors too small for an 8-bit optimizer.
    table: what trains, by kind. attention_rank, expert_rank: of the adapters, 0 for none. full: no adapter, the
    weights train that are not frozen.
    """

    origin: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    groups: int
    head_size: int
    experts: int
    active: int
    vocabulary: int
    window: int
    base: int
    packable: int
    largest: int
    small: int
    table: AttachmentTable
    attention_rank: int
    expert_rank: int
    full: bool

    @property
    def query_width(self) -> int:
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.groups * self.head_size

    @property
    def trainable(self) -> int:
        return self.table.trainable

    @property
    def experts_train(self) -> bool:
        """Whether the experts' own weights train, which the lean experts do not take."""
        return self.full and any(row.kind in (GATE_UP, DOWN) for row in self.table.rows)

    @property
    def head_trains(self) -> bool:
        return self.full and any(row.kind == "head" for row in self.table.rows)

    def expert_numbers(self) -> int:
        """Numbers in the two projections of one layer's experts."""
        return 3 * self.experts * self.hidden * self.intermediate


def shape_of(model: ModelSettings, lora: LoraSettings, train: TrainSettings | None = None) -> Shape:
    """Builds the model and its adapter on the meta device, which takes a second and no memory.

    train: what it freezes in full fine-tuning, None for nothing. ModelError where `lora` or `train` asks for what the
    model lacks, or where there is no config.json and the name is unknown.
    """
    frozen = (train or TrainSettings()).model_dump_json(include={"frozen", "frozen_layers"})
    return _shape(model.model_dump_json(include={"name", "revision"}), lora.model_dump_json(), frozen)


@lru_cache(maxsize=8)
def _shape(model_json: str, lora_json: str, train_json: str) -> Shape:
    model, lora = ModelSettings.model_validate_json(model_json), LoraSettings.model_validate_json(lora_json)
    config, origin = load_config(model)
    with torch.device("meta"):
        bare = GptOssForCausalLM(config)
        parameters = list(bare.parameters())
        numbers, largest = sum(p.numel() for p in parameters), max(p.numel() for p in parameters)
        whole: Any = attach_lora(bare, lora) if lora.enabled else bare
    if not lora.enabled:
        freeze(whole, TrainSettings.model_validate_json(train_json))
    table = attachment_table(whole)
    ranks = {row.kind: row.rank or 0 for row in table.rows}
    values = cast(Any, config)
    return Shape(
        origin, values.num_hidden_layers, values.hidden_size, values.intermediate_size, values.num_attention_heads,
        values.num_key_value_heads, values.head_dim, values.num_local_experts, values.num_experts_per_tok,
        values.vocab_size, values.sliding_window, numbers,
        3 * values.num_hidden_layers * values.num_local_experts * values.hidden_size * values.intermediate_size,
        largest, _small(whole), table, ranks.get(ATTENTION, 0), max(ranks.get(GATE_UP, 0), ranks.get(DOWN, 0)),
        not lora.enabled,
    )  # fmt: skip


def _small(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad and p.numel() < FULL_SIZE)


def weight_bytes(shape: Shape, model: ModelSettings, itemsize: int) -> int:
    """Memory of the base model's weights, `itemsize` bytes a number where they are not packed."""
    packed = shape.packable if model.base == "mxfp4" else 0
    return int(packed * MXFP4_BYTES) + (shape.base - packed) * itemsize
