"""What an evaluation will sample: every item at each effort k times, in a fixed order, each with a seed of its own.

Samples are drawn in groups that the plan fixes, so that an evaluation that was killed draws the same ones, bit for bit,
when it resumes: a group that was cut short is drawn again completely, and only what is missing is kept.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import ConfigError, RowError
from counterpoint.configs.eval_section import EnvironmentTask
from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.user_code.loader import file_of
from counterpoint.train.evals.journal import Key
from counterpoint.train.evals.tasks import Task
from counterpoint.train.foreign.bridge import code_of, installed
from counterpoint.train.sampling.sample import sample_seed
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.scoring.prompts import EvalPrompt


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample to draw. world: seed of what an environment makes up, the same for all samples of an item."""

    task: Task
    prompt: EvalPrompt
    effort: Effort
    sample: int
    seed: int
    prompt_ids: array[int]
    world: int = 0

    @property
    def key(self) -> Key:
        return self.task.name, self.prompt.id, self.effort, self.sample

    @property
    def prompt_hash(self) -> str:
        return hashlib.sha256(self.prompt_ids.tobytes()).hexdigest()[:16]


def plan(tasks: Sequence[Task], renderer: Renderer, seed: int) -> list[Draw]:
    """All draws. A draw's seed depends on `seed`, item, effort and number alone. ConfigError for an unwritable item."""
    draws: list[Draw] = []
    for task in tasks:
        for prompt in task.prompts:
            world = sample_seed(seed, "world", prompt.id, 0)
            for effort in task.efforts:
                written = prompt.conversation.messages or task.environment is None
                try:
                    ids = array("i", renderer.prompt(prompt.conversation, effort) if written else [])
                except RowError as error:
                    raise ConfigError(f"task {task.name}: {prompt.id}: {error}") from None
                draws += [
                    Draw(task, prompt, effort, k, sample_seed(seed, prompt.id, effort, k), ids, world)
                    for k in range(task.samples)
                ]
    return draws


def groups(draws: Sequence[Draw], size: int) -> Iterator[list[Draw]]:
    """Draws that are sampled together: neighbours with the same limits, at most `size`. The samples of an item that is
    rolled out stay together, however many they are."""
    group: list[Draw] = []
    for block in blocks(draws):
        if group and (len(group) + len(block) > size or _limits(block[0]) != _limits(group[0])):
            yield group
            group = []
        group += block
    if group:
        yield group


def blocks(draws: Sequence[Draw]) -> Iterator[list[Draw]]:
    """Draws that are never parted: the samples of an item at an effort where it is rolled out, else each by itself."""

    def key(place: int) -> Any:
        draw = draws[place]
        return draw.key[:3] if draw.task.rollout is not None else place

    for _, places in itertools.groupby(range(len(draws)), key):
        yield [draws[place] for place in places]


def fingerprint(draws: Sequence[Draw], identity: Mapping[str, Any]) -> str:
    """Equal for equal plans: every key, seed, prompt, truth and limit, and the model and engine in `identity`."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for draw in draws:
        prompt, truth = draw.prompt, draw.prompt.reference
        digest.update(repr((draw.key, draw.seed, draw.prompt_hash, *_limits(draw)[:2])).encode())
        if draw.task.truncation is not None:
            digest.update(repr(draw.task.truncation).encode())
        digest.update(repr((prompt.scorer, prompt.cluster, truth.answer, truth.calls, truth.schema)).encode())
        if draw.task.environment is not None:
            digest.update(repr((draw.world, dict(prompt.conversation.metadata))).encode())
        for later in prompt.follow_ups:
            digest.update(repr((later.text, later.scorer, later.reference.answer, later.reference.calls)).encode())
    for rollout in {draw.task.name: each for draw in draws if (each := draw.task.rollout) is not None}.values():
        digest.update(repr((rollout.calls, rollout.completion_tokens, rollout.identity)).encode())
    for environment in {id(each): each for draw in draws if (each := draw.task.environment) is not None}.values():
        if isinstance(environment, EnvironmentTask):
            code = file_of(environment.class_name).read_bytes()
        else:
            code = (code_of(environment.type, environment) + installed(environment.python)).encode()
        digest.update(repr((environment.model_dump(mode="json"), hashlib.sha256(code).hexdigest())).encode())
    return digest.hexdigest()


def _limits(draw: Draw) -> tuple[int, float, str, Truncation | None]:
    own = "" if draw.task.rollout is None else draw.task.name
    return draw.task.max_new_tokens, draw.task.temperature, own, draw.task.truncation
