"""The eval hook: fixed prompts at each effort, sampled from the live model while it trains, every output checked.

Where servers sample a run's rollouts, they sample its evaluations too. It never changes a run: random state is restored
(a run with and without it has the same losses bit for bit), and when it fails, it warns and training continues.
`stop_below` ends a run, with a checkpoint; a process of a sharded model that could not sample ends it too, without one.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.configs.errors import RunError
from counterpoint.configs.eval_section import EvalSettings, SamplingSettings
from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.attach import is_fresh
from counterpoint.train.evals.channels import Judged, Summary, judge, summarise
from counterpoint.train.evals.effort_tokens import Lengths, growth, lengths, shift
from counterpoint.train.evals.language_drift import drifts
from counterpoint.train.evals.rollouts import RolloutPool, drawn, measured
from counterpoint.train.evals.sampling_plan import blocks, plan
from counterpoint.train.evals.tasks import Task
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.sharded import is_sharded
from counterpoint.train.run.folder import METRICS, json_lines
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.pinned import PinnedEngine
from counterpoint.train.sampling.pool import NoServerError
from counterpoint.train.sampling.sample import Sampled, Sampler, SamplingStoppedError, sample_seed
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.scoring.prompts import EvalPrompt, clustered
from counterpoint.train.scoring.scorers import Scorers

Who = Literal["base", "tuned"]
TABLE_ROWS = 60
_COMPARED = ("task", "id", "cluster", "effort", "languages")


class Log(Protocol):
    """What the hook needs of a tracker (train/run/tracking.py)."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """One evaluation. step 0 is before training; `base` is the model with its adapter off. tasks: of each task, its
    means. engine: what sampled."""

    step: int
    who: Who
    seconds: float
    summary: Summary
    lengths: Lengths = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    engine: str = "transformers"

    def line(self) -> str:
        """One line for a terminal."""
        s = self.summary
        low, high = s.correct.as_dict()["low"], s.correct.as_dict()["high"]
        parts = [f"eval step {self.step} {self.who}: channel-correct {s.correct.share:.2f} [{low:.2f}, {high:.2f}]"]
        if s.right_answers.n:
            parts.append(f"answers {s.right_answers.share:.2f}")
        if s.right_calls.n:
            parts.append(f"calls {s.right_calls.share:.2f}")
        parts.append(f"analysis {s.with_analysis.share:.2f}")
        lengths = "/".join(f"{mean:.0f}" for mean in s.analysis_tokens.values())
        parts.append(f"thought tokens {lengths} ({'/'.join(s.analysis_tokens)})")
        worst = sorted(s.violations.items(), key=lambda item: -item[1].count)[:2]
        parts += [f"{code} {rate.share:.2f}" for code, rate in worst]
        for name, means in self.tasks.items():
            told = [f"{key.removeprefix('rewards/')} {mean:.2f}" for key, mean in means.items() if _worth(key, mean)]
            parts.append(f"{name}: {' '.join(told)}")
        return ", ".join(parts) + f" ({self.seconds:.1f} s)"

    def scalars(self) -> dict[str, float]:
        of_tasks = {f"{task}/{name}": mean for task, means in self.tasks.items() for name, mean in means.items()}
        return {**self.summary.scalars(), **of_tasks}

    def as_dict(self) -> dict[str, Any]:
        grown = growth(self.lengths)
        told = {} if grown is None else {"effort_growth": grown.value}
        correct = self.summary.correct.as_dict()
        told["channel_correct_low"], told["channel_correct_high"] = correct["low"], correct["high"]
        began = {"step": self.step, "who": self.who, "engine": self.engine, "seconds": round(self.seconds, 3)}
        return {**began, **self.scalars(), **told}


def _worth(key: str, mean: float) -> bool:
    """Whether a task's mean is told on the terminal: score and rewards always, faults where there are any."""
    return key == "score" or key.startswith("rewards/") or (key in ("faults", "invalid") and mean > 0)


Asked = tuple[EvalPrompt, Effort, int]


def planned(prompts: Sequence[EvalPrompt], settings: SamplingSettings) -> list[Asked]:
    """Every prompt at every effort, `settings.samples` times."""
    return [(p, e, k) for p in prompts for e in settings.efforts for k in range(settings.samples)]


