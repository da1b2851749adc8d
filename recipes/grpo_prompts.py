"""What `recipe: grpo` reads: the prompts of its tasks with their truth, checked against the rewards and the step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from counterpoint.configs.errors import ConfigError, DataError, RowError
from counterpoint.configs.eval_section import SuiteSettings, TaskSettings
from counterpoint.configs.reward_section import LengthReward
from counterpoint.configs.schema import GrpoRun, PromptSettings
from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.dataset.split import PROMPT, Mask, Side, by_share, share_line, without_overlap
from counterpoint.data.dataset.training_rows import Quarantine
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.rows.row import BadRow
from counterpoint.recipes.steps import BAD_HELD_OUT, BAD_ROWS, bad_rows_file
from counterpoint.train.episodes.routes import name_of
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.loop.grpo_items import Item, items_of
from counterpoint.train.run.session import Session
from counterpoint.train.sampling.adapter_proof import PROBE_TOKENS, PROBES
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards


@dataclass(frozen=True, slots=True)
class PromptSets:
    """What is learned from and what is held out, kept apart as rows are (`data.split`). lines: how. bad: rows that are
    left out, of training and held out."""

    train: list[EvalPrompt]
    held_out: list[EvalPrompt]
    lines: Sequence[str]
    bad: tuple[list[BadRow], list[BadRow]] = ([], [])


def read_sets(
    settings: GrpoRun, renderer: Renderer, toolkit: Toolkit | None = None, evaluation: Sequence[EvalPrompt] = ()
) -> PromptSets:
    """`data.train` and `data.valid`; evaluation: the prompts that the hook samples. DataError for a prompt that is too
    long, or where a share leaves nothing."""
    data, environment = settings.data, settings.rollout.in_environments
    train, bad = _routed(settings, read_prompts(data.train, data, renderer, toolkit, environment), "data.train")
    bad_held_out: list[BadRow] = []
    lines: list[str] = []
    if data.valid_share is not None:
        held = by_share(_side(train).keys[:, PROMPT], data.valid_share, settings.seed)
        lines.append(share_line(int(held.sum()), len(held), str(data.valid), settings.seed, "prompts"))
        train, held_out = _only(train, ~held), _only(train, held)
    else:
        held_out = read_prompts(data.valid_tasks, data, renderer, toolkit, environment)
        held_out, bad_held_out = _routed(settings, held_out, "data.valid")
    asked = {_key(prompt): prompt.id for prompt in reversed(evaluation)}
    if held_out or asked:
        sides = {"": _side(held_out)} if held_out else {}
        kept = without_overlap(_side(train), sides, asked, data.overlap)
        train, held_out = _only(train, kept.train), _only(held_out, kept.held_out[""]) if held_out else []
        lines += kept.lines
    for where, found, left in (("data.train", bad, train), ("data.valid", bad_held_out, held_out)):
        if found:
            lines.append(
                f"{where}: {len(found)} of {len(found) + len(left)} rows name no environment of rollout.environments: "
                f"left out, the first: {found[0].message}"
            )
    return PromptSets(train, held_out, lines, (bad, bad_held_out))


def _routed(settings: GrpoRun, prompts: list[EvalPrompt], where: str) -> tuple[list[EvalPrompt], list[BadRow]]:
    """The prompts whose row names an environment of `rollout.environments`, and the other rows. DataError where none
    does."""
    names, kept, bad = settings.rollout.environments, [], []
    for prompt in prompts:
        row = prompt.conversation.metadata
        try:
            if names:
                name_of(row, names)
            kept.append(prompt)
        except RowError as error:
            raw = json.dumps(dict(row), ensure_ascii=False, default=str).encode()
            bad.append(BadRow(prompt.conversation.source, error.kind, error.field, error.what, error.fix, raw))
    if bad and not kept:
        raise DataError(f"{where}: no row names an environment of rollout.environments; the first: {bad[0].message}")
    return kept, bad


def _side(prompts: Sequence[EvalPrompt]) -> Side:
    keys = np.array([[_key(prompt)] * 3 for prompt in prompts], dtype=np.uint64).reshape(-1, 3)
    return Side(keys, lambda n: prompts[n].id)


def _key(prompt: EvalPrompt) -> int:
    """Of what is asked first; of the row, where an environment writes the prompt."""
    asked = prompt.conversation
    if asked.messages or asked.opening_ids is not None:
        return keys_of(asked).asked
    row = json.dumps(dict(asked.metadata), sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(row.encode(), digest_size=8).digest(), "little")


def _only(prompts: Sequence[EvalPrompt], kept: Mask) -> list[EvalPrompt]:
    return [prompt for prompt, keep in zip(prompts, kept.tolist(), strict=True) if keep]


def training_items(
    settings: GrpoRun, sets: PromptSets, session: Session, renderer: Renderer, rewards: Rewards, groups: int
) -> list[Item]:
    """Each turn of each prompt at its efforts. groups: sampled in one step; ConfigError for fewer items than that."""
    items = items_of(sets.train, renderer, settings.grpo.efforts)
    check_rewards(rewards, items, session)
    for line in sets.lines:
        session.say(line)
    for rows, name in zip(sets.bad, (BAD_ROWS, BAD_HELD_OUT), strict=True):
        with Quarantine(bad_rows_file(session, name)) as quarantine:
            for row in rows:
                quarantine.add(row)
    session.say(f"{len(sets.train)} prompts, {groups} groups of {settings.grpo.group} a step")
    if len(items) < groups:
        raise ConfigError(
            f"data.train: {len(items)} turns at their efforts are fewer than the {groups} groups of a step: lower "
            "train.batch_rows or train.accumulation, or give more prompts"
        )
    return items


def held_out_items(
    settings: GrpoRun, sets: PromptSets, session: Session, renderer: Renderer, rewards: Rewards
) -> dict[str, list[Item]]:
    """The items that are held out, by task."""
    prompts = sets.held_out
    if not prompts:
        return {}
    check_rewards(rewards, items_of(prompts, renderer), session)
    session.say(f"held-out: {len(prompts)} prompts")
    by_task = {prompt.task: [other for other in prompts if other.task == prompt.task] for prompt in prompts}
    return {task: items_of(found, renderer, settings.grpo.efforts) for task, found in by_task.items()}


def read_prompts(
    tasks: Sequence[TaskSettings],
    data: PromptSettings,
    renderer: Renderer,
    toolkit: Toolkit | None = None,
    environment: bool = False,
) -> list[EvalPrompt]:
    """The prompts of all tasks with their truth, the tools declared. environment: one is given the rows, and may write
    the prompts. DataError for one that is too long."""
    prompts: list[EvalPrompt] = []
    if not tasks:  # a suite without tasks would be the built-in probes
        return prompts
    for task in build_tasks(SuiteSettings(tasks=tuple(tasks)), rows=environment):
        for prompt in task.prompts:
            if toolkit is not None and not toolkit.empty and prompt.conversation.opening_ids is None:
                prompt = replace(prompt, conversation=toolkit.declared(prompt.conversation))
            if environment and not prompt.conversation.messages:
                prompts.append(prompt)
                continue
            said_later = sum(len(renderer.vocabulary.encode(later.text)) for later in prompt.follow_ups)
            length = len(renderer.prompt(prompt.conversation)) + said_later
            if length > data.max_tokens:
                raise DataError(
                    f"{prompt.id}: {length} tokens, more than data.max_tokens ({data.max_tokens}): raise it"
                )
            prompts.append(prompt)
    return prompts


def check_rewards(rewards: Rewards, items: list[Item], session: Session) -> None:
    """ConfigError for a reward that can judge nothing; a line for one that some turns have no truth for."""
    turns = {(item.prompt.id, item.turn): item.unanswered() for item in items}
    for name, missing in rewards.unjudged(list(turns.values())).items():
        if missing == len(turns):
            raise ConfigError(f"reward {name}: no row has a truth for it: give the rows one, or take another `scorer`")
        if missing:
            first = next(key for key, outcome in turns.items() if rewards.unjudged([outcome])[name])
            session.warn(
                f"reward {name}: {missing} of {len(turns)} turns have no truth for it and earn nothing there, the "
                f"first: {first[0]}"
            )
    for note in rewards.notes:
        session.warn(note)
    for name, setting in zip(rewards.names, rewards.settings, strict=True):
        if isinstance(setting, LengthReward):
            without = [item for item in items if item.effort not in setting.budgets]
            if without:
                session.warn(
                    f"reward {name}: {len(without)} of {len(items)} turns at their effort earn nothing, since "
                    f"`budgets` has none for it, the first: {without[0].prompt.id} at {without[0].effort}"
                )


def fingerprint(items: list[Item], renderer: Renderer) -> str:
    """Hash of every prompt's ids and truth in order, to find changed data."""
    digest = hashlib.sha256()
    for item in items:
        truth = json.dumps(asdict(item.prompt.reference), sort_keys=True, default=str)
        asked = item.prompt.conversation
        ids = renderer.prompt(asked, item.effort) if asked.messages else dict(asked.metadata)
        digest.update(repr((ids, truth)).encode())
        if item.turn:
            digest.update(repr(item.prompt.follow_ups[item.turn - 1]).encode())
    return digest.hexdigest()


def probes_of(items: Sequence[Item], renderer: Renderer) -> list[list[int]]:
    """Token ids by which a server's adapter is recognised: the ends of a few prompts, evenly spread. Where environments
    write the prompts, that of an empty message."""
    asked: list[tuple[Conversation, Effort]]
    asked = [(item.prompt.conversation, item.effort) for item in items if item.prompt.conversation.messages]
    chosen = asked[:: max(1, len(asked) // PROBES)][:PROBES] or [(Conversation((Message("user", ""),)), "medium")]
    return [renderer.prompt(conversation, effort)[-PROBE_TOKENS:] for conversation, effort in chosen]
