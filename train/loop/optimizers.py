"""Learning rates by what trains, and the 8-bit optimizers: whether their package is installed, and whether it runs on
the device.

Their names are transformers' own: `adamw_8bit` is bitsandbytes', `adamw_torch_8bit` torchao's.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import version
from typing import Any

import torch

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.train_section import RateSettings
from counterpoint.train.adapters.parts import model_part

PACKAGES = {"adamw_8bit": "bitsandbytes", "adamw_torch_8bit": "torchao"}
"""Optimizer -> its package, which is also the name of the extra that installs it."""
FULL_SIZE = 4096
"""Numbers of a tensor from which both keep its state in 8 bits."""


def prepare_optimizer(optimizer: str, device: str) -> None:
    """Try an 8-bit optimizer on `device` before anything heavy. ConfigError where it is missing or does not run."""
    package = PACKAGES.get(optimizer)
    if package is None:
        return
    where = f"train.optimizer: {optimizer}"
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{where} needs {package}: pip install 'counterpoint[{package}]', or use adamw")
    if optimizer == "adamw_torch_8bit":
        from torch._functorch import config

        # Where a parameter is not sharded evenly, one process would get what was compiled for another's shard.
        config.enable_autograd_cache = False
    try:
        _one_step(optimizer, device)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        compiler = ", which compiles itself and needs a C++ compiler (g++)" if package == "torchao" else ""
        raise ConfigError(
            f"{where}: {package} {version(package)}{compiler} does not run on this {device} ({why}): use adamw"
        ) from error


def give_rates(optimizer: Any, model: torch.nn.Module, rates: RateSettings) -> None:
    """Split the groups of a new optimizer of `model` so that each part has its factor of the rate; groups of the whole
    rate come first."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[tuple[float, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        by_factor: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(_factor(names[id(parameter)], rates), []).append(parameter)
        for factor, parameters in by_factor.items():
            found.append((factor, {**group, "params": parameters, "lr": group["lr"] * factor}))
    if len(found) > len(optimizer.param_groups) or any(factor != 1 for factor, _ in found):
        optimizer.param_groups[:] = [group for _, group in sorted(found, key=lambda item: item[0] != 1)]


def _factor(name: str, rates: RateSettings) -> float:
    own = getattr(rates, model_part(name) or "", 1.0)
    return own * rates.lora_b if ".lora_B." in name else own


def _one_step(optimizer: str, device: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(FULL_SIZE, device=device))
    parameter.grad = torch.ones_like(parameter)
    if optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    else:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    AdamW8bit([parameter], lr=1e-3).step()
    assert bool((parameter != 0).all())
