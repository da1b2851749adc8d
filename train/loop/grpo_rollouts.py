"""One step's rollouts: sampled with their tools, scored, kept as JSON lines, and counted for the curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.episodes import EpisodeLimits, run_episodes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.run.first_sight import FirstSight
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.sample import SamplingStoppedError, sample_seed
from counterpoint.train.scoring.rewards import Outcome, Rewards, zero_variance_share

SCORES = "scores"
"""Column of TRL's batch in which the numbers of all rewards travel from the rollout to the reward functions."""


@dataclass
class Rollouts:
    """Samples episodes of items and scores them; what `rollout_func` calls.

    keep: where every rollout is written as a JSON line, with its Harmony text and its rewards; None writes none.
    process: the number of this one, of those that train together; gather: collects what each of them has measured.
    measured: what is logged of the last step in addition to TRL's own means. seen: tells each kind of failure once.
    """

    items: Sequence[Item]
    renderer: Renderer
    engine: Engine
    rewards: Rewards
    limits: EpisodeLimits
    temperature: float
    group: int
    seed: int
    toolkit: Toolkit | None = None
    keep: Path | None = None
    process: int = 0
    gather: Callable[[list[Any]], list[Any]] = list
    measured: dict[str, float] = field(default_factory=dict)
    seen: FirstSight = field(default_factory=lambda: FirstSight(lambda _: None))
    failed_before: Counter[str] = field(default_factory=Counter)

    def __call__(self, numbers: Sequence[str], step: int, model_rows: Callable[[list[int]], Any]) -> dict[str, list]:
        """TRL's dictionary for the items with these numbers, each sampled once for every time it is listed.

        The seed of a rollout depends on the run's seed, the step, and its index over all processes.
        """
        items = [self.items[int(number)] for number in numbers]
        first = self.process * len(items)
        seeds = [sample_seed(self.seed, step, first + place) for place in range(len(items))]
        episodes, outcomes, scores = self._sampled(items, seeds)
        found = zip(items, episodes, outcomes, scores, strict=True)
        # Collective: TRL asks every process for as many rollouts of a step.
        rows = self.gather([{"step": step, **self._row(*each)} for each in found])
        failures = self.gather([{**self.rewards.failures}])
        self.measured = self._measures(rows, failures)
        self._tell(rows, step, self.gather([{**self.rewards.causes}]))
        if self.keep is not None:
            with self.keep.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return {
            "prompt_ids": [model_rows(episode.prompt_ids).tolist() for episode in episodes],
            "completion_ids": [model_rows(episode.completion_ids).tolist() for episode in episodes],
            "env_mask": [episode.env_mask for episode in episodes],
            "logprobs": _logprobs(episodes),  # pyright: ignore[reportReturnType]
            SCORES: scores,
        }

    def tried(self, items: Sequence[Item], stops: Callable[[], bool] | None = None) -> list[dict[str, Any]]:
        """One rollout of each item as it is kept, with `reward`, the weighted sum. Every process samples a part,
        all get all. The seeds are the same at every step, so that two steps differ by their weights alone.

        stops: whether a signal wants the run to end; SamplingStoppedError in all processes where one came to one.
        """
        count = max(1, len(self.gather([self.process])))
        mine = list(range(self.process, len(items), count))
        seeds = [sample_seed(self.seed, "held-out", items[n].prompt.id, items[n].effort, items[n].turn) for n in mine]
        rows, stopped = [], False
        try:
            found = zip([items[n] for n in mine], *self._sampled([items[n] for n in mine], seeds, stops), strict=True)
            rows = [{**self._row(*each), "reward": self.rewards.total(each[3])} for each in found]
        except SamplingStoppedError:
            stopped = True
        shares = self.gather([(rows, stopped)])
        if any(was_stopped for _, was_stopped in shares):
            raise SamplingStoppedError
        return [row for share, _ in shares for row in share]

    def _sampled(
        self, items: Sequence[Item], seeds: list[int], stops: Callable[[], bool] | None = None
    ) -> tuple[list[Episode], list[Outcome], list[list[float]]]:
        episodes = run_episodes(
            [item.prompt.conversation for item in items],
            self.renderer,
            self.engine,
            limits=self.limits,
            toolbox=self.toolkit.toolbox if self.toolkit is not None else None,
            efforts=[item.effort for item in items],
            temperature=self.temperature,
            seed=seeds,
            follow_ups=[item.follow_ups for item in items],
            stops=stops,
        )
        outcomes = [item.outcome(episode) for item, episode in zip(items, episodes, strict=True)]
        return episodes, outcomes, [self.rewards.score(outcome) for outcome in outcomes]

    def _row(self, item: Item, episode: Episode, outcome: Outcome, scores: list[float]) -> dict[str, Any]:
        """A rollout as it is kept and counted."""
        return {
            "id": item.prompt.id,
            "effort": item.effort,
            **({"turn": episode.turn, "of_turn": item.turn} if item.prompt.follow_ups else {}),
            "stop": episode.stop,
            "rewards": dict(zip(self.rewards.names, scores, strict=True)),
            "channel_correct": outcome.completion.ok,
            "analysis_tokens": outcome.completion.n_tokens_by_channel["analysis"],
            "calls": len(episode.called),
            "fault": next((str(called.result.fault) for called in episode.called if called.result.fault), None),
            "faults": sum(called.result.fault is not None for called in episode.called),
            "solved": self.rewards.solved(outcome, scores),
            "text": self.renderer.vocabulary.decode(episode.completion_ids),
        }

    def _tell(self, rows: Sequence[dict[str, Any]], step: int, causes: Sequence[dict[str, str]]) -> None:
        """Each kind of failure at its first sight."""
        where, n = f"step {step + 1}", len(rows)
        known = {name: cause for each in reversed(causes) for name, cause in each.items()}
        for name in self.rewards.names:
            failed = int(self.measured.get(f"rewards/{name}/failures", 0)) - self.failed_before[name]
            self.failed_before[name] += failed
            self.seen.tell(f"reward {name} failed and counts as 0", min(failed, n), n, where, known.get(name, ""))
        faults = [row for row in rows if row["faults"]]
        cause = f"{faults[0]['fault']} ({faults[0]['id']})" if faults else ""
        self.seen.tell("rollouts with a call that failed", len(faults), n, where, cause)
        no_tools = self.toolkit is None
        for kind, found in (
            ("rollouts cut for their length", [row for row in rows if row["stop"] == "length"]),
            (
                "rollouts with a call, which nothing runs (section tools)"
                if no_tools
                else "rollouts with too many calls",
                [row for row in rows if row["stop"] == "calls"],
            ),
            ("rollouts that broke the format", [row for row in rows if row["stop"] == "malformed"]),
            (
                "rollouts that ended before the turn they were for",
                [row for row in rows if row.get("turn", 0) < row.get("of_turn", 0)],
            ),
        ):
            self.seen.tell(kind, len(found), n, where, found[0]["id"] if found else "")

    def _measures(self, rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, int]]) -> dict[str, float]:
        """Of one step's rollouts of all processes: groups of equal rewards, failures, calls, analysis tokens."""
        out = {
            f"rewards/{name}/zero_variance": zero_variance_share([row["rewards"][name] for row in rows], self.group)
            for name in self.rewards.names
        }
        for name in {name for each in failures for name in each}:
            out[f"rewards/{name}/failures"] = float(sum(each.get(name, 0) for each in failures))
        out["channel_correct"] = sum(row["channel_correct"] for row in rows) / len(rows)
        if self.toolkit is not None:
            calls = sum(row["calls"] for row in rows)
            out["tools/calls"] = calls / len(rows)
            out["tools/faults"] = sum(row["faults"] for row in rows) / max(1, calls)
            out["tools/solved"] = sum(row["solved"] for row in rows) / len(rows)
        for effort in EFFORTS:
            tokens = [row["analysis_tokens"] for row in rows if row["effort"] == effort]
            if tokens:
                out[f"analysis_tokens/{effort}"] = sum(tokens) / len(tokens)
        return out


def _logprobs(episodes: Sequence[Episode]) -> list[list[float | None]] | None:
    found = [episode.logprobs for episode in episodes if episode.logprobs is not None]
    return found if len(found) == len(episodes) else None
