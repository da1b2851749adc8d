"""The part of gpu.py that holds our own kernels against their plain forms, and what puts them in use elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from gpu_bench import Bench

from counterpoint.train.kernels.registry import put_in_use

LIMITS = {torch.bfloat16: 2e-2, torch.float32: 2e-3}
"""Relative errors by norm; products of float32 may run in TF32."""


def kernels(bench: Bench) -> None:
    """Each kernel on small inputs against float64."""
    if (checks := _checks(bench)) is None:
        bench.measured("kernels", left_out=_why_not(bench))
        return
    for name, check in checks.CHECKS.items():
        for dtype, limit in LIMITS.items():
            with bench.attempt(f"kernel {name} {dtype}"):
                bench.check(f"kernel {name} {dtype}", {"error": check(torch.device(bench.device), dtype)}, limit)


def own_kernels(bench: Bench) -> list[str]:
    """The names of the kernels that are right here, which are put in use."""
    right: dict[str, Any] = {}
    if (checks := _checks(bench)) is not None:
        for name, check in checks.CHECKS.items():
            with bench.attempt(f"kernel {name}"):
                if check(torch.device(bench.device), torch.bfloat16) <= LIMITS[torch.bfloat16]:
                    right[name] = checks.KERNELS[name]
    put_in_use(right)
    return list(right)


def _checks(bench: Bench) -> Any:
    if _why_not(bench):
        return None
    from counterpoint.train.adapters import kernel_checks

    return kernel_checks


def _why_not(bench: Bench) -> str:
    if not bench.cuda:
        return "they need a CUDA device"
    return "" if find_spec("triton") else "triton is not installed"