def in_memory(loaded: LoadedModel, settings: SamplingSettings, stops: Callable[[], bool] | None = None) -> Sampler:
    """What samples the model in memory as `settings` say; stops: as of `Sampler`."""
    return Sampler(loaded, batch_rows=settings.batch, stops=stops, truncation=Truncation.of(settings))


def sample_all(
    engine: Engine, renderer: Renderer, plan: Sequence[Asked], settings: SamplingSettings, seed: int
) -> list[tuple[Asked, Sampled]]:
    """A sample of each; its seed depends on prompt, effort and number alone."""
    ids = [renderer.prompt(prompt.conversation, effort) for prompt, effort, _ in plan]
    seeds = [sample_seed(seed, prompt.id, effort, k) for prompt, effort, k in plan]
    sampled = engine.sample(ids, settings.max_new_tokens, settings.temperature, seeds)
    return list(zip(plan, sampled, strict=True))


Served = Callable[[Who], PinnedEngine]
"""Gives the servers the weights of now, and returns what samples there. Called by every process of a run, and raises
the same in all of them."""


class _OutOfStepError(RunError):
    pass


class ChannelEval(TrainerCallback):
    """The hook as a callback, for every process of a run: they share the samples.

    It is a `StepCallback` (train/loop/base_trainer.py). loaded: the live model, a PEFT model or a plain one. folder:
    gets `step-000050-tuned.jsonl` with every sample and `metrics.jsonl`; None for all processes but the main one. log:
    scalars `eval/...` and a table of samples. say, warn: a line each. stops: whether a signal wants the run to end,
    asked all the time. process, processes: the number of this one, and how many there are; gather: collects from all
    of them. measured: gets the numbers of each point. tasks: sampled as well. rolled: the prompts as a task, where they
    are rolled out (with tools, say). served: the servers that sample in place of the model in memory. `points` holds
    what was measured, `stopped` the reason where `stop_below` ended the run.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: Renderer,
        prompts: Sequence[EvalPrompt],
        settings: EvalSettings,
        folder: Path | None,
        *,
        log: Log | None = None,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
        seed: int = 0,
        stops: Callable[[], bool] = lambda: False,
        process: int = 0,
        processes: int = 1,
        gather: Callable[[list[Any]], list[Any]] = list,
        measured: Callable[[dict[str, float]], None] = lambda _: None,
        tasks: Sequence[Task] = (),
        rolled: Task | None = None,
        served: Served | None = None,
    ) -> None:
        self.rolled, self.served = rolled, served
        self.draws = plan([*([] if rolled is None else [rolled]), *tasks], renderer, seed)
        prompts = [] if rolled is not None else prompts
        self.stops, self.process, self.processes, self.gather = stops, process, processes, gather
        self.loaded, self.renderer, self.prompts, self.settings = loaded, renderer, clustered(prompts), settings
        self.folder, self.log, self.say, self.warn, self.seed = folder, log, say, warn, seed
        self.measured = measured
        self.points: list[EvalPoint] = []
        self.stopped: str | None = None
        self._first: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.settings.at_start or state.global_step > 0:
            return
        adapted = isinstance(self.loaded.model, PeftModel)
        if adapted and self.settings.base:
            self.measure(0, "base", control)
        # A fresh adapter changes nothing, so the base's figures are the model's own.
        if not adapted or not self.settings.base or not is_fresh(self.loaded.model):
            self.measure(0, "tuned", control)

    def after_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Called by the trainer once a step is logged and saved, so that a kill in here loses no step."""
        last = state.global_step >= state.max_steps > 0
        due = self.settings.every is not None and state.global_step % self.settings.every == 0
        if (due and not last) or (last and self.settings.at_end):
            self.measure(state.global_step, "tuned", control)

    def measure(self, step: int, who: Who, control: TrainerControl | None = None) -> EvalPoint | None:
        """Sample, check, write and log; None when it failed, which only warns, or a signal came meanwhile."""
        began = time.monotonic()
        engine: Engine | None = None
        try:
            if self.served is not None:
                engine = self.served(who).evaluating(Truncation.of(self.settings), self.stops)
        except NoServerError as error:
            return self._failed(step, error)
        try:
            samples = self._samples(step, who, engine)
            if self.folder is None:
                return None
            prompts, by_task = self._by_task(samples)
            seconds = time.monotonic() - began
            summary = summarise([sample for sample in prompts if not sample.more.get("invalid")])
            engine_name = "transformers" if engine is None else "server"
            point = EvalPoint(step, who, seconds, summary, _lengths(samples), by_task, engine_name)
            rows = self._write(self.folder, point, samples)
        except _OutOfStepError:
            raise
        except SamplingStoppedError:
            self.say(f"the evaluation at step {step} is left out: a signal came")
            if control is not None:
                control.should_save = control.should_training_stop = True
            return None
        except Exception as error:
            return self._failed(step, error)
        self.points.append(point)
        self._first = self._first or [{name: row[name] for name in _COMPARED} for row in rows]
        if who == "tuned":
            self.measured(point.scalars())
        self.say(point.line())
        if who == "tuned" and step > 0:
            self._compare(point, rows)
            self._thresholds(point, control)
        return point

    def _failed(self, step: int, error: Exception) -> None:
        self.warn(f"the evaluation at step {step} failed ({type(error).__name__}: {error}); training continues")

    def _by_task(self, samples: Sequence[Judged]) -> tuple[list[Judged], dict[str, dict[str, float]]]:
        """The samples of the prompts, and of each task its means; also of prompts that are rolled out."""
        first = len(samples) - len(self.draws)
        prompts, of_tasks = list(samples[:first]), defaultdict(list)
        for draw, sample in zip(self.draws, samples[first:], strict=True):
            of_tasks[draw.task.name].append(sample)
        means = {name: measured(found) for name, found in of_tasks.items()}
        if self.rolled is not None:
            prompts += of_tasks[self.rolled.name]
        return prompts, means

    def _samples(self, step: int, who: Who, served: Engine | None) -> list[Judged]:
        """Every sample in order, checked and scored: each process has its share."""
        found: list[tuple[int, Judged]] = []
        failure: Exception | None = None
        try:
            found = self._share(step, who, served)
        except _OutOfStepError:
            raise
        except Exception as error:
            failure = error
        if self.processes > 1:
            # Collective: reached by every process, whatever came of its share.
            shares = self.gather([(found, failure and (type(failure).__name__, str(failure)))])
            told = [each for _, each in shares if each is not None]
            if any(name == SamplingStoppedError.__name__ for name, _ in told):
                raise SamplingStoppedError
            if told:
                raise failure or RunError(f"in another process: {told[0][0]}: {told[0][1]}")
            found = [each for share, _ in shares for each in share]
        elif failure is not None:
            raise failure
        return [judged for _, judged in sorted(found, key=lambda each: each[0])]

    def _share(self, step: int, who: Who, served: Engine | None) -> list[tuple[int, Judged]]:
        """This process's samples with their place in the plan. A sharded model in memory is sampled by all processes
        together, and then each judges its share."""
        asked = planned(self.prompts, self.settings)
        mine = range(self.process, len(asked), self.processes)
        engine = served or in_memory(self.loaded, self.settings, self.stops)
        if served is None and is_sharded(self.loaded.model):
            whole = self._sampled_together(step, who, engine, asked)
            sampled = [whole[place] for place in mine]
        else:
            with self._who(who):
                plan = [asked[place] for place in mine]
                sampled = sample_all(engine, self.renderer, plan, self.settings, self.seed)
        out: list[tuple[int, Judged]] = []
        with Scorers() as scorers:
            for place, ((prompt, effort, k), sample) in zip(mine, sampled, strict=True):
                if self.stops():
                    raise SamplingStoppedError
                ids, reason, vocabulary = sample.ids, sample.finish_reason, self.loaded.vocabulary
                out.append((place, judge(prompt, effort, k, ids, reason, vocabulary, scorers)))
        with self._who(who):
            return out + self._of_tasks(engine, len(asked))

    def _of_tasks(self, engine: Engine, first: int) -> list[tuple[int, Judged]]:
        """This process's samples of tasks; their places follow those of the prompts."""
        out: list[tuple[int, Judged]] = []
        places = iter(range(first, first + len(self.draws)))
        parts = [[(next(places), draw) for draw in block] for block in blocks(self.draws)]
        mine = [each for part in parts[self.process :: self.processes] for each in part]
        with RolloutPool() as pool, Scorers() as scorers:
            for task in dict.fromkeys(draw.task.name for _, draw in mine):
                own = [(place, draw) for place, draw in mine if draw.task.name == task]
                samples = drawn([draw for _, draw in own], engine, self.renderer, pool, scorers, self.stops)
                out += [(place, sample) for (place, _), sample in zip(own, samples, strict=True)]
        return out

    def _sampled_together(
        self, step: int, who: Who, engine: Engine, plan: Sequence[Asked]
    ) -> list[tuple[Asked, Sampled]]:
        """RunError where it fails in a process that holds a part of the model: the others would wait for it here, or
        receive what it sends for the next step."""
        try:
            with self._who(who):
                return sample_all(engine, self.renderer, plan, self.settings, self.seed)
        except SamplingStoppedError:
            raise
        except Exception as error:
            raise _OutOfStepError(
                f"the evaluation at step {step} failed in a process that holds a part of the model "
                f"({type(error).__name__}: {error}): continue from the newest checkpoint with --resume"
            ) from error

    @contextlib.contextmanager
    def _who(self, who: Who) -> Iterator[None]:
        model = self.loaded.model
        if who == "base" and isinstance(model, PeftModel):
            with model.disable_adapter():
                yield
        else:
            yield

    def _write(self, folder: Path, point: EvalPoint, samples: Sequence[Judged]) -> list[dict[str, Any]]:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [sample.as_row(self.loaded.vocabulary) for sample in samples]
        path = folder / f"step-{point.step:06d}-{point.who}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(point.as_dict()) + "\n")
        if self.log is None:
            return rows
        prefix = "eval" if point.who == "tuned" else "eval_base"
        self.log.scalars(point.step, {f"{prefix}/{name}": value for name, value in point.scalars().items()})
        columns = ("id", "effort", "analysis", "calls", "final", "violations", "text")
        table = [
            (r["id"], r["effort"], r["analysis"], json.dumps(r["calls"]), r["final"], _codes(r), r["text"])
            for r in rows[:TABLE_ROWS]
        ]
        self.log.table(point.step, f"{prefix}/samples", columns, table)
        return rows

    def _compare(self, point: EvalPoint, rows: Sequence[Mapping[str, Any]]) -> None:
        """Against the first evaluation: effort that no longer steers the length of the analysis is warned of, and so is
        another language."""
        for drift in drifts(self._first, rows):
            self.warn(f"step {point.step}: {drift.sentence}")
        changed = shift(self.points[0].lengths, point.lengths)
        if changed is not None and changed.verdict == "collapsed":
            self.warn(f"step {point.step}: {changed.sentence}")

    def _thresholds(self, point: EvalPoint, control: TrainerControl | None) -> None:
        share = point.summary.correct.share or 0.0
        stop, warn = self.settings.stop_below, self.settings.warn_below
        if stop is not None and share < stop:
            self.stopped = f"channel-correct {share:.2f} at step {point.step} is below eval.stop_below ({stop:.2f})"
            self.warn(f"{self.stopped}: the run ends here, with a checkpoint")
            if control is not None:
                control.should_save = control.should_training_stop = True
        elif warn is not None and share < warn:
            self.warn(f"channel-correct {share:.2f} at step {point.step} is below eval.warn_below ({warn:.2f})")


def read_points(folder: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` of an eval folder holds; a last line that a kill cut short is left out."""
    # A resumed run may have measured a step twice; the newer one counts.
    return list({(point["step"], point["who"]): point for point in json_lines(folder / METRICS)}.values())


def channel_verdict(points: Sequence[Mapping[str, Any]]) -> str | None:
    """`channel-correct: 0.99 (before 0.40)`, of the newest measurement and the first; None without any."""
    if not points:
        return None
    first, last = points[0], points[-1]
    if last["who"] == "base":
        return f"channel-correct: not measured after training (before {first['channel_correct']:.2f})"
    return f"channel-correct: {last['channel_correct']:.2f} (before {first['channel_correct']:.2f})"


def _lengths(samples: Sequence[Judged]) -> Lengths:
    return lengths(
        ((s.prompt.task, s.prompt.cluster or s.prompt.id), s.effort, s.completion.n_tokens_by_channel["analysis"])
        for s in samples
    )


def _codes(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted({violation["code"] for violation in row["violations"]}))
