"""What makes a model attend along tree rows: masks for transformers' attention, plans for the lean one.

Legend: B rows, S tokens in a row.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from counterpoint.train.model.attention import LEAN_ATTENTION
from counterpoint.train.model.attention_plan import tree_plans
from counterpoint.train.model.masks import tree_masks


def attention_inputs(
    model: PreTrainedModel, position_BS: torch.Tensor, subtree_end_BS: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """The keyword arguments that make `model` (or PEFT's wrap of it) attend along tree rows in one forward pass.

    The lean attention takes plans in place of masks.
    """
    window = model.config.sliding_window
    if model.config._attn_implementation == LEAN_ATTENTION:
        return {"attention_mask": tree_plans(position_BS, subtree_end_BS, window)}
    return {"attention_mask": tree_masks(position_BS, subtree_end_BS, window, model.dtype)}
