"""vLLM itself reads an MXFP4 export and computes with it what this code computes, where vLLM is installed.

vLLM usually lives in an environment of its own: COUNTERPOINT_VLLM names its Python. A build for CPUs will do, on a CPU with
AMX; its attention takes heads of 32 numbers or more, so the model is the embedded one with wider heads.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.export.exporter import export
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import load_model
from counterpoint.train.model.tiny import tiny_config
from counterpoint.train.model.vocabulary_map import VocabularyMap

SHAPE = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
ASK = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(
        sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", max_model_len=128, max_num_seqs=4
    )
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in json.load(open(sys.argv[2]))], asked)
    found = [
        [place[id].logprob for id, place in zip(each.prompt_token_ids[1:], each.prompt_logprobs[1:])]
        for each in outputs
    ]
    json.dump(found, open(sys.argv[3], "w"))
"""


@pytest.mark.slow
def test_vllm_computes_with_the_files_what_we_do(tmp_path: Path) -> None:
    mapping = VocabularyMap.load(tiny_folder())
    config = tiny_config(mapping.n_rows)
    config.update(SHAPE)
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(tmp_path / "base")
    mapping.save(tmp_path / "base")
    live = load_model(ModelSettings(name=str(tmp_path / "base")))
    model = attach_lora(live.model, LoraSettings(rank=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    (tmp_path / "adapter").mkdir()
    save_weights(model, tmp_path / "adapter")
    found = Found("made", ModelSettings(name=str(tmp_path / "base")), tmp_path / "adapter", None)
    done = export(found, "mxfp4", tmp_path / "out", limit=10.0, rounding="dithered", prompts=1)

    drawn = random.Random(0)
    rows = [[drawn.randrange(mapping.n_rows) for _ in range(48)] for _ in range(4)]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    (tmp_path / "ask.py").write_text(ASK)
    command = [
        os.environ.get("COUNTERPOINT_VLLM", sys.executable),
        "ask.py",
        str(done.folder),
        "asked.json",
        "said.json",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    theirs = torch.tensor(json.loads((tmp_path / "said.json").read_text()), dtype=torch.float64)

    def scored(folder: Path, base: str) -> torch.Tensor:
        loaded = load_model(ModelSettings.model_validate({"name": str(folder), "base": base}))
        ids = torch.tensor(rows)
        with torch.no_grad():
            logits = loaded.model(ids).logits.double()
        return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)

    ours, before = scored(done.folder, "mxfp4"), scored(tmp_path / "base", "bf16")
    error, change = (ours - theirs).abs().mean().item(), (ours - before).abs().mean().item()
    print(f"mean difference to vLLM {error:.4f} nats, of the adapter {change:.4f}")
    assert error < 0.1 * change
