"""What a reward sees of a rollout, in training and in evaluations alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from counterpoint.data.conversation import Conversation, Effort
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.train.sampling.rollout import Called, Episode, Rollout
from counterpoint.train.scoring.prompts import EvalPrompt, FollowUp
from counterpoint.train.scoring.scorers import Reference


@dataclass(frozen=True, slots=True)
class Outcome:
    """The typed result of all of a rollout's actions, the calls that were run, the row's truth.

    scorer: the comparison that the row asks for; None takes what fits its truth. rollout: as a function of the user's
    sees it. earned: what an environment gave, by name. row: its fields that are no part of the prompt, which is asked.
    """

    completion: Completion
    called: tuple[Called, ...]
    reference: Reference
    effort: Effort = "medium"
    scorer: str | None = None
    rollout: Rollout | None = None
    earned: Mapping[str, float] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)
    asked: Conversation | None = None


def asked_in(prompt: EvalPrompt, turn: int) -> EvalPrompt | FollowUp:
    """What holds the truth of a turn: the prompt itself of the first."""
    return prompt.follow_ups[turn - 1] if turn and prompt.follow_ups else prompt


def outcome_of(prompt: EvalPrompt, effort: Effort, episode: Episode) -> Outcome:
    """The episode with the truth of the turn in which it ended."""
    outcome = _with_truth(prompt, effort, episode.turn, episode.completion(), episode.called)
    rollout = Rollout(
        prompt.conversation.metadata, prompt.id, effort, episode.asked or prompt.conversation,
        episode.turns, episode.stop, episode.seed, episode.messages,
    )  # fmt: skip
    return replace(outcome, rollout=rollout, earned=episode.earned)


def unanswered(prompt: EvalPrompt, effort: Effort, turn: int) -> Outcome:
    """No episode, with the truth of a turn."""
    return _with_truth(prompt, effort, turn, parse_completion([]), ())


def _with_truth(
    prompt: EvalPrompt, effort: Effort, turn: int, completion: Completion, called: tuple[Called, ...]
) -> Outcome:
    asked = asked_in(prompt, turn)
    said = prompt.conversation
    return Outcome(completion, called, asked.reference, effort, asked.scorer, row=said.metadata, asked=said)
