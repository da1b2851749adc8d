"""Groups that scripted servers sample, in this process and for one of its own (which imports this module)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import RunError
from counterpoint.configs.reward_section import AnswerReward
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.group_player import EngineAt
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
GROUPS, GROUP, STEPS = 3, 2, 6


class DownError(Exception):
    pass


class Servers:
    """Eight servers, of which two fail in the middle of it while one is added; what fails is asked of another one. An
    answer depends on the prompt, the seed and the version."""

    each_alone = True

    def __init__(self, disturbed: bool, draw: random.Random) -> None:
        self.live = list(range(8))
        self.disturbed, self.draw, self.lock, self.asked = disturbed, draw, threading.Lock(), 0

    def at(self, version: int, name: str, step: int = 0) -> Any:
        assert name == f"v{version}"
        return Pinned(self, version)

    def ask(self, prompt: list[int], tokens: int, seed: int, version: int) -> Sampled:
        while True:
            with self.lock:
                self.asked += 1
                server, wait = self.live[self.asked % len(self.live)], self.draw.random() * 0.004
                if self.disturbed and self.asked == 20:
                    self.live += [8]
            if self.disturbed:
                time.sleep(wait)
            try:
                if self.disturbed and server in (2, 5) and self.asked > 9:
                    raise DownError
                answer = f"<|channel|>final<|message|>{(seed + version) % 3}<|return|>"
                found = ScriptedEngine(VOCABULARY, [answer]).sample([prompt], tokens)[0]
                return Sampled(found.ids, found.finish_reason, [-(seed % 7) / 8 - version] * len(found.ids))
            except DownError:
                with self.lock:
                    self.live = [each for each in self.live if each != server]


class Pinned:
    each_alone = True

    def __init__(self, servers: Servers, version: int) -> None:
        self.servers, self.version = servers, version

    def sample(
        self, prompts: Any, max_new_tokens: int, temperature: float = 0, seed: Any = 0, stop_ids: Any = ()
    ) -> list[Sampled]:
        (prompt,), (own,) = prompts, seed
        return [self.servers.ask(list(prompt), max_new_tokens, own, self.version)]


def rollouts_of(rewards: Rewards, script: Any = None) -> Rollouts:
    items = [
        Item(EvalPrompt(f"p{n}", Conversation((Message("user", f"{n}?"),)), Reference(answer="1"), "number"), "low")
        for n in range(7)
    ]
    engine = ScriptedEngine(VOCABULARY, script or ["<|channel|>final<|message|>1<|return|>"])
    return Rollouts(items, RENDERER, engine, rewards, EpisodeLimits(), 1.0, GROUP, 3)


def play_in_a_process(stack: ExitStack, given: Any) -> tuple[Rollouts, EngineAt]:
    """given: a file in which each process that starts leaves a line; groups of version 7 kill the process."""
    with Path(given).open("a") as file:
        print(os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"] == "", file=file)
    rollouts = rollouts_of(stack.enter_context(Rewards([AnswerReward(type="answer")])))
    servers = Servers(False, random.Random(0))

    def at(version: int, name: str, step: int) -> Any:
        if name == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        return servers.at(version, name)

    return rollouts, at


def fail_in_a_process(stack: ExitStack, given: Any) -> Any:
    """Before it is ready."""
    if given == "mistake":
        raise RunError("data.train: the prompts have changed")
    os._exit(3)
