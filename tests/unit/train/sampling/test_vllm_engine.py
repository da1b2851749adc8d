"""vLLM's requests and how its answers are read, on a stand-in module; test_real_vllm.py starts the real one."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError, ModelError, RunError
from counterpoint.configs.schema import ModelSettings, SuiteSettings, VllmSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import device_of, dtype_of
from counterpoint.train.sampling.engines import make_engine
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.vllm_engine import VllmEngine


class StandIn:
    """Gives back the prompt and the stop token, which it leaves out for prompts that begin with 0."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def generate(self, prompts: Any, settings: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        self.asked, self.lora = settings, lora_request
        outputs: list[Any] = []
        for prompt, params in zip(prompts, settings, strict=True):
            ids = prompt["prompt_token_ids"]
            whole = len(ids) < params.max_tokens
            given = ids if not whole or ids[0] == 0 else [*ids, RETURN]
            outputs.append(
                types.SimpleNamespace(
                    token_ids=tuple(given),
                    logprobs=[{id_: types.SimpleNamespace(logprob=-0.5 * i)} for i, id_ in enumerate(given)],
                    finish_reason="stop" if whole else "length",
                    stop_reason=CALL if ids[0] == 0 else RETURN,
                )
            )
        return [types.SimpleNamespace(outputs=[output]) for output in outputs]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module: Any = types.ModuleType("vllm")
    module.LLM = StandIn
    module.SamplingParams = types.SimpleNamespace
    lora: Any = types.ModuleType("vllm.lora.request")
    lora.LoRARequest = lambda *args: args
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    return module


def test_ids_go_in_and_out(vllm: types.ModuleType) -> None:
    engine = VllmEngine.started("folder", VllmSettings(tensor_parallel=2), truncation=Truncation(0.9, 50, 0.01))
    found = engine.sample([[1, 2], [0, 5], [1, 2, 3, 4]], 4, 0.5, seed=[7, 8, 9])
    assert [(s.ids, s.finish_reason) for s in found] == [
        ([1, 2, RETURN], "stop"),
        ([0, 5, CALL], "stop"),
        ([1, 2, 3, 4], "length"),
    ]
    assert [params.seed for params in engine.llm.asked] == [7, 8, 9]
    assert {(params.top_p, params.top_k, params.min_p) for params in engine.llm.asked} == {(0.9, 50, 0.01)}
    assert (engine.llm.asked[0].stop_token_ids, engine.llm.asked[0].ignore_eos) == ([RETURN, CALL], True)
    assert (engine.llm.options["tensor_parallel_size"], engine.llm.options["skip_tokenizer_init"]) == (2, True)
    assert engine.llm.lora is None


def test_the_experts_of_tokens_are_asked_for(vllm: types.ModuleType) -> None:
    assert "enable_return_routed_experts" not in VllmEngine.started("folder", VllmSettings()).llm.options
    engine = VllmEngine.started("folder", VllmSettings(), routes=True)
    assert engine.llm.options["enable_return_routed_experts"] is True
    with pytest.raises(ModelError, match="engine: vllm: it does not name the experts"):
        engine.sample([[1]], 4)


def test_an_adapter_goes_along(vllm: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "rank_pattern": {"experts": 16}}))
    engine = VllmEngine.started("folder", VllmSettings(), str(tmp_path))
    engine.sample([[1]], 4)
    assert engine.llm.options["max_lora_rank"] == 16
    assert engine.llm.lora == ("adapter-0", 1, str(tmp_path))
    engine.load_adapter(tmp_path / "next", 7)
    engine.sample([[1]], 4)
    assert engine.llm.lora == ("adapter-7", 8, str(tmp_path / "next"))
    with pytest.raises(ConfigError, match="no adapter"):
        VllmEngine.started("folder", VllmSettings(), str(tmp_path / "none"))


def test_log_probabilities_come_along(vllm: types.ModuleType) -> None:
    engine = VllmEngine.started("folder", VllmSettings(), rank=12, logprobs=True)
    assert (engine.llm.options["max_lora_rank"], engine.llm.options["logprobs_mode"]) == (16, "processed_logprobs")
    found = engine.sample([[1, 2], [0, 5]], 4)
    assert engine.llm.asked[0].logprobs == 0
    # The second stop token was left out of the ids, so nothing is known of it.
    assert [s.logprobs for s in found] == [[0.0, -0.5, -1.0], [0.0, -0.5, None]]
    assert [len(s.ids) for s in found] == [3, 3]
    with pytest.raises(ConfigError, match="up to rank 512"):
        VllmEngine.started("folder", VllmSettings(), rank=600)


def test_without_vllm_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"counterpoint\[vllm\]"):
        make_engine(SuiteSettings(engine="vllm"), model=ModelSettings(name="folder"))


def test_a_vllm_that_does_not_start_is_told(vllm: types.ModuleType) -> None:
    def broken(**options: Any) -> None:
        raise RuntimeError("no\nCUDA")

    vllm.LLM = broken  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="RuntimeError: no CUDA"):
        VllmEngine.started("folder", VllmSettings())


def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms: Any = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)


def test_on_a_cpu_nothing_is_compiled_and_no_adapter_is_served(
    vllm: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu(monkeypatch)
    assert VllmEngine.started("folder", VllmSettings()).llm.options["enforce_eager"] is True
    with pytest.raises(ConfigError, match=r"on a CPU serves no adapters.*rollout\.weights: merged"):
        VllmEngine.started("folder", VllmSettings(), rank=8)


def test_a_vllm_that_dies_while_it_samples_is_told(vllm: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*args: Any, **options: Any) -> None:
        raise RuntimeError("EngineCore encountered an issue.")

    engine = VllmEngine.started("folder", VllmSettings())
    monkeypatch.setattr(engine.llm, "generate", dead, raising=False)
    with pytest.raises(RunError, match=r"vllm failed: RuntimeError: EngineCore"):
        engine.sample([[1]], 4)


def test_the_model_of_an_evaluation_is_loaded_as_it_is_named(vllm: types.ModuleType) -> None:
    named = ModelSettings(name="openai/gpt-oss-20b", revision="abc", dtype="float32")
    made: Any = make_engine(SuiteSettings(engine="vllm"), model=named)
    assert (made.llm.options["revision"], made.llm.options["dtype"]) == ("abc", "float32")
    made = make_engine(SuiteSettings(engine="vllm"), model=ModelSettings(name="openai/gpt-oss-20b"))
    assert made.llm.options["dtype"] == str(dtype_of("auto", device_of())).removeprefix("torch.")


@pytest.mark.parametrize("name", ["tiny", str(tiny_folder())])
def test_a_model_with_a_vocabulary_of_its_own_is_refused(vllm: types.ModuleType, name: str) -> None:
    with pytest.raises(ConfigError, match="vocabulary of its own"):
        make_engine(SuiteSettings(engine="vllm"), model=ModelSettings(name=name))
