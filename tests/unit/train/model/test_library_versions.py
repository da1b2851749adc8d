"""What differs between versions of libraries, each with the library as it is in that version."""

from __future__ import annotations

import dataclasses
import tomllib
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from tree import ROOT

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.adapters.experts import lean_experts_forward
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.model import library_versions
from counterpoint.train.model.library_versions import (
    TESTED_VERSIONS,
    checkpointing_arguments,
    costs,
    installed_versions,
    is_expert_parallel,
)


def install(monkeypatch, **versions):
    monkeypatch.setattr(library_versions, "version", lambda package: versions.get(package, "0.21.2"))


def test_versions_outside_the_tested_range_are_an_error(build_gptoss, monkeypatch):
    install(monkeypatch, torch="2.13.0+cpu", transformers="5.25.1", peft="0.22.0")
    assert [fits for _, _, fits in installed_versions()] == [True, False, False]
    with pytest.raises(ModelError, match=r"transformers >=5.17,<5.25 and 5.25.1 is installed"):
        use_implementations(build_gptoss(), ModelSettings())
    use_implementations(build_gptoss(), ModelSettings(attention="reference", experts="reference", norms="reference"))


def test_the_tested_range_is_the_declared_one():
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        requirement = Requirement(line)
        if requirement.name in TESTED_VERSIONS:
            first, last = TESTED_VERSIONS[requirement.name]
            assert str(requirement.specifier) in (f">={first},<{last}", f"<{last},>={first}")


def test_what_a_version_costs(monkeypatch):
    install(monkeypatch, torch="2.13.0+cpu", transformers="5.23.0")
    assert costs() == []
    install(monkeypatch, torch="2.11.0+cu130", transformers="5.17.0")
    assert [(package, found) for package, found, _ in costs()] == [
        ("torch", "2.11.0+cu130"),
        ("transformers", "5.17.0"),
    ]
    install(monkeypatch, torch="2.9.0", transformers="5.24.0")  # outside the range is an error of its own
    assert costs() == []


def test_experts_of_transformers_before_5_19_do_not_say_whether_they_are_sharded(build_gptoss, monkeypatch):
    assert is_expert_parallel(SimpleNamespace(_is_expert_parallel=True))
    model = build_gptoss()
    experts = model.model.layers[0].mlp.experts
    for each in (GptOssExperts, *(layer.mlp.experts for layer in model.model.layers)):
        if "_is_expert_parallel" in vars(each):
            monkeypatch.delattr(each, "_is_expert_parallel")
    assert not hasattr(experts, "_is_expert_parallel")
    hidden, index = torch.randn(5, model.config.hidden_size), torch.tensor([[0, 1]] * 5)
    with torch.no_grad():
        out = lean_experts_forward(experts, hidden, index, torch.full((5, 2), 0.5))
    assert out.shape == hidden.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("old_names_only", [True, False])
def test_checkpointing_has_an_old_name_and_a_new_one(monkeypatch, old_names_only):
    names = ["gradient_checkpointing", "gradient_checkpointing_kwargs", "output_dir"]
    if not old_names_only:
        names += ["activation_checkpointing", "activation_checkpointing_kwargs"]
    arguments = dataclasses.make_dataclass("Arguments", names)
    monkeypatch.setattr(library_versions, "TrainingArguments", arguments)
    assert sorted(checkpointing_arguments(True)) == sorted(set(names) - {"output_dir"})
    assert checkpointing_arguments(False)["gradient_checkpointing"] is False
    assert checkpointing_arguments(True)["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
