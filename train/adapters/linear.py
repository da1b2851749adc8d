"""LoRA on attention's projections, without copies of their inputs."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import Linear as PeftLinear


class AutocastLinear(PeftLinear):
    """PEFT's layer, which leaves the cast to autocast where that is on.

    PEFT widens the input to the adapter's float32, and autocast narrows that again: each projection would hold a copy
    of its own for the backward pass, where the three of one layer share the norm's output.
    """

    def _cast_input_dtype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:  # pyright: ignore
        if torch.is_autocast_enabled(x.device.type):
            return x
        return super()._cast_input_dtype(x, dtype)
