"""What vLLM is asked and how its answers are read, on a stand-in module; it is never started here."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import SuiteSettings, VllmSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.rollout.engines import make_engine
from counterpoint.train.rollout.vllm_engine import VllmEngine


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
    engine = VllmEngine.started("folder", VllmSettings(tensor_parallel=2))
    found = engine.sample([[1, 2], [0, 5], [1, 2, 3, 4]], 4, 0.5, seed=[7, 8, 9])
    assert [(s.ids, s.finish_reason) for s in found] == [
        ([1, 2, RETURN], "stop"),
        ([0, 5, CALL], "stop"),
        ([1, 2, 3, 4], "length"),
    ]
    assert [params.seed for params in engine.llm.asked] == [7, 8, 9]
    assert (engine.llm.asked[0].stop_token_ids, engine.llm.asked[0].ignore_eos) == ([RETURN, CALL], True)
    assert (engine.llm.options["tensor_parallel_size"], engine.llm.options["skip_tokenizer_init"]) == (2, True)
    assert engine.llm.lora is None


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
        make_engine(SuiteSettings(engine="vllm"), model="folder")


def test_a_vllm_that_does_not_start_is_told(vllm: types.ModuleType) -> None:
    def broken(**options: Any) -> None:
        raise RuntimeError("no\nCUDA")

    vllm.LLM = broken  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="RuntimeError: no CUDA"):
        VllmEngine.started("folder", VllmSettings())
