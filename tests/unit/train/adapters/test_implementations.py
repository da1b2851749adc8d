"""Choosing the paths by settings, and versions outside the tested range."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import counterpoint.configs.errors
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters import implementations as paths
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import TESTED_VERSIONS, installed_versions, use_implementations
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


def test_versions_outside_the_tested_range_are_an_error(build_gptoss, monkeypatch):
    monkeypatch.setattr(paths, "version", lambda package: "5.24.1" if package == "transformers" else "2.13.0+cpu")
    assert [fits for _, _, fits in installed_versions()] == [True, False, False]
    with pytest.raises(
        counterpoint.configs.errors.ModelError, match=r"transformers >=5.19,<5.24 and 5.24.1 is installed"
    ):
        use_implementations(build_gptoss(), ModelSettings())
    use_implementations(build_gptoss(), ModelSettings(attention="reference", experts="reference", norms="reference"))


def test_the_tested_range_is_the_declared_one():
    project = Path(paths.__file__).parents[2] / "pyproject.toml"
    for line in tomllib.loads(project.read_text())["project"]["dependencies"]:
        requirement = Requirement(line)
        if requirement.name in TESTED_VERSIONS:
            first, last = TESTED_VERSIONS[requirement.name]
            assert str(requirement.specifier) in (f">={first},<{last}", f"<{last},>={first}")
