"""Which kernels and which number format the lean path computes with."""

from __future__ import annotations

import torch


def on_cuda(x: torch.Tensor) -> bool:
    """Whether CUDA's kernels compute with this tensor."""
    return x.is_cuda


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The type that matrix products run in: float32 for bfloat16 on a CPU without AMX, where it is the faster one.

    torch answers whether there is AMX by a private function only.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported():
        return torch.float32
    return x.dtype
