"""Choosing the paths by settings."""

from __future__ import annotations

import pytest

from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.model.norm import LeanRMSNorm


@pytest.mark.parametrize("peft", [False, True])
def test_each_part_is_chosen_apart(build_gptoss, peft):
    model = build_gptoss()
    outer = attach_lora(model, LoraSettings(rank=2)) if peft else model
    for attention in ("lean", "reference"):
        for experts in ("lean", "reference"):
            for norms in ("lean", "reference"):
                use_implementations(outer, ModelSettings(attention=attention, experts=experts, norms=norms))
                assert (model.config._attn_implementation == "counterpoint_lean") == (attention == "lean")
                assert (model.config._experts_implementation == "counterpoint_lean") == (experts == "lean")
                assert (type(model.model.norm) is LeanRMSNorm) == (norms == "lean")
    use_implementations(outer, ModelSettings(), recompute_experts=True)
    assert model.config._experts_implementation == "counterpoint_lean_recomputed"
