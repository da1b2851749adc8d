"""What `evaluate` takes of a run that learned from rewards: its held-out rows, sampled as its rollouts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import EvaluateRun, GrpoRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.commands.evaluate_run import of_run
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.evals.runner import run_plan
from counterpoint.train.evals.sampling_plan import fingerprint, groups, plan
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.truncation import WHOLE, Truncation
from counterpoint.train.scoring.scorers import Scorers

RUN = (
    "data.valid={type: file, path: 'example:products', size: 2}", "rollout.temperature=0.7", "rollout.top_p=0.8",
    "rollout.top_k=60", "eval.top_k=40", "eval.min_p=0.02", "eval.temperature=0.9",
)  # fmt: skip


def completed(*given: str) -> EvaluateRun:
    run, settings = load_run("grpo/tiny_calculator", RUN), load_run("eval/channels", given)
    assert isinstance(run, GrpoRun)
    assert isinstance(settings, EvaluateRun)
    return of_run(settings, Found("runs/mine", ModelSettings(), None, run)).settings


@pytest.mark.parametrize(
    ("given", "prompts", "held_out"),
    [
        ((), (0.9, Truncation(1.0, 40, 0.02)), (0.7, Truncation(0.8, 60, 0.0))),
        (
            ("eval.temperature=0.5", "eval.top_k=30"),
            (0.5, Truncation(1.0, 30, 0.02)),
            (0.5, Truncation(0.8, 30, 0.0)),
        ),
    ],
    ids=["of the run", "as asked"],
)
def test_held_out_rows_are_drawn_as_rollouts_are_and_prompts_as_the_hook_draws_them(
    given: Any, prompts: Any, held_out: Any
) -> None:
    suite = completed(*given).eval
    found = [(task.temperature, task.truncation or Truncation.of(suite)) for task in build_tasks(suite, inherited=True)]
    assert found == [prompts, held_out]


def test_every_task_is_drawn_from_its_own_part_of_the_distribution(tmp_path: Path) -> None:
    """Tasks of the same limits are not sampled together where they draw otherwise, and a plan knows how they do."""
    tasks: list[dict[str, Any]] = [
        {"type": "arithmetic", "name": "suite", "size": 2},
        {"type": "arithmetic", "name": "whole", "size": 2, "top_k": 0},
        {"type": "arithmetic", "name": "few", "size": 2, "top_p": 0.5, "min_p": 0.1},
        {"type": "arithmetic", "name": "same", "size": 2, "top_k": 5},
    ]
    run = EvaluateRun.model_validate(
        {"recipe": "evaluate", "eval": {"efforts": "low", "max_new_tokens": 12, "top_k": 5, "tasks": tasks}}
    )
    built, loaded = build_tasks(run.eval), random_tiny(seed=1)
    cuts = [WHOLE, Truncation(0.5, 5, 0.1)]
    assert [task.truncation for task in built] == [None, *cuts, None]
    draws = plan(built, Renderer(loaded.vocabulary), 3)
    assert [len(group) for group in groups(draws, 8)] == [2, 2, 2, 2]
    engine = Sampler(loaded, truncation=Truncation.of(run.eval))
    with Scorers() as scorers:
        rows = run_plan(draws, engine, tmp_path, loaded.vocabulary, scorers, batch=8, identity={})
    assert rows is not None
    for n, cut in enumerate([engine.truncation, *cuts, engine.truncation]):
        own = draws[2 * n : 2 * n + 2]
        wanted = Sampler(loaded, truncation=cut).sample(
            [draw.prompt_ids for draw in own], 12, 1.0, [draw.seed for draw in own]
        )
        assert [row["ids"] for row in rows[2 * n : 2 * n + 2]] == [sample.ids for sample in wanted]
    plain = plan(build_tasks(run.eval.model_copy(update={"top_k": None})), Renderer(loaded.vocabulary), 3)
    assert fingerprint(plain[:2], {}) == fingerprint(draws[:2], {}), "of the suite, the engine's identity tells"
    assert fingerprint(plain[4:6], {}) != fingerprint(draws[4:6], {})
