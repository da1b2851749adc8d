"""Rewards that other code or another model gives, each made from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from counterpoint.configs.reward_section import CodeReward, GraderReward, JudgeReward, RewardSettings
from counterpoint.train.scoring.asking import Asking
from counterpoint.train.scoring.code_reward import CodeJudge
from counterpoint.train.scoring.function_rewards import Found
from counterpoint.train.scoring.graders import Grader
from counterpoint.train.scoring.judge import ModelJudge
from counterpoint.train.scoring.outcome import Outcome


class Judge(Protocol):
    """Thread-safe. asking: of one that asks a model. notes: what a user should know before it runs."""

    asking: Asking | None

    @property
    def notes(self) -> Sequence[str]: ...

    def missing(self, outcome: Outcome) -> str | None:
        """What the row lacks, in words; None where it can be judged."""
        ...

    def one(self, outcome: Outcome) -> Found: ...

    def close(self) -> None: ...


def judge_of(settings: RewardSettings, name: str) -> Judge | None:
    """None for a reward of another kind. ConfigError for one that cannot be used."""
    if isinstance(settings, CodeReward):
        return CodeJudge(settings, name)
    if isinstance(settings, JudgeReward):
        return ModelJudge(settings, name)
    return Grader(settings, name) if isinstance(settings, GraderReward) else None
