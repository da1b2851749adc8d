"""Run a plan: draw what is missing, check and score it, keep it. Killed at any moment, it resumes where it was.

Several processes share a plan group by group (process r of n takes every n-th); the last one to finish merges.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.evals.channels import judge
from counterpoint.train.evals.journal import Journal, Row, merge, require_idle, saved_rows
from counterpoint.train.evals.rollouts import RolloutPool, played
from counterpoint.train.evals.sampling_plan import Draw, fingerprint, groups
from counterpoint.train.run.folder import write_whole
from counterpoint.train.sampling.engines import Engine, cut
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.scoring.scorers import Scorers

PLAN = "plan.json"


@dataclass(frozen=True, slots=True)
class Done:
    """The progress of a run. resumed: samples kept from an earlier one; seconds_left None before a measurement."""

    done: int
    total: int
    resumed: int
    tokens_per_second: float
    seconds_left: float | None


Progress = Callable[[Done], None]


@dataclass(frozen=True, slots=True)
class Shard:
    """This process among those that share the plan."""

    rank: int = 0
    world: int = 1


def run_plan(
    draws: Sequence[Draw],
    engine: Engine,
    folder: Path,
    vocabulary: Vocabulary,
    scorers: Scorers,
    *,
    batch: int,
    identity: Mapping[str, Any],
    shard: Shard | None = None,
    progress: Progress | None = None,
    renderer: Renderer | None = None,
) -> list[Row] | None:
    """All rows in the plan's order; None where other processes have not finished.

    renderer: for tasks that are rolled out.
    identity: what the samples depend on besides the plan (model, engine). RunError where `folder` holds samples of
    another plan, or another process writes them.
    """
    shard = shard or Shard()
    _make(folder)
    keys = [draw.key for draw in draws]
    with Journal(folder, shard.rank, shard.world) as journal, RolloutPool() as pool:
        # Only now: until its samples are locked, an evaluation of something else may take over a folder without any.
        claim(folder, draws, {**identity, "batch": batch}, journal.path)
        saved = set(saved_rows(folder))
        mine = [group for n, group in enumerate(groups(draws, batch)) if n % shard.world == shard.rank]
        pace = _Pace(mine, saved)
        if progress is not None:
            progress(pace.told())
        for group in mine:
            missing = [draw for draw in group if draw.key not in saved]
            if not missing:
                continue
            if group[0].task.rollout is None:
                rows = _drawn(group, engine, vocabulary, scorers)
            else:
                rows = _played(group, engine, renderer or Renderer(vocabulary), vocabulary, pool, scorers)
            journal.append([row for draw, row in zip(group, rows, strict=True) if draw.key not in saved])
            pace.add(missing, rows)
            if progress is not None:
                progress(pace.told())
    return merge(folder, keys)


def finished(draws: Sequence[Draw], folder: Path, batch: int, identity: Mapping[str, Any]) -> list[Row] | None:
    """All rows of a plan if none is missing, else None.

    Creates `folder` and claims it. RunError where it holds samples of another plan.
    """
    claim(folder, draws, {**identity, "batch": batch})
    saved = saved_rows(folder)
    return [saved[draw.key] for draw in draws] if all(draw.key in saved for draw in draws) else None


def claim(folder: Path, draws: Sequence[Draw], identity: Mapping[str, Any], own: Path | None = None) -> None:
    """Make the folder and record its plan, also in place of one that has no sample yet: that of an evaluation which
    failed while its model loaded, say.

    own: the samples file that this process has open. RunError where the folder holds or another process draws samples
    of another plan, or where it cannot be made.
    """
    _make(folder)
    path = folder / PLAN
    wanted = {"fingerprint": fingerprint(draws, identity), "samples": len(draws), **identity}
    held: dict[str, Any] = {}
    if path.is_file():
        with suppress(ValueError):
            held = json.loads(path.read_text(encoding="utf-8"))
        if held.get("fingerprint") == wanted["fingerprint"]:
            return
    if saved_rows(folder):
        if not path.is_file():
            raise RunError(f"{folder}: holds samples without a {PLAN}: take another folder")
        changed = next(
            (name for name in wanted if name != "fingerprint" and held.get(name) != _plain(wanted[name])), None
        )
        what = f"another `{changed}`" if changed else "other items, seeds or limits"
        raise RunError(f"{folder}: holds an evaluation with {what}: take another folder, or remove this one")
    require_idle(folder, own)
    # Several processes may get here at once; each writes the same.
    unfinished = path.with_name(f"{PLAN}.{os.getpid()}")
    write_whole(unfinished, json.dumps(wanted, indent=1, default=str) + "\n")
    os.replace(unfinished, path)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: no folder can be made there ({error.strerror}): name another place") from None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _drawn(group: Sequence[Draw], engine: Engine, vocabulary: Vocabulary, scorers: Scorers) -> list[Row]:
    started = time.perf_counter()
    task = group[0].task
    found = cut(engine, task.truncation).sample(
        [draw.prompt_ids for draw in group], task.max_new_tokens, task.temperature, [draw.seed for draw in group]
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(sampled.ids) for sampled in found) or 1
    return [
        row_of(draw, sampled, vocabulary, scorers, seconds * len(sampled.ids) / tokens)
        for draw, sampled in zip(group, found, strict=True)
    ]


def _played(
    group: Sequence[Draw],
    engine: Engine,
    renderer: Renderer,
    vocabulary: Vocabulary,
    pool: RolloutPool,
    scorers: Scorers,
) -> list[Row]:
    started = time.perf_counter()
    samples = played(group, engine, renderer, pool, scorers)
    seconds = (time.perf_counter() - started) / len(group)
    rows = []
    for draw, sample in zip(group, samples, strict=True):
        plain = {**sample.as_row(vocabulary), "finish_reason": sample.more["ended"], "seed": draw.seed}
        rows.append({**plain, "prompt_hash": draw.prompt_hash, "seconds": round(seconds, 4)})
    return rows


def row_of(draw: Draw, sampled: Sampled, vocabulary: Vocabulary, scorers: Scorers, seconds: float) -> Row:
    """A sample checked and scored, as a line of samples.jsonl. seconds: its share of the group's, by tokens."""
    judged = judge(draw.prompt, draw.effort, draw.sample, sampled.ids, sampled.finish_reason, vocabulary, scorers)
    return {
        **judged.as_row(vocabulary),
        "finish_reason": sampled.finish_reason,
        "seed": draw.seed,
        "prompt_hash": draw.prompt_hash,
        "seconds": round(seconds, 4),
    }


