"""The output head, a chunk of positions at a time: never all logits at once.

Legend: B rows, S tokens of a row, T target positions, C positions of a chunk, H hidden, V rows of the vocabulary,
R rows of the head that are widened at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from counterpoint.train.adapters.routing import inner_model
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.precision import on_cuda

LOGIT_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""Largest block of logits held at once, by device: 128 MiB and 1 GiB. Chosen; results do not depend on it."""
WEIGHT_ROWS = 8192
"""Rows of the head that are widened at once where the head is narrower than the products. Chosen; results do not
depend on it."""


def target_hidden(model: nn.Module, base: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states (T, H) that predict a collated batch's targets, the head's weight (V, H)); no logits are made.

    model: `base` as the trainer wraps it. Collective under FSDP2: all processes run equally many batches.
    """
    found: list[torch.Tensor] = []
    # The input of the head is the only one of all hidden states that is looked at, so the others are not kept.
    norm = cast(nn.Module, inner_model(base).norm)
    hook = norm.register_forward_hook(lambda module, args, output: found.append(cast(torch.Tensor, output)))
    try:
        model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            **attention_inputs(base, inputs["position_ids"], inputs["subtree_end"]),
            # No logits at all: on a CPU even those of one position would copy a bfloat16 head.
            logits_to_keep=inputs["input_ids"].new_empty(0),
            use_cache=False,
        )
    finally:
        hook.remove()
    (hidden_BSH,) = found
    hidden_TH = hidden_BSH.flatten(0, 1).index_select(0, inputs["target_index"])
    weight_VH = base.get_output_embeddings().weight
    return hidden_TH, weight_VH.full_tensor() if hasattr(weight_VH, "full_tensor") else weight_VH


def chunks(hidden_TH: torch.Tensor, weight_VH: torch.Tensor, wide: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of positions, each with room for its logits: one buffer for all."""
    total, rows = len(hidden_TH), len(weight_VH)
    size = max(1, min(total, LOGIT_BYTES["cuda" if on_cuda(hidden_TH) else "cpu"] // (rows * wide.itemsize)))
    buffer_CV = hidden_TH.new_empty(size, rows, dtype=wide)
    for first in range(0, total, size):
        last = min(first + size, total)
        yield slice(first, last), buffer_CV[: last - first]


def logits(hidden_CH: torch.Tensor, weight_VH: torch.Tensor, out_CV: torch.Tensor) -> None:
    """out = hidden W^T, summed in float32 at least."""
    if weight_VH.dtype == out_CV.dtype:
        torch.mm(hidden_CH.to(out_CV.dtype), weight_VH.T, out=out_CV)
    elif on_cuda(weight_VH):
        torch.mm(hidden_CH.to(weight_VH.dtype), weight_VH.T, out_dtype=out_CV.dtype, out=out_CV)
    else:  # on a CPU even where it multiplies bfloat16: that product comes back rounded to bfloat16
        hidden_CH = hidden_CH.to(out_CV.dtype)
        for part, block in _widened(weight_VH, out_CV.dtype):
            torch.mm(hidden_CH, block.T, out=out_CV[:, part])


def softmax_less_target(log_softmax_CV: torch.Tensor, target_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(softmax - onehot (C, V), in the given memory; the target's log-probability (C,))."""
    target_log_C1 = log_softmax_CV.gather(1, target_C[:, None])
    # Before anything is rounded to the head's type: of a target that is nearly certain, little is left.
    return log_softmax_CV.exp_().scatter_(1, target_C[:, None], torch.expm1(target_log_C1)), target_log_C1[:, 0]


def product(d_logits_CV: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
    """d_logits W (C, H) in the type of d_logits."""
    if weight_VH.dtype == d_logits_CV.dtype:
        return d_logits_CV @ weight_VH
    if on_cuda(weight_VH):
        return torch.mm(d_logits_CV.to(weight_VH.dtype), weight_VH, out_dtype=d_logits_CV.dtype)
    out_CH = d_logits_CV.new_zeros(len(d_logits_CV), weight_VH.shape[1])
    for part, block in _widened(weight_VH, d_logits_CV.dtype):
        out_CH.addmm_(d_logits_CV[:, part], block)
    return out_CH


def _widened(weight_VH: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the head in `dtype`, all in one buffer: allocating memory for each part costs more than the widening."""
    buffer_RH = weight_VH.new_empty(min(WEIGHT_ROWS, len(weight_VH)), weight_VH.shape[1], dtype=dtype)
    for first in range(0, len(weight_VH), WEIGHT_ROWS):
        part = slice(first, min(first + WEIGHT_ROWS, len(weight_VH)))
        yield part, buffer_RH[: part.stop - first].copy_(weight_VH[part])
