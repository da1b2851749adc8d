"""Numbers of rollouts in results, findings, on the page and on the terminal: base beside tuned, invalid ones apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy import stats

from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.channels import judge
from counterpoint.train.evals.findings import findings_of
from counterpoint.train.evals.report_data import Report, Side
from counterpoint.train.evals.report_page import page_of
from counterpoint.train.evals.results import cell
from counterpoint.train.evals.task_lines import task_lines
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import Reference, Scorers

VOCABULARY = load_vocabulary()
IDS = VOCABULARY.encode_with_specials(
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
)


def rows(*samples: tuple[int, int, dict[str, Any]]) -> list[dict[str, Any]]:
    """(item, number, what the rollout was)."""
    out = []
    with Scorers() as scorers:
        for item, number, more in samples:
            prompt = EvalPrompt(str(item), Conversation((Message("user", f"{item}?"),)), Reference(), None, task="sums")
            row = judge(prompt, "low", number, IDS, "stop", VOCABULARY, scorers).as_row(VOCABULARY)
            reward = more.get("rewards", {}).get("answer")
            plain = {
                "turns": 1,
                "ended": "return",
                "rewards": {},
                "reward": reward,
                "invalid": None,
                "called": [],
                "messages": [],
            }
            scored = {"score": reward, "outcome": None if reward is None else "right" if reward == 1 else "wrong"}
            out.append({**row, **scored, **plain, **more})
    return out


OK, FAULT = (
    {"name": "functions.f", "result": "1", "fault": None},
    {"name": "functions.f", "result": "e", "fault": "raised"},
)
INVALID = {"invalid": "reward: KeyError", "ended": "invalid", "score": None, "outcome": None, "reward": None}


def test_turns_calls_faults_ends_and_rewards_of_valid_rollouts() -> None:
    found = cell(
        rows(
            (1, 0, {"rewards": {"answer": 1.0, "cost": -2.0}, "reward": 0.8, "called": [OK, FAULT], "turns": 2}),
            (1, 1, {"rewards": {"answer": 0.0, "cost": -1.0}, "reward": -0.1, "ended": "calls", "called": [OK]}),
            (2, 0, {"rewards": {"answer": 1.0}, "reward": 1.0}),
            (2, 1, INVALID),
        )
    )
    numbers = found.rollouts
    assert numbers is not None
    assert (numbers.invalid.count, numbers.invalid.n, numbers.ended) == (1, 4, {"return": 2, "calls": 1})
    assert (numbers.turns, numbers.calls, numbers.faults.count, numbers.faults.n) == (pytest.approx(4 / 3), 1.0, 1, 3)
    assert {name: each.value for name, each in numbers.rewards.items()} == pytest.approx(
        {"reward": 1.7 / 3, "answer": 2 / 3, "cost": -1.5}
    )
    assert (found.samples, found.correct.n, found.right.n, found.mean_at_k and found.mean_at_k.n) == (4, 3, 3, 3)
    assert {k: (each.value, each.n) for k, each in found.pass_at.items()} == {1: (0.75, 2), 2: (1.0, 1)}
    assert {k: each.value for k, each in found.pass_hat.items()} == {1: 0.75, 2: 0.0}
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_reward_outside_of_0_and_1_has_student_s_interval_over_prompts() -> None:
    values = [-1.0, 2.0, 3.0, 5.0, 1.0]
    found = cell(rows(*((n, 0, {"rewards": {"cost": v}, "reward": v}) for n, v in enumerate(values))))
    assert found.rollouts is not None
    assert list(found.rollouts.rewards) == ["cost"], "the sum of one is left out"
    low, high = stats.t.interval(0.95, 4, loc=2.0, scale=stats.sem(values))
    assert (found.rollouts.rewards["cost"].low, found.rollouts.rewards["cost"].high) == pytest.approx((low, high))


def test_rewards_are_paired_with_the_base_s_and_told_on_page_and_terminal() -> None:
    base = rows(
        *((n, k, {"rewards": {"answer": 0.0, "cost": -1.0}, "reward": 0.0}) for n in range(12) for k in range(2))
    )
    tuned = rows(
        *(
            (n, k, {"rewards": {"answer": float(n > 0), "cost": -3.0}, "reward": float(n > 0)})
            for n in range(12)
            for k in range(2)
        ),
        (12, 0, INVALID),
    )
    report = Report("x", Side("tuned", tuned), Side("base", base))
    found = findings_of(report)
    told = {each.reward: (each.items, each.base, each.tuned, each.told) for each in found.rewards}
    assert told["answer"] == (12, 0.0, pytest.approx(11 / 12), "better")
    assert told["cost"] == (12, -1.0, -3.0, "worse")
    lines = [said.text for said in found.verdict]
    assert any(line.startswith("Reward of sums, paired by prompt: 0 to 0.917 (+0.917, 95 % interval") for line in lines)
    assert "Left out: 1 of 25 rollouts of the tuned model, whose environment or reward failed." in lines
    first, second, third = task_lines(found)
    assert first.startswith("sums, low: pass@1 0.92 [") and "pass@2 0.92" in first and "(base 0.00)" in first  # noqa: PT018
    assert second == "sums, low: 25 rollouts, 1.0 turns, 0.0 calls, ended: return 24, invalid 1"
    assert "cost -3.00" in third
    page = page_of(report, VOCABULARY, found)
    for text in (
        "Several samples of a prompt",
        "<h2>Rollouts</h2>",
        "<h3>Rewards</h3>",
        '<span class="lost">worse</span>',
    ):
        assert text in page
    numbers = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert numbers["tuned"]["tasks"][0]["rollouts"]["invalid"]["count"] == 1
    assert [each["reward"] for each in numbers["rewards"]] == ["reward", "answer", "cost"]


def test_a_task_of_invalid_rollouts_alone_is_shown() -> None:
    found = findings_of(Report("x", Side("tuned", rows((1, 0, INVALID), (2, 0, INVALID)))))
    assert found.shown.tasks[0].rollouts is not None
    assert found.shown.tasks[0].rollouts.as_dict()["invalid"]["count"] == 2
    assert page_of(Report("x", Side("tuned", rows((1, 0, INVALID)))), VOCABULARY)
