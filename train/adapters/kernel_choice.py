"""Which kernels of our own run in place of torch's: `model.kernels`.

`auto` compares each with its plain form on this GPU before it is trusted, and leaves out, with a warning, what does not
compile or differs; `triton` makes that an error; `torch` uses none.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from counterpoint.configs.errors import ModelError
from counterpoint.train.kernels.registry import put_in_use

LIMIT = 2e-2
"""Relative error, by norm, of bfloat16 results."""


def use_kernels(setting: str, device: torch.device) -> list[str]:
    """Choose the kernels of this process; their names. ModelError where `triton` is asked for and cannot be had."""
    put_in_use({})
    missing = None
    if device.type != "cuda":
        missing = f"they need a CUDA device, and this run is on the {device.type}"
    elif find_spec("triton") is None:
        missing = "triton is not installed (it comes with torch's CUDA builds for Linux)"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        missing = "this GPU is older than compute capability 8.0"
    if setting == "torch" or (setting == "auto" and missing):
        return []
    fix = "set model.kernels to torch, or to auto"
    if missing:
        raise ModelError(f"model.kernels: triton, but {missing}: {fix}")
    right, troubles = _tried(device)
    for name, trouble in troubles.items():
        if setting == "triton":
            raise ModelError(f"model.kernels: triton, but the kernel {name} {trouble}: {fix}, and report it")
        warnings.warn(f"the kernel {name} {trouble}: torch's are used in its place; report it", stacklevel=2)
    put_in_use(right)
    return list(right)


@lru_cache(maxsize=1)
def _tried(device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    """The kernels that are right on this GPU, and what is wrong with the others."""
    checks: Any = import_module("counterpoint.train.adapters.kernel_checks")
    right, troubles = dict[str, Any](), dict[str, str]()
    for name, check in checks.CHECKS.items():
        try:
            error = check(device, torch.bfloat16)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:160]
            troubles[name] = f"does not run on this GPU ({type(error).__name__}: {first})"
            continue
        if error <= LIMIT:
            right[name] = checks.KERNELS[name]
        else:
            troubles[name] = f"differs from its plain form by {error:.2g} on this GPU"
    return right, troubles
