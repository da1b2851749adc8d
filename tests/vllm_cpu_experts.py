"""A plugin of vLLM's that computes experts in plain torch where adapters are on: its build for CPUs has no Triton.

It runs in vLLM's environment (tests/vllm_server.py puts it there). Everything else is vLLM's own: which adapter a token
has, the layouts of weights and adapters, attention, the sampler. Legend: T tokens, K experts a token, H hidden size, I
intermediate size, E experts, R rank.
"""

from __future__ import annotations

from typing import Any

import torch

ALPHA, LIMIT = 1.702, 7.0


def register() -> None:
    """The entry point: called once in every process of vLLM's."""
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import (  # pyright: ignore[reportMissingImports]
        TritonExperts,
    )

    TritonExperts.apply = _apply


def _apply(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    *others: Any,
    **more: Any,
) -> None:
    """output, hidden_states (T, H); w1 (E, 2I, H) with gate and up in turn; w2 (E, H, I); topk_* (T, K)."""
    assert activation.value == "swigluoai", activation
    lora = self._lora_context
    output.zero_()
    for choice in range(topk_ids.shape[1]):
        for expert in topk_ids[:, choice].unique().tolist():
            rows = (topk_ids[:, choice] == expert).nonzero()[:, 0]
            found = _linear(hidden_states[rows], w1[expert], self.w1_bias[expert])
            if lora is not None:
                found += _added(lora, "w13", hidden_states[rows], expert, rows)
            gate, up = found[:, ::2].clamp(max=LIMIT), found[:, 1::2].clamp(-LIMIT, LIMIT)
            found = (up + 1) * gate * torch.sigmoid(gate * ALPHA)
            down = _linear(found, w2[expert], self.w2_bias[expert])
            if lora is not None:
                down += _added(lora, "w2", found, expert, rows)
            output[rows] += topk_weights[rows, choice, None].to(down.dtype) * down


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight, bias.to(x.dtype))


def _added(lora: Any, part: str, x: torch.Tensor, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """What the adapter of each token adds: -1 is none. Stacked weights are (adapters, E, R, in) and (adapters, E, out, R);
    two of them are of gate and up."""
    slots = lora.punica_wrapper.token_lora_indices[rows]
    pairs = zip(getattr(lora, f"{part}_lora_a_stacked"), getattr(lora, f"{part}_lora_b_stacked"), strict=True)
    parts = []
    for a, b in pairs:
        added = x.new_zeros(len(rows), b.shape[2])
        for slot in slots[slots >= 0].unique().tolist():
            mine = slots == slot
            added[mine] = (x[mine] @ a[slot, expert].T) @ b[slot, expert].T
        parts.append(added)
    return parts[0] if len(parts) == 1 else torch.stack(parts, -1).flatten(1)
