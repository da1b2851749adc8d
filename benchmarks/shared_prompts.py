"""The prompt of a GRPO group computed once against once for each completion: a group's loss, and whole steps.

    python benchmarks/shared_prompts.py [--group 8] [--completion 64] [--prompts 64 256 1024]

The embedded model's shape with random weights, on the lean path. The loss is forward and backward of one group; a step
samples two groups, scores them, and trains on them. Seconds of CPU, the best of `--repeat` rounds or steps, both ways.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from counterpoint.configs.load import load_run
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

GROUPS = 2


def trainer_in(folder: Path, *, prompt: int, group: int, completion: int, steps: int = 1) -> RewardTrainer:
    """A run over random prompts of about `prompt` tokens; its model never ends a completion by itself."""
    rows = GROUPS * group
    settings: Any = load_run(
        "grpo/tiny_sums",
        [f"grpo.group={group}", f"train.batch_rows={rows}", f"rollout.action_tokens={completion}"],
    )
    loaded = random_tiny()
    use_implementations(loaded.model, settings.model)
    renderer = Renderer(loaded.vocabulary)
    texts = [
        " ".join(["add", *random.Random(n).choices(["1", "2", "3"], k=max(0, prompt - 60) // 2)]) for n in range(9)
    ]
    prompts = [
        EvalPrompt(str(n), Conversation((Message("user", text),)), Reference(answer="1"), "number")
        for n, text in enumerate(texts)
    ]
    rollouts = Rollouts(
        items_of(prompts, renderer),
        renderer,
        Sampler(loaded, batch_rows=rows),
        Rewards(settings.rewards),
        EpisodeLimits(completion, completion),
        1.0,
        group,
        0,
    )
    args = grpo_arguments(settings, folder, steps)
    return RewardTrainer(loaded, args, rollouts, loop_settings(settings, folder), Identity({}, "", 1))


class Steps(TrainerCallback):
    """Seconds of CPU of each step but the first."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())

    @property
    def best(self) -> float:
        return min(after - before for before, after in pairwise(self.marks))


def step_seconds(shared: Any, prompt: int, group: int, completion: int, repeat: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_in(Path(folder), prompt=prompt, group=group, completion=completion, steps=repeat + 1)
        trainer.shared, steps = shared, Steps()
        trainer.add_callback(steps)
        trainer._save_checkpoint = lambda *_: None
        trainer.train()
    return steps.best


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
    print("| what | prompt tokens | each with its prompt, s | prompt shared, s | times |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_in(Path(folder), prompt=64, group=args.group, completion=args.completion)
        for prompt in args.prompts:
            ids = torch.randint(1, 1000, (1, prompt)).expand(args.group, prompt)
            ids = torch.cat([ids, torch.randint(1, 1000, (args.group, args.completion))], 1)
            best = {"never": float("inf"), "always": float("inf")}
            for _ in range(args.repeat + 1):
                for shared in best:
                    best[shared] = min(best[shared], seconds(trainer, shared, ids, args.completion))
            told("loss of a group", prompt, best["never"], best["always"])
    for prompt in args.prompts:
        never, always = (
            step_seconds(shared, prompt, args.group, args.completion, args.repeat) for shared in ("never", "always")
        )
        told(f"step of {GROUPS} groups", prompt, never, always)


def told(what: str, prompt: int, never: float, always: float) -> None:
    print(f"| {what} | {prompt} | {never:.3f} | {always:.3f} | {never / always:.1f} |", flush=True)


if __name__ == "__main__":
    main()
