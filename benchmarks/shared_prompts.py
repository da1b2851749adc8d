"""The prompt of a GRPO group computed once against once for each completion: forward and backward of a group's loss.

    python benchmarks/shared_prompts.py [--group 8] [--completion 64] [--prompts 64 256 1024]

The embedded model's shape with random weights, on the lean path. Seconds of CPU, the best of `--repeat` rounds, both
ways in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from counterpoint.configs.load import load_run
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.evals.prompts import EvalPrompt
from counterpoint.train.evals.scorers import Reference
from counterpoint.train.loop.arguments import loop_settings
from counterpoint.train.loop.rewarded import RewardTrainer, Rollouts, items_of
from counterpoint.train.loop.rl_arguments import grpo_arguments
from counterpoint.train.model.paths import use_paths
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.rollout.episodes import EpisodeLimits
from counterpoint.train.rollout.rewards import Rewards
from counterpoint.train.rollout.scripted import ScriptedEngine


def trainer_in(folder: Path) -> RewardTrainer:
    settings: Any = load_run("grpo/tiny_sums")
    loaded = random_tiny()
    use_paths(loaded.model, settings.model)
    renderer = Renderer(loaded.vocabulary)
    prompt = EvalPrompt("one", Conversation((Message("user", "?"),)), Reference(answer="1"), "number")
    rollouts = Rollouts(
        items_of([prompt], renderer),
        renderer,
        ScriptedEngine(loaded.vocabulary, []),
        Rewards(settings.rewards),
        EpisodeLimits(),
        1.0,
        8,
        0,
    )
    args = grpo_arguments(settings, folder, 1)
    return RewardTrainer(loaded, args, rollouts, loop_settings(settings, folder), Identity({}, "", 1))


def seconds(trainer: RewardTrainer, shared: Any, ids: torch.Tensor, completion: int) -> float:
    trainer.shared = shared
    begin = time.process_time()
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), completion, compute_entropy=True
    )
    logps.sum().backward()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    print(f"group of {args.group}, completions of {args.completion} tokens, {torch.get_num_threads()} threads")
    print("| prompt tokens | each with its prompt, s | prompt shared, s | times |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_in(Path(folder))
        for prompt in args.prompts:
            ids = torch.randint(1, 1000, (1, prompt)).expand(args.group, prompt)
            ids = torch.cat([ids, torch.randint(1, 1000, (args.group, args.completion))], 1)
            best = {"never": float("inf"), "always": float("inf")}
            for _ in range(args.repeat + 1):
                for shared in best:
                    best[shared] = min(best[shared], seconds(trainer, shared, ids, args.completion))
            never, always = best["never"], best["always"]
            print(f"| {prompt} | {never:.3f} | {always:.3f} | {never / always:.1f} |", flush=True)


if __name__ == "__main__":
    main()
