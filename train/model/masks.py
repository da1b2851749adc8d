"""Attention masks of tree rows, in plain tensors: the reference for every faster path.

Legend: B rows, S tokens in a row (query first, key second where it appears twice).

A row is a forest laid out in depth-first order. Token i attends to token j iff `j <= i < subtree_end[j]`; in sliding
layers also `position[i] - position[j] < window`. Padding is
trees of its own (data/layout/collate.py).
"""

from __future__ import annotations

import torch

LAYER_TYPES = ("full_attention", "sliding_attention")


def tree_allowed(position_BS: torch.Tensor, subtree_end_BS: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Which token sees which: bool (B, S, S), query first. `window` is the width of a sliding layer, in positions."""
    index_S = torch.arange(subtree_end_BS.shape[-1], device=subtree_end_BS.device)
    causal_SS = index_S[:, None] >= index_S[None, :]
    allowed_BSS = causal_SS & (index_S[None, :, None] < subtree_end_BS[:, None, :])
    if window is not None:
        allowed_BSS &= position_BS[:, :, None] - position_BS[:, None, :] < window
    return allowed_BSS


def tree_masks(
    position_BS: torch.Tensor, subtree_end_BS: torch.Tensor, window: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Additive masks (B, 1, S, S) by layer type, as `GptOssModel.forward(attention_mask=...)` takes them.

    `dtype` is that of the model's activations; `torch.bool` gives True where attention is allowed.
    """
    masks = {}
    for layer_type, width in zip(LAYER_TYPES, (None, window), strict=True):
        allowed_B1SS = tree_allowed(position_BS, subtree_end_BS, width)[:, None]
        if dtype != torch.bool:
            blocked = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=allowed_B1SS.device)
            masks[layer_type] = torch.where(allowed_B1SS, torch.zeros_like(blocked), blocked)
        else:
            masks[layer_type] = allowed_B1SS
    return masks
