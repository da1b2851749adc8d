"""The run's own evaluation prompts, answered by the live model and by the export, in pairs: what is hard for both does
not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterpoint.configs.data_section import OpeningSettings, RenderSettings
from counterpoint.configs.errors import CounterpointError, DataError
from counterpoint.configs.schema import GrpoRun, TrainingRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.evals.channels import judge
from counterpoint.train.evals.compare import compare
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts
from counterpoint.train.scoring.scorers import Scorers

EXAMPLES, EXAMPLE_TOKENS = "example:quickstart_eval", 64
PROMPTS = 32
METRICS = {"answers": "score", "calls": "score", "channels": "correct"}


@dataclass(frozen=True, slots=True)
class Worse:
    """A metric on which the export is worse than the live model by more than its prompts let expect."""

    metric: str
    text: str


@dataclass(frozen=True)
class TaskScores:
    """Rows of greedy answers, one a prompt, as `evals.compare` takes them."""

    rows: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def paired(self, exported: TaskScores) -> dict[str, dict[str, Any]]:
        """By metric: prompts, the mean of the live model and of the export, their difference with its 95 % interval."""
        found = {}
        for metric, key in METRICS.items():
            both = [_of(rows, metric) for rows in (self.rows, exported.rows)]
            try:
                differences = compare(*both, name="the export").differences if all(both) else ()
            except DataError:
                differences = ()
            for each in differences[: len(differences)]:
                if each.metric == key and each.task is None and each.effort is None:
                    values = each.as_dict()
                    kept = ("items", "difference", "told", "sentence")
                    found[metric] = {"live": each.a, "exported": each.b, **{name: values[name] for name in kept}}
        return found

    def worse(self, exported: TaskScores) -> tuple[Worse, ...]:
        told = self.paired(exported).items()
        return tuple(
            Worse(metric, f"{metric}: {values['sentence']}") for metric, values in told if values["told"] == "worse"
        )


def _of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    if metric == "channels":
        return list(rows)
    return [row for row in rows if row["scorer"] is not None and (row["scorer"] == "calls") == (metric == "calls")]


@dataclass(frozen=True)
class Tasks:
    """Prompts with the settings under which they are answered."""

    prompts: Sequence[EvalPrompt]
    settings: OpeningSettings
    max_new_tokens: int

    def answered(self, loaded: LoadedModel) -> TaskScores:
        renderer, vocabulary = Renderer(loaded.vocabulary, self.settings), loaded.vocabulary
        asked = [renderer.prompt(prompt.conversation) for prompt in self.prompts]
        sampled = Sampler(loaded).sample(asked, self.max_new_tokens)
        rows = []
        with Scorers() as scorers:
            for prompt, sample in zip(self.prompts, sampled, strict=True):
                effort = renderer.effort_of(prompt.conversation)
                judged = judge(prompt, effort, 0, sample.ids, sample.finish_reason, vocabulary, scorers)
                rows.append(judged.as_row(vocabulary))
        return TaskScores(rows)


def run_tasks(run: TrainingRun | None, count: int = PROMPTS) -> tuple[Tasks, str]:
    """(the run's evaluation prompts, "") or (the package's, why), the first `count` of either."""
    if run is not None:
        try:
            options = None if isinstance(run, GrpoRun) else run.data
            prompts = load_prompts(run.eval.prompts, options)
            return Tasks(prompts[:count], run.data, run.eval.max_new_tokens), ""
        except CounterpointError as error:
            why = str(error)
    else:
        why = "its run is not known"
    return Tasks(load_prompts(EXAMPLES)[:count], RenderSettings(), EXAMPLE_TOKENS), why