class _Pace:
    """Time left, from the seconds that samples of the same task and effort have taken."""

    def __init__(self, mine: Sequence[Sequence[Draw]], saved: set[Any]) -> None:
        self.left: dict[tuple[str, str], int] = {}
        self.total = self.done = 0
        for group in mine:
            for draw in group:
                self.total += 1
                if draw.key in saved:
                    self.done += 1
                else:
                    self.left[_kind(draw)] = self.left.get(_kind(draw), 0) + 1
        self.resumed = self.done
        self.spent: dict[tuple[str, str], list[float]] = {}
        self.tokens = 0
        self.seconds = 0.0

    def add(self, missing: Sequence[Draw], rows: Sequence[Row]) -> None:
        for draw in missing:
            self.left[_kind(draw)] -= 1
            self.done += 1
        for row in rows:
            self.spent.setdefault((row["task"], row["effort"]), []).append(row["seconds"])
            self.tokens += len(row["ids"])
            self.seconds += row["seconds"]

    def told(self) -> Done:
        measured = [second for seconds in self.spent.values() for second in seconds]
        left = None
        if measured:
            overall = sum(measured) / len(measured)
            mean = {kind: sum(seconds) / len(seconds) for kind, seconds in self.spent.items()}
            left = sum(count * mean.get(kind, overall) for kind, count in self.left.items())
        speed = self.tokens / self.seconds if self.seconds else 0.0
        return Done(self.done, self.total, self.resumed, speed, left)


def _kind(draw: Draw) -> tuple[str, str]:
    return draw.task.name, draw.effort
