"""Which implementation of attention, experts and norms a model runs on."""

from __future__ import annotations

from typing import Any

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.adapters.experts import use_experts
from counterpoint.train.adapters.kernel_choice import use_kernels
from counterpoint.train.model.attention import use_attention
from counterpoint.train.model.library_versions import TESTED_VERSIONS, installed_versions
from counterpoint.train.model.norm import use_norms


def use_implementations(model: Any, settings: ModelSettings | None = None, recompute_experts: bool = False) -> None:
    """Set the attention, experts and norms of `model` (or of the model inside a PEFT one) as the run file sets them;
    without `settings` the lean ones.

    recompute_experts: see `use_experts`. ModelError where the lean path is asked for on versions that it was not tested
    with.
    """
    settings = settings or ModelSettings()
    if "lean" in (settings.attention, settings.experts, settings.norms):
        for package, found, fits in installed_versions():
            if not fits:
                first, last = TESTED_VERSIONS[package]
                raise ModelError(
                    f"model.attention, model.experts, model.norms: the lean path is tested with {package} "
                    f">={first},<{last} and {found} is installed: install that, or set all to reference"
                )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    use_kernels(settings.kernels, next(inner.parameters()).device)
    use_attention(inner, settings.attention == "lean")
    use_experts(inner, settings.experts == "lean", recompute_experts)
    use_norms(inner, settings.norms == "lean")
