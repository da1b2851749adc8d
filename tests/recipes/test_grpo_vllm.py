"""`rollout.engine: vllm` through the real command line, with a stand-in of vLLM that loads what it is given and samples
from it: where the two engines agree at every step, the weights that are trained have arrived."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GptOssForCausalLM

from counterpoint.configs.schema import ModelSettings
from counterpoint.recipes import grpo
from counterpoint.recipes.cli import main
from counterpoint.train.adapters.attach import load_lora
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, finish_model, load_model
from counterpoint.train.model.vocabulary_map import VocabularyMap
from counterpoint.train.sampling import vllm_engine
from counterpoint.train.sampling import weight_sync as following
from counterpoint.train.sampling.sample import Sampler

assert grpo.run, "TRL looks for vLLM when it is imported: before there is a stand-in of it"
RUN = """
recipe: grpo
extends: grpo/tiny_sums
output: .
rollout: {engine: vllm, temperature: 1.5, action_tokens: 24, completion_tokens: 24}
rewards:
  - {type: function, function: "reward.py:odd", name: odd}
grpo: {group: 4}
train: {steps: 3, batch_rows: 4, accumulation: 2, learning_rate: 0.004}
eval: {at_start: false, at_end: false}
"""


class StandIn:
    """`vllm.LLM` by means of transformers: real ids in and out, adapters from their folders."""

    def __init__(self, **options: Any) -> None:
        self.folder = options["model"]
        self.asks_for_adapters = options.get("enable_lora", False)
        self.read()

    def read(self) -> None:
        model = GptOssForCausalLM.from_pretrained(self.folder)
        self.base = finish_model(model, VocabularyMap.load(tiny_folder()), "stand-in")

    def collective_rpc(self, name: str) -> None:
        assert name == "reload_weights"
        self.read()

    def reset_prefix_cache(self) -> None:
        pass

    def loaded(self, request: Any) -> LoadedModel:
        assert (request is not None) == self.asks_for_adapters
        if request is None:
            return self.base
        return self.base.with_model(load_lora(load_model(ModelSettings(name=self.folder)).model, request.path))

    def generate(self, prompts: Any, settings: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        loaded, ids = self.loaded(lora_request), [prompt["prompt_token_ids"] for prompt in prompts]
        temperature = settings[0].temperature
        seeds = [params.seed for params in settings]
        found = Sampler(loaded).sample(ids, settings[0].max_tokens, temperature, seeds)
        outputs = []
        for prompt, sampled in zip(ids, found, strict=True):
            rows = torch.from_numpy(loaded.vocabulary_map.rows([*prompt, *sampled.ids]))[None]
            with torch.no_grad():
                logps = (loaded.model(input_ids=rows).logits[0] / temperature).log_softmax(-1)
            each = logps[len(prompt) - 1 : -1].gather(1, rows[0, len(prompt) :, None])[:, 0].tolist()
            told = [{id_: types.SimpleNamespace(logprob=logp)} for id_, logp in zip(sampled.ids, each, strict=True)]
            output = types.SimpleNamespace(
                token_ids=sampled.ids, finish_reason=sampled.finish_reason, stop_reason=None, logprobs=told
            )
            outputs.append(types.SimpleNamespace(outputs=[output]))
        return outputs


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module: Any = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = StandIn, types.SimpleNamespace, "0.32.0"
    lora: Any = types.ModuleType("vllm.lora.request")
    lora.LoRARequest = lambda name, number, path: types.SimpleNamespace(name=name, number=number, path=path)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", types.ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    # The stand-in reads the map of the embedded model, which vLLM does not.
    monkeypatch.setattr(following, "check_vocabulary", lambda model: None)
    monkeypatch.setattr(vllm_engine, "check_vocabulary", lambda model: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "reward.py").write_text("def odd(completion, reference):\n    return sum(completion.ids) % 97 / 97\n")


@pytest.mark.parametrize(
    "settings",
    [
        ("lora.enabled=true", "lora.rank=4", "lora.expert_rank=2", "lora.expert_alpha=3", "lora.router=true"),
        ("lora.enabled=true", "lora.rank=4", "lora.router=true", "rollout.weights=merged"),
        ("lora.enabled=false", "rollout.weights=merged"),
    ],
    ids=["adapter", "merged adapter", "whole model"],
)
def test_the_engine_samples_from_the_weights_of_every_step(settings: tuple[str, ...]) -> None:
    assert main(["train", "run.yaml", f"model={{name: '{tiny_folder()}'}}", *settings]) == 0
    (run,) = (path for path in Path().iterdir() if (path / "metrics.jsonl").is_file())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[0]["grad_norm"] > 0  # the weights of the second step are others than those of the first
    for line in steps:
        assert line["sampling/sampling_logp_difference/max"] < 1e-3
        assert line["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-2)
        assert line["sampling/capped"] == 0


def test_an_engine_that_keeps_old_weights_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "collective_rpc", lambda self, name: None)
    settings = ("lora.enabled=false", "rollout.weights=merged")
    assert main(["train", "run.yaml", f"model={{name: '{tiny_folder()}'}}", *settings]) == 0
    (run,) = (path for path in Path().iterdir() if (path / "metrics.jsonl").is_file())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, *later = [line["sampling/sampling_logp_difference/max"] for line in lines if "loss" in line]
    assert first < 1e-3
    assert all(difference > 0.05 for difference in later)
