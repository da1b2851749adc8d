"""What vLLM gets before each step's rollouts, and what is refused; vLLM itself is a stand-in."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import GptOssForCausalLM

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.merged import merged_state, write_merged
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.weight_sync import check_adapter, check_engine, following_engine


class StandIn:
    """Remembers what it was started with and asked for; it \"loads\" the weights in its folder."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, []
        self.read()

    def read(self) -> None:
        path = Path(self.options["model"]) / "model.safetensors"
        self.weights = load_file(path) if path.is_file() else {}

    def collective_rpc(self, name: str) -> None:
        self.calls.append(name)
        self.read()

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = StandIn, types.SimpleNamespace, "0.13.0"
    lora: Any = types.ModuleType("vllm.lora.request")
    lora.LoRARequest = lambda *args: args
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    return module


def run_of(**changes: Any) -> GrpoRun:
    settings: dict[str, Any] = {
        "recipe": "grpo", "model": {"name": "openai/gpt-oss-20b"}, "data": {"train": {"type": "arithmetic"}},
        "rewards": [{"type": "answer"}], "rollout": {"engine": "vllm"}, "train": {"batch_rows": 8},
    }  # fmt: skip
    for key, value in changes.items():
        settings[key] = {**settings.get(key, {}), **value}
    return GrpoRun.model_validate(settings)


def adapted(**lora: Any) -> LoadedModel:
    torch.manual_seed(0)
    loaded = random_tiny()
    loaded = loaded.with_model(attach_lora(loaded.model, LoraSettings(rank=4, **lora)))
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return loaded


def test_an_adapter_goes_on_every_request_under_a_new_number(vllm: Any, tmp_path: Path) -> None:
    engine = following_engine(run_of(lora={"rank": 8, "expert_rank": 20}), tmp_path)
    options = engine.engine.llm.options
    assert (options["model"], options["max_lora_rank"], options["enable_lora"]) == ("openai/gpt-oss-20b", 32, True)
    assert (options["gpu_memory_utilization"], options["logprobs_mode"]) == (0.3, "processed_logprobs")
    for version in (0, 1):
        engine.follow(None, lambda folder: folder.mkdir(), version)
        assert engine.engine.adapter == (f"adapter-{version}", version + 1, str(tmp_path / f"adapter-{version}"))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter-1"]


def test_merged_weights_are_read_again_from_their_folder(vllm: Any, tmp_path: Path) -> None:
    loaded = adapted(router=True)
    engine = following_engine(run_of(rollout={"engine": "vllm", "weights": "merged"}), tmp_path)
    engine.follow(loaded.model, lambda folder: None, 0)
    llm = engine.engine.llm
    assert llm.options["model"] == str(tmp_path / "merged")
    assert "enable_lora" not in llm.options
    first = llm.weights
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    engine.follow(loaded.model, lambda folder: None, 1)
    assert llm.calls == ["reload_weights", "reset_prefix_cache"]
    assert any(not bool((first[name] == llm.weights[name]).all()) for name in first)


def test_merged_weights_are_those_of_a_merge_and_the_base_stays(tmp_path: Path) -> None:
    loaded = adapted(router=True)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    state = merged_state(loaded.model)
    assert all(bool((tensor == before[name]).all()) for name, tensor in loaded.model.state_dict().items())
    write_merged(loaded.model, tmp_path)
    again = GptOssForCausalLM.from_pretrained(str(tmp_path))
    rows = torch.arange(12)[None]
    with torch.no_grad():
        wanted = loaded.model(input_ids=rows).logits
        assert torch.allclose(again(input_ids=rows).logits, wanted, atol=1e-5)
    merged = loaded.model.merge_and_unload().state_dict()
    assert state.keys() == merged.keys()
    assert all(torch.allclose(state[name], merged[name], atol=1e-6) for name in merged)


def test_what_a_vllm_is_too_old_for_is_told(vllm: Any) -> None:
    vllm.__version__ = "0.10.2"
    with pytest.raises(ConfigError, match=r"vLLM 0\.10\.2 serves no adapters on experts.*rollout\.weights: merged"):
        check_engine(run_of())
    check_engine(run_of(lora={"experts": False}))
    for version in ("0.13.0", "1.0", "", "dev"):
        check_adapter(LoraSettings(), version)
    with pytest.raises(ConfigError, match=r"0\.31\.0 reads one scale.*update it to 0\.32.*lora\.expert_alpha"):
        check_adapter(LoraSettings(expert_alpha=3.0), "0.31.0")
    with pytest.raises(ConfigError, match=r"on the router.*lora\.router: false"):
        check_adapter(LoraSettings(router=True), "0.31.0")
    check_adapter(LoraSettings(router=True, expert_alpha=3.0), "0.32.0")


def test_a_vllm_on_a_cpu_is_given_no_changed_experts(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    platforms: Any = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    merged = {"engine": "vllm", "weights": "merged"}
    for lora in ({}, {"enabled": False}):
        with pytest.raises(ConfigError, match=r"does not read changed weights of experts.*lora\.experts: false"):
            check_engine(run_of(rollout=merged, lora=lora))
    check_engine(run_of(rollout=merged, lora={"experts": False}))


def test_vllm_computes_in_the_numbers_of_the_training(vllm: Any, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        engine = following_engine(run_of(model={"dtype": dtype}), tmp_path)
        assert engine.engine.llm.options["dtype"] == dtype


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": {"name": "tiny"}}, "embedded model"),
        ({"model": {"init": "random"}}, "init: pretrained"),
        ({"launch": {"processes": 2}}, "rollout.engine: server"),
        ({"lora": {"enabled": False}}, "rollout.weights: merged"),
        ({"rollout": {"engine": "server", "weights": "merged"}}, "adapters only"),
        ({"model": {"base": "mxfp4"}, "rollout": {"engine": "vllm", "weights": "merged"}}, "base: bf16"),
    ],
)
def test_what_vllm_cannot_serve_is_told_before_anything_loads(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        run_of(**changes)


def test_one_scale_for_attention_and_experts() -> None:
    assert LoraSettings(rank=16, alpha=32, expert_rank=4).one_scale
    assert LoraSettings(rank=16, alpha=32, expert_rank=4, expert_alpha=8).one_scale
    assert not LoraSettings(rank=16, alpha=32, expert_rank=4, expert_alpha=32).one_scale
    assert LoraSettings(rank=16, alpha=32, expert_rank=4, expert_alpha=16, rslora=True).one_scale
