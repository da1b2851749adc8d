"""What judges took is told beside what they gave."""

from __future__ import annotations

from typing import Any

from counterpoint.train.evals.rollout_numbers import rollout_numbers


def row(id: str, judge: float, **more: Any) -> dict[str, Any]:
    return {"id": id, "turns": 1, "called": [], "ended": "return", "rewards": {"judge": judge}, "reward": judge, **more}


def test_tokens_of_judges_are_summed_over_all_rollouts() -> None:
    numbers = rollout_numbers(
        [row("a", 0.5, judge_tokens=1200), row("b", 1.0), row("c", 0, judge_tokens=34, invalid="gone")]
    )
    assert numbers is not None
    assert (numbers.judge_tokens, numbers.as_dict()["judge_tokens"]) == (1234, 1234)
    assert numbers.rewards["judge"].value == 0.75
