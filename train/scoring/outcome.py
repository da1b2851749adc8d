"""What a reward sees of a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from counterpoint.data.conversation import Conversation, Effort
from counterpoint.data.harmony.completion import Completion
from counterpoint.train.sampling.rollout import Called, Rollout
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
