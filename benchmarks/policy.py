"""A step of learning from rewards: our packed tree rows against TRL's GRPOTrainer on padded ones.

    python benchmarks/policy.py [--repeat 2] [--group 8] [--prompt 256] [--median 64] [--longest 400]

Forward and backward pass of the loss of one group, with LoRA on attention and experts, by turns, least of all repeats;
the peak is what torch allocates above model and gradients. `trl`: transformers' model as TRL trains it; `trl, lean`:
the same trainer on our attention and experts. Losses are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.data.layout.collate import Collator
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.loop.advantages import advantages_of
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.log_probs import target_log_probs
from counterpoint.train.loop.policy_loss import PolicyLoss, policy_loss
from counterpoint.train.loop.policy_rows import PolicyRow, micro_batches, targets_of
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.model.vocabulary_map import VocabularyMap
from counterpoint.train.plan.trial_steps import allocated_peak
from counterpoint.train.sampling.rollout import SampledRow

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from trl_grpo import Oracle  # pyright: ignore[reportMissingImports]

SHAPE = {
    "num_hidden_layers": 4, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 256,
    "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 201088,
    "router_aux_loss_coef": 0.0,
}  # fmt: skip


def model_of(paths: str) -> LoadedModel:
    torch.manual_seed(0)
    config = GptOssConfig(**SHAPE)
    config._attn_implementation = "eager"
    adapted: Any = attach_lora(GptOssForCausalLM(config), LoraSettings(rank=8))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    use_implementations(adapted, ModelSettings(attention=paths, experts=paths, norms=paths))  # pyright: ignore
    everything = VocabularyMap.from_ids(list(range(SHAPE["vocab_size"])))
    return LoadedModel(adapted, random_tiny().vocabulary, everything, "benchmark")


def rollouts_of(group: int, prompt: int, median: int, longest: int) -> list[SampledRow]:
    draw = random.Random(0)
    asked = [draw.randrange(1, 190_000) for _ in range(prompt)]
    lengths = [min(longest, max(8, round(draw.lognormvariate(0, 0.8) * median))) for _ in range(group)]
    said = [[draw.randrange(1, 190_000) for _ in range(n)] for n in lengths]
    return [SampledRow(asked, ids, [1] * len(ids)) for ids in said]


def ours(loaded: LoadedModel, rows: list[SampledRow], scores: list[list[float]]) -> Callable[[], float]:
    worth = advantages_of(scores, [1.0], len(rows), "group").advantage_N.tolist()
    n = [float(sum(row.env_mask)) for row in rows]
    weights = PolicyLoss().weights(torch.tensor(n), len(rows), int(sum(n))).tolist()
    given = [PolicyRow(k, row) for k, row in enumerate(rows)]
    (batch,) = micro_batches(given, worth, weights, len(rows), 10**6, Collator(loaded.vocabulary_map.rows))

    def step() -> float:
        model: Any = loaded.model
        hidden, weight = target_hidden(model.train(), model.get_base_model(), dict(batch))
        log_prob, entropy = target_log_probs(hidden, weight, batch["target_ids"])
        loss, _ = policy_loss(PolicyLoss(), log_prob, entropy, targets_of(batch, log_prob.detach()))
        loss.backward()
        return float(loss.detach())

    return step


def theirs(loaded: LoadedModel, rows: list[SampledRow], scores: list[list[float]], folder: Path) -> Callable[[], float]:
    trainer = Oracle(loaded, folder, rows, scores, [1.0], len(rows), loss_type="dapo")
    batch = trainer.batch()

    def step() -> float:
        loss = trainer.loss(batch)
        loss.backward()
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("repeat", 2), ("group", 8), ("prompt", 256), ("median", 64), ("longest", 400)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = rollouts_of(args.group, args.prompt, args.median, args.longest)
    scores = [[float(k % 3)] for k in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "ours": ours(model_of("lean"), rows, scores),
            "trl": theirs(model_of("reference"), rows, scores, Path(folder)),
            "trl, lean": theirs(model_of("lean"), rows, scores, Path(folder)),
        }
        losses = {name: step() for name, step in sides.items()}
        assert max(losses.values()) - min(losses.values()) < 1e-5, losses
        seconds = dict.fromkeys(sides, float("inf"))
        for _ in range(args.repeat):
            for name, step in sides.items():
                began = time.perf_counter()
                step()
                seconds[name] = min(seconds[name], time.perf_counter() - began)
        peaks = {name: allocated_peak(step, torch.device("cpu")) for name, step in sides.items()}
    total = sum(len(row.completion_ids) for row in rows)
    print(f"group of {args.group}, prompt of {args.prompt}, completions of {total:,} tokens in all")
    for name in sides:
        ratio = seconds[name] / seconds["ours"]
        print(f"| {name} | {seconds[name]:.2f} s | {ratio:.2f} | {peaks[name] / 2**20:,.0f} MiB |")


if __name__ == "__main__":
    main()
