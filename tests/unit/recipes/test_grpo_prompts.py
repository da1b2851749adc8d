"""Prompts of `grpo`: which are learned from, which are held out, and that none is both."""

from __future__ import annotations

from typing import Any

import pytest

from counterpoint.configs.errors import DataError
from counterpoint.configs.eval_section import SuiteSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.recipes.grpo_prompts import PromptSets, read_sets
from counterpoint.train.evals.tasks import build_tasks

SUMS = {"type": "arithmetic", "size": 60}


def sets(train: Any = SUMS, evaluation: dict[str, Any] | None = None, seed: int = 0, **data: Any) -> PromptSets:
    run = GrpoRun.model_validate(
        {
            "recipe": "grpo",
            "seed": seed,
            "data": {"train": train, **data},
            "train": {"batch_rows": 8},
            "rewards": [{"type": "answer", "scorer": "number"}],
        }
    )
    asked = [] if evaluation is None else build_tasks(SuiteSettings.model_validate({"tasks": [evaluation]}))[0].prompts
    return read_sets(run, Renderer(load_vocabulary(), run.data), evaluation=asked)


def asked(found: list[Any]) -> list[str]:
    return [prompt.conversation.messages[-1].content for prompt in found]


def test_nothing_is_held_out_where_nothing_is_named() -> None:
    found = sets()
    assert (len(found.train), found.held_out, found.lines) == (60, [], [])


def test_a_share_is_held_out_by_prompt_and_seed_whatever_the_order() -> None:
    found = sets(valid="20%")
    train, held_out = set(asked(found.train)), set(asked(found.held_out))
    assert 4 <= len(held_out) <= 24
    assert not train & held_out
    assert train | held_out == set(asked(sets().train))
    assert f"{len(found.held_out)} of 60 prompts" in found.lines[0]
    assert set(asked(sets({**SUMS, "seed": 0, "size": 40}, valid="20%").held_out)) <= held_out, "no matter the others"
    assert set(asked(sets(valid="20%", seed=1).held_out)) != held_out
    with pytest.raises(DataError, match="all rows have the same prompt"):
        sets({**SUMS, "size": 1}, valid="20%")


def test_prompts_on_both_sides_are_told_and_held_out() -> None:
    twenty = {**SUMS, "size": 20}
    found = sets(valid=twenty)
    assert not set(asked(found.train)) & set(asked(found.held_out))
    assert len(found.held_out) == 20
    assert "stand in data.train and in the held-out data alike" in found.lines[0]
    assert found.lines[0].endswith("kept there and left out of training (data.overlap)")
    kept = sets(valid={**SUMS, "size": 70}, overlap="train")
    assert not set(asked(kept.train)) & set(asked(kept.held_out))
    assert len(kept.train) == 60
    both = sets(valid=twenty, overlap="both")
    assert set(asked(both.held_out)) <= set(asked(both.train))


def test_prompts_that_the_evaluation_samples_are_not_learned_from() -> None:
    found = sets(evaluation={**SUMS, "size": 10})
    assert len(found.train) == 50
    assert "10 rows stand in data.train and in the evaluation's prompts alike" in found.lines[0]
    assert len(sets(evaluation=SUMS).train) == 60, (
        "where nothing else would be left, they are meant to be on both sides"
    )


@pytest.mark.parametrize("share", ["0%", "70%"])
def test_a_share_that_leaves_too_little_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match="more than 0% and at most 50%"):
        sets(valid=share)
