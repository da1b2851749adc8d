"""What reaches each expert: H = sum of w^2 x x^T over the routed inputs of both projections, w the routing weight.

Legend: N tokens, K experts a token, E experts, I inputs of a projection, J = 2 I of the activation.

The live model runs over the rows; a hook sees what enters the experts of a layer and follows it to the second
projection. Layers are measured as many at a time as fit `GRAM_BYTES`, and a pass ends behind the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from counterpoint.train.adapters.attach import GATE_UP
from counterpoint.train.adapters.expert_math import activation
from counterpoint.train.adapters.projections import Projection, base_experts, projections
from counterpoint.train.model.load import LoadedModel

GRAM_BYTES = 8 << 30
BATCH_TOKENS = 8192
"""Of a forward pass: an expert's weights are unpacked once in it."""
FEW_ROWS = 256
"""Routed rows below which an expert takes the sum of its layer's."""


@dataclass
class Gram:
    """H of one layer: up (E, I, I) of the experts' input, down (E, I, I) of the activation; rows (E,) routed."""

    up: torch.Tensor
    down: torch.Tensor
    rows: torch.Tensor

    def of(self, kind: str, experts: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(H of some experts, whether each has one). Where an expert has few rows it is the layer's sum, and where
        that has few as well there is none."""
        whole = self.up if kind == GATE_UP else self.down
        few_E = self.rows[experts] < FEW_ROWS
        if not few_E.any():
            return whole[experts], ~few_E
        pooled = whole.sum(0)
        enough = int(self.rows.sum()) >= FEW_ROWS
        return torch.where(few_E[:, None, None], pooled, whole[experts]), ~few_E | enough


class _LastLayerError(Exception):
    """The last layer of a pass has been seen."""


def layers_at_once(live: LoadedModel) -> int:
    """Layers whose H fit into `GRAM_BYTES`."""
    config = live.model.config
    one = 4 * config.num_local_experts * (config.hidden_size**2 + config.intermediate_size**2)
    return max(1, GRAM_BYTES // one)


@torch.no_grad()
def measured(
    live: LoadedModel, rows: Sequence[np.ndarray], layers: Sequence[int], seen: Callable[[int], None] = lambda _: None
) -> dict[int, Gram]:
    """H of each of the layers, float32 on the model's device. seen: called with the number of rows that are done."""
    model = live.model
    by_layer: dict[int, dict[str, Projection]] = {}
    for part in projections(model):
        by_layer.setdefault(part.layer, {})[part.kind] = part
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hooks = [_Hook(by_layer[n], base_experts(inner.model.layers[n]), n == max(layers)) for n in layers]
    handles = [hook.experts.register_forward_pre_hook(hook) for hook in hooks]
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    done = 0
    try:
        for batch in _batches(rows):
            input_BS = torch.full((len(batch), len(batch[0])), live.pad_row, dtype=torch.int64)
            for row, ids in zip(input_BS, batch, strict=True):
                row[: len(ids)] = torch.from_numpy(np.asarray(live.vocabulary_map.rows(ids), dtype=np.int64))
            lengths_B = torch.tensor([len(ids) for ids in batch])
            for hook in hooks:
                hook.kept_N = (torch.arange(input_BS.shape[1]) < lengths_B[:, None]).flatten().to(device)
            # Padding stands behind what is kept, which attends to nothing behind it.
            with suppress(_LastLayerError):
                model(input_ids=input_BS.to(device), logits_to_keep=1, use_cache=False)
            done += len(batch)
            seen(done)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return {layer: hook.gram for layer, hook in zip(layers, hooks, strict=True)}


def _batches(rows: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Rows of similar length together, the longest first."""
    batch: list[np.ndarray] = []
    for ids in sorted(rows, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


class _Hook:
    """Before the experts of one layer: adds to its `Gram`."""

    def __init__(self, parts: dict[str, Projection], experts: Any, last: bool) -> None:
        self.up, self.experts, self.last = parts[GATE_UP], experts, last
        self.kept_N: torch.Tensor | None = None
        count, hidden, double = self.up.weight.shape
        device = experts.gate_up_proj_bias.device
        self.gram = Gram(
            torch.zeros(count, hidden, hidden, device=device),
            torch.zeros(count, double // 2, double // 2, device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
        )

    def __call__(self, module: Any, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        hidden_NH, index_NK, weight_NK = inputs
        assert self.kept_N is not None
        for expert in range(self.up.experts):
            token, choice = ((index_NK == expert) & self.kept_N[:, None]).nonzero(as_tuple=True)
            if not len(token):
                continue
            x, weight = hidden_NH[token].float(), weight_NK[token, choice, None].float()
            bias = self.experts.gate_up_proj_bias[expert].float()
            hidden = torch.addmm(bias, x, self.up.live(expert).T)
            a = activation(hidden, float(self.experts.alpha), float(self.experts.limit))
            for gram, each in ((self.gram.up, x), (self.gram.down, a)):
                scaled = each * weight
                gram[expert].addmm_(scaled.T, scaled)
            self.gram.rows[expert] += len(token)
        if self.last:
            raise _LastLayerError
