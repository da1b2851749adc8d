"""What a trainer's step takes alone and beside the rollout process, and the memory of that process.

    python benchmarks/beside_rollouts.py [--rounds 8] [--groups 8] [--group 8] [--tokens 512] [--latency 1.0]

The step is the forward and backward pass of benchmarks/policy.py. Beside it, the rollout process plays the groups of a
step: prompts are rendered, answers of `--tokens` are parsed and checked, two rewards are computed, and the journal is
written. The servers are elsewhere: a sample is there after `--latency` seconds, without any work of this machine. A
step alone and one beside take turns; the ratio is that of the medians. What of the groups is not done by the end of the
step is waited for outside of what is timed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.reward_section import AnswerReward, ChannelReward
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import Share
from counterpoint.train.loop.group_player import EngineAt
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.rollout_process import RolloutProcess
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference


@dataclass(frozen=True)
class Elsewhere:
    """Answers after a while, without work."""

    sampled: Sampled
    latency: float
    each_alone: bool = True

    def sample(self, prompts: Any, *args: Any, **more: Any) -> list[Sampled]:
        time.sleep(self.latency)
        return [self.sampled] * len(prompts)


def played(stack: ExitStack, given: tuple[int, int, float]) -> tuple[Rollouts, EngineAt]:
    """given: rollouts of a group, tokens of a completion, seconds of a sample."""
    group, tokens, latency = given
    vocabulary = load_vocabulary()
    thought = f"<|channel|>analysis<|message|>{' and' * tokens}<|end|>"
    text = f"{thought}<|start|>assistant<|channel|>final<|message|>7<|return|>"
    found = ScriptedEngine(vocabulary, [text]).sample([[1]], 2 * tokens)[0]
    engine = Elsewhere(Sampled(found.ids, found.finish_reason, [-0.5 for _ in found.ids]), latency)
    rewards = stack.enter_context(Rewards([AnswerReward(type="answer"), ChannelReward(type="channel")]))
    prompts = [
        Conversation((Message("user", f"How much is {n} and {n + 1}? Say the number alone."),)) for n in range(64)
    ]
    items = [Item(EvalPrompt(f"p{n}", each, Reference(answer="7"), "number"), "low") for n, each in enumerate(prompts)]
    limits = EpisodeLimits(2 * tokens, 2 * tokens)
    rollouts = Rollouts(items, Renderer(vocabulary, RenderSettings()), engine, rewards, limits, 1.0, group, 0)
    return rollouts, lambda *_: engine


def memory_of(pid: int) -> dict[str, int]:
    """MiB: resident, and of that what no other process has."""
    found = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) // 1024
    return found


def cpu_of(pid: int) -> float:
    """Seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 8), ("groups", 8), ("group", 8), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--latency", type=float, default=1.0)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from policy import model_of, ours, rollouts_of

    torch.set_num_threads(1)
    rows = rollouts_of(8, 256, 64, 400)
    step = ours(model_of("lean"), rows, [[float(k % 3)] for k in range(len(rows))])
    given = args.group, args.tokens, args.latency
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        share, journal = Share(StepOrder(64, args.groups, 0), args.group), Journal(Path(folder) / "journal")
        process = RolloutProcess(played, given, played(stack, given)[0], share, journal)
        stack.callback(process.close)

        def round_of(number: int, beside: bool) -> float:
            numbers = range(number * args.groups, (number + 1) * args.groups) if beside else ()
            for each in numbers:
                process.play(each, 0, "v0")
            began = time.perf_counter()
            step()
            seconds = time.perf_counter() - began
            for _ in numbers:
                process.wait()
            journal.remove(numbers)
            return seconds

        round_of(0, False)
        round_of(0, True)
        assert process.pid is not None
        begun = cpu_of(process.pid)
        times = [(round_of(n, False), round_of(n, True)) for n in range(1, args.rounds + 1)]
        memory, spent = memory_of(process.pid), cpu_of(process.pid)
    alone, beside = (statistics.median(each) for each in zip(*times, strict=True))
    n = args.groups * args.group
    print(f"a step: alone {alone:.2f} s, beside {n} rollouts of {args.tokens} tokens {beside:.2f} s")
    print(f"ratio of the medians of {args.rounds} turns: {beside / alone:.3f}")
    print("each turn:", " ".join(f"{b / a:.3f}" for a, b in times))
    each = (spent - begun) / args.rounds
    print(f"CPU of the process: {begun:.2f} s until its first groups were done, {each:.3f} s a step")
    own = memory["Private_Clean"] + memory["Private_Dirty"]
    print(f"its memory, MiB: {memory['Rss']} resident, {own} of them its own")


if __name__ == "__main__":
    main()
