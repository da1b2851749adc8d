"""One step's rollouts: sampled with their tools, scored, kept as JSON lines, and counted for the curves."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError
from counterpoint.configs.reward_section import FunctionReward, OutsideReward
from counterpoint.data.conversation import EFFORTS
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.endpoint.ledger import notice_of
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.episodes import EpisodeLimits, World, run_episodes
from counterpoint.train.episodes.routes import Routes, name_of
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.foreign.choose import Chosen
from counterpoint.train.foreign.episode import invalid_episode
from counterpoint.train.loop.environment_metrics import environment_metrics
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.played import Played, StepRollouts, joined
from counterpoint.train.run.first_sight import FirstSight
from counterpoint.train.run.folder import json_lines, write_whole
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.pool import NoServerError
from counterpoint.train.sampling.rollout import Episode, SampledRow
from counterpoint.train.sampling.sample import SamplingStoppedError, sample_seed
from counterpoint.train.scoring.function_rewards import ENVIRONMENT, Found, Scored
from counterpoint.train.scoring.rewards import Outcome, Rewards, zero_variance_share


@dataclass
class Rollouts:
    """Samples episodes of items and scores them.

    keep: where every rollout is written as a JSON line, with its Harmony text and its rewards; None writes none.
    process: the number of this one, of those that train together; gather: collects what each of them has measured.
    measured: what is logged of the last step's rollouts. seen: tells each kind of failure once. failed, causes: of the
    rewards of all steps' rollouts, as `Rewards` has them of held-out ones. stepped: whether there was a step
    before. elsewhere: a step's rollouts are played in another process, with other judges.
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
    failed: Counter[str] = field(default_factory=Counter)
    failed_before: Counter[str] = field(default_factory=Counter)
    causes: dict[str, str] = field(default_factory=dict)
    environments: Chosen | Routes[Chosen] | None = None
    stepped: bool = False
    elsewhere: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rewards: those of the run file, and the environment's weighted sum."""
        return (*self.rewards.names, *([ENVIRONMENT] if self.environments is not None else []))

    @property
    def weights(self) -> tuple[float, ...]:
        """Of each in the sum."""
        return (*self.rewards.weights, *([1.0] if self.environments is not None else []))

    def __call__(self, numbers: Sequence[int], step: int, epoch: int = 0) -> StepRollouts:
        """The items with these numbers, each sampled once for every time it is listed: `play`, then `assembled`."""
        return self.assembled([self.play(numbers, self.process * len(numbers), step, epoch)], step)

    def play(
        self,
        numbers: Sequence[int],
        first: int,
        step: int,
        epoch: int = 0,
        engine: Engine | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> Played:
        """Rollouts of a step, whose first one has the index `first` over all processes.

        The seed of a rollout depends on the run's seed, the step, and its index over all processes; that of its world
        on the run's seed, the row and the epoch, so that a group meets the same one. May be called by several threads
        at once, with an engine that may. stops: as of `run_episodes`.
        """
        began = time.monotonic()
        items = [self.items[number] for number in numbers]
        seeds = [sample_seed(self.seed, step, first + place) for place in range(len(items))]
        worlds = [self._world(item, first + place, step, epoch, True) for place, item in enumerate(items)]
        rewards = self.rewards.counted_apart()
        episodes, outcomes, found = self._sampled(items, seeds, worlds, self.group, stops, engine, rewards)
        played = self._played(items, episodes, outcomes, found)
        return replace(
            played,
            failures=rewards.failures,
            causes=rewards.causes,
            spent=rewards.spent,
            stopped=rewards.stopped,
            seconds=time.monotonic() - began,
        )

    def given_up(self, numbers: Sequence[int], why: str) -> Played:
        """Invalid rollouts in place of those that `play` could not play."""
        items = [self.items[number] for number in numbers]
        episodes = [invalid_episode((), self.renderer, item.effort, 0, why) for item in items]
        outcomes = [item.outcome(episode) for item, episode in zip(items, episodes, strict=True)]
        return self._played(items, episodes, outcomes, [Scored([math.nan] * len(self.rewards.names), why)] * len(items))

    def _played(
        self, items: Sequence[Item], episodes: Sequence[Episode], outcomes: Sequence[Outcome], found: Sequence[Scored]
    ) -> Played:
        learned = [self._rows(episode) for episode in episodes]
        return Played(
            [() if each.invalid is not None else rows for rows, each in zip(learned, found, strict=True)],
            [each.stop == "length" for each in episodes],
            [self._scores(*one) for one in zip(items, episodes, found, strict=True)],
            [
                (len(rows[0].prompt_ids), sum(len(row.completion_ids) for row in rows), episode.stop != "length")
                for rows, episode in zip(learned, episodes, strict=True)
            ],
            [self._row(*each) for each in zip(items, episodes, outcomes, found, strict=True)],
            episodes[0].prompt_ids,
        )

    def assembled(self, parts: Sequence[Played], step: int) -> StepRollouts:
        """A step of what this process has played, with what the others have; kept, counted and told. Collective: every
        process has as many rollouts of a step.

        RunError where a reward of the user's fails in the first step, too much of a step is invalid, or a judge has
        taken all the tokens that it may.
        """
        played = joined(parts)
        rows = self.gather([{"step": step, **row} for row in played.kept])
        self.failed.update(played.failures)
        self.causes = {**played.causes, **self.rewards.causes, **self.causes}
        failures = self.gather([{**(self.failed + self.rewards.failures)}])
        self.measured = self._measures(rows, failures)
        for spent in self.gather([_spent(self.rewards.spent, played.spent, self.elsewhere)]):
            for name, tokens in spent.items():
                key = f"rewards/{name}/tokens"
                self.measured[key] = self.measured.get(key, 0.0) + tokens
        if self.keep is not None:
            if not self.stepped and self.keep.is_file():  # a resumed run samples these steps again
                kept = [row for row in json_lines(self.keep) if row["step"] < step]
                write_whole(self.keep, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
            with self.keep.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for stopped in self.gather([self.rewards.stopped or played.stopped]):
            if stopped is not None:
                raise RunError(f"step {step + 1}: {stopped}")
        self._tell(rows, step, self.gather([self.causes]))
        self.stepped = True
        return StepRollouts(
            played.rows,
            played.truncated,
            self.gather(played.scores),
            self.process * len(played.rows),
            self.gather(played.lengths),
            played.any_ids,
        )

    def _rows(self, episode: Episode) -> tuple[SampledRow, ...]:
        """An environment's reward is that of all turns; a follow-up has a truth of its own."""
        return (*(episode.earlier_rows if self.environments is not None else ()), *episode.rows)

    def tried(self, items: Sequence[Item], stops: Callable[[], bool] | None = None) -> list[dict[str, Any]]:
        """One rollout of each item as it is kept, with `reward`, the weighted sum. Every process samples a part,
        all get all. The seeds are the same at every step, so that two steps differ by their weights alone.

        stops: whether a signal wants the run to end; SamplingStoppedError in all processes where one came to one.
        """
        count = max(1, len(self.gather([self.process])))
        mine = list(range(self.process, len(items), count))
        seeds = [sample_seed(self.seed, "held-out", items[n].prompt.id, items[n].effort, items[n].turn) for n in mine]
        worlds = [self._world(items[n], 0, 0, 0, False) for n in mine]
        rows, stopped, problem = [], False, None
        try:
            episodes, outcomes, found = self._sampled([items[n] for n in mine], seeds, worlds, 1, stops)
            each = zip([items[n] for n in mine], episodes, outcomes, found, strict=True)
            rows = [{**self._row(*one), "reward": self._total(one[0], one[1], one[3])} for one in each]
        except SamplingStoppedError:
            stopped = True
        except NoServerError as error:
            problem = error
        shares = self.gather([(rows, stopped, problem)])
        for error in filter(None, (each for *_, each in shares)):
            raise error
        if any(was_stopped for _, was_stopped, _ in shares):
            raise SamplingStoppedError
        return [row for share, *_ in shares for row in share]

    def _world(self, item: Item, place: int, step: int, epoch: int, training: bool) -> World:
        seed = sample_seed(self.seed, "world", item.prompt.id, epoch)
        facts = Facts(seed, place % self.group if training else 0, step, item.effort, training)
        return World(item.prompt.conversation.metadata, item.prompt.id, facts)

    def _home(self, item: Item) -> Chosen | None:
        """The environments that the item's rollouts are in."""
        if isinstance(self.environments, Routes):
            return self.environments.of(item.prompt.conversation.metadata)
        return self.environments

    def _scores(self, item: Item, episode: Episode, found: Scored) -> list[float]:
        """In the order of `names`; NaN throughout leaves a rollout out of its group."""
        if found.invalid is not None:
            return [math.nan] * len(self.names)
        if (home := self._home(item)) is None:
            return found.values
        return [*found.values, home.weigh(episode.earned) if episode.earned else math.nan]

    def _total(self, item: Item, episode: Episode, found: Scored) -> float:
        own = 0.0 if (home := self._home(item)) is None else home.weigh(episode.earned)
        return self.rewards.total(found.values) + own

    def _sampled(
        self,
        items: Sequence[Item],
        seeds: list[int],
        worlds: list[World],
        group: int,
        stops: Callable[[], bool] | None = None,
        engine: Engine | None = None,
        rewards: Rewards | None = None,
    ) -> tuple[list[Episode], list[Outcome], list[Scored]]:
        rewards = rewards or self.rewards
        begun: dict[int, tuple[Outcome, list[Found]]] = {}

        def judged(place: int, episode: Episode) -> None:
            outcome = items[place].outcome(episode)
            unknown = [Found(None) for _ in rewards.names]
            begun[place] = outcome, unknown if episode.invalid else rewards.begin(outcome)

        episodes = run_episodes(
            [item.prompt.conversation for item in items],
            self.renderer,
            engine or self.engine,
            limits=self.limits,
            toolbox=self.toolkit.toolbox if self.toolkit is not None else None,
            efforts=[item.effort for item in items],
            temperature=self.temperature,
            seed=seeds,
            follow_ups=[item.follow_ups for item in items],
            environments=self.environments,
            worlds=worlds,
            after=judged,
            stops=stops,
        )
        outcomes = [begun[place][0] for place in range(len(items))]
        found = rewards.finish(outcomes, [begun[place][1] for place in range(len(items))], group)
        return (
            episodes,
            outcomes,
            [
                each if episode.invalid is None else replace(each, invalid=episode.invalid)
                for episode, each in zip(episodes, found, strict=True)
            ],
        )

    def _row(self, item: Item, episode: Episode, outcome: Outcome, found: Scored) -> dict[str, Any]:
        """A rollout as it is kept and counted."""
        values = zip(self.rewards.names, found.values, strict=True)
        rewards = {name: None if math.isnan(value) else value for name, value in values}
        rewards |= found.parts
        rewards |= {f"{ENVIRONMENT}/{name}" if name else ENVIRONMENT: value for name, value in episode.earned.items()}
        traces = [called.result.trace for called in episode.called if called.result.trace]
        return {
            "id": item.prompt.id,
            "effort": item.effort,
            **({"environment": self._name(item)} if isinstance(self.environments, Routes) else {}),
            **({"turn": episode.turn} if item.prompt.follow_ups or self.environments is not None else {}),
            **({"of_turn": item.turn} if item.prompt.follow_ups else {}),
            "stop": episode.stop,
            "rewards": rewards,
            **({"invalid": found.invalid} if found.invalid else {}),
            "channel_correct": outcome.completion.ok,
            "analysis_tokens": outcome.completion.n_tokens_by_channel["analysis"],
            "calls": len(episode.called),
            "fault": next((str(called.result.fault) for called in episode.called if called.result.fault), None),
            "faults": sum(called.result.fault is not None for called in episode.called),
            **({"traces": traces} if traces else {}),
            **({"requests": dict(episode.requests)} if episode.requests else {}),
            "solved": self.rewards.solved(outcome, found.values),
            "text": self.renderer.vocabulary.decode(episode.completion_ids),
        }

    def _tell(self, rows: Sequence[dict[str, Any]], step: int, causes: Sequence[dict[str, str]]) -> None:
        """Each kind of failure at its first sight. RunError for what ends the run."""
        where, n = f"step {step + 1}", len(rows)
        known = {name: cause for each in reversed(causes) for name, cause in each.items()}
        for name, setting in zip(self.rewards.names, self.rewards.settings, strict=True):
            failed = int(self.measured.get(f"rewards/{name}/failures", 0)) - self.failed_before[name]
            self.failed_before[name] += failed
            outside, cause = isinstance(setting, OutsideReward), known.get(name, "")
            then = "makes its rollout invalid" if outside else "counts as 0"
            self.seen.tell(f"reward {name} failed and {then}", min(failed, n), n, where, cause)
            first = isinstance(setting, FunctionReward) and not self.stepped
            if outside and failed and (first or failed >= n):
                what = "in its first step" if first else "for every rollout of a step"
                told = cause.partition("\n")[0]
                raise RunError(f"{where}: reward {name} failed {what} ({failed} of {n} rollouts): {told}")
        invalid = [row for row in rows if "invalid" in row]
        cause = f"{invalid[0]['invalid']} ({invalid[0]['id']})" if invalid else ""
        self.seen.tell("invalid rollouts, left out of their groups", len(invalid), n, where, cause)
        for setting, environments, own in self._by_environment(rows):
            invalid, most = [row for row in own if "invalid" in row], environments.settings.max_invalid
            if len(invalid) > most * len(own):
                raise RunError(
                    f"{where}: {len(invalid)} of {len(own)} rollouts are invalid, more than {setting}.max_invalid "
                    f"({most:g}) allows; the first: {invalid[0]['invalid'].partition(chr(10))[0]}"
                )
        faults = [row for row in rows if row["faults"]]
        cause = f"{faults[0]['fault']} ({faults[0]['id']})" if faults else ""
        self.seen.tell("rollouts with a call that failed", len(faults), n, where, cause)
        no_tools = self.toolkit is None and self.environments is None
        for kind, found in (
            ("rollouts cut for their length", [row for row in rows if row["stop"] == "length"]),
            (
                "rollouts with a call, which nothing runs (section tools)"
                if no_tools
                else "rollouts with too many calls",
                [row for row in rows if row["stop"] == "calls"],
            ),
            ("rollouts with too many turns", [row for row in rows if row["stop"] == "turns"]),
            ("rollouts that broke the format", [row for row in rows if row["stop"] == "malformed"]),
            (
                "rollouts that ended before the turn they were for",
                [row for row in rows if row.get("turn", 0) < row.get("of_turn", 0)],
            ),
        ):
            self.seen.tell(kind, len(found), n, where, found[0]["id"] if found else "")
        for name in sorted({name for row in rows for name in row.get("requests", ())}):
            if (notice := notice_of(name)) is not None:
                asking = sum(bool(row.get("requests", {}).get(name)) for row in rows)
                self.seen.tell(f"rollouts in which {notice}", asking, n, where)

    def _name(self, item: Item) -> str:
        assert isinstance(self.environments, Routes)
        return name_of(item.prompt.conversation.metadata, self.environments.named)

    def _by_environment(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Chosen, list[dict[str, Any]]]]:
        """Each setting, its environments, and their rollouts where there are any."""
        if isinstance(self.environments, Routes):
            for name, environments in self.environments.named.items():
                if own := [row for row in rows if row["environment"] == name]:
                    yield f"rollout.environments.{name}", environments, own
        elif self.environments is not None:
            yield "rollout.environment", self.environments, list(rows)

    def _measures(self, rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, int]]) -> dict[str, float]:
        """Of one step's rollouts of all processes: groups of equal rewards, failures, calls, analysis tokens."""
        out = {
            f"rewards/{name}/zero_variance": zero_variance_share(
                [math.nan if row["rewards"].get(name) is None else row["rewards"][name] for row in rows], self.group
            )
            for name in self.rewards.names
        }
        for name in {name for each in failures for name in each}:
            out[f"rewards/{name}/failures"] = float(sum(each.get(name, 0) for each in failures))
        for name in dict.fromkeys(name for row in rows for name in row["rewards"] if name not in self.rewards.names):
            values = [row["rewards"][name] for row in rows if name in row["rewards"] and "invalid" not in row]
            if values and name != ENVIRONMENT:
                out[f"rewards/{name}/mean"] = sum(values) / len(values)
        out["channel_correct"] = sum(row["channel_correct"] for row in rows) / len(rows)
        out["invalid"] = sum("invalid" in row for row in rows) / len(rows)
        if self.toolkit is not None or self.environments is not None:
            calls = sum(row["calls"] for row in rows)
            out["tools/calls"] = calls / len(rows)
            out["tools/faults"] = sum(row["faults"] for row in rows) / max(1, calls)
            out["tools/solved"] = sum(row["solved"] for row in rows) / len(rows)
        if self.environments is not None:
            out["turns"] = sum(row["turn"] + 1 for row in rows) / len(rows)
        if isinstance(self.environments, Routes):
            for setting, environments, own in self._by_environment(rows):
                out |= environment_metrics(f"environments/{setting.rpartition('.')[2]}", environments, own)
        for effort in EFFORTS:
            tokens = [row["analysis_tokens"] for row in rows if row["effort"] == effort]
            if tokens:
                out[f"analysis_tokens/{effort}"] = sum(tokens) / len(tokens)
        return out


def _spent(here: Mapping[str, int], played: Mapping[str, int], elsewhere: bool) -> dict[str, int]:
    names, join = {**here, **played}, sum if elsewhere else max
    return {name: join([here.get(name, 0), played.get(name, 0)]) for name in names}
