"""Which kernels of our own are in use in this process. It imports no triton, which only CUDA builds of torch bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_in_use: dict[str, Any] = {}
_device_type = "cuda"


def put_in_use(kernels: Mapping[str, Any], device_type: str = "cuda") -> None:
    """From now on these and no others, for tensors of that device."""
    global _device_type
    _in_use.clear()
    _in_use.update(kernels)
    _device_type = device_type


def chosen(name: str, x: torch.Tensor) -> Any:
    """The kernel `name` (swiglu: forward and backward), or None where it is not in use for tensors like x."""
    return _in_use.get(name) if x.device.type == _device_type else None
