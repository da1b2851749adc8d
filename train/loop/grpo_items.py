"""What a group of rollouts is sampled from, and the truth that each rollout is scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.scoring.outcome import Outcome, outcome_of, unanswered
from counterpoint.train.scoring.prompts import EvalPrompt


@dataclass(frozen=True)
class Item:
    """A prompt at an effort: what a group is sampled from.

    turn: the follow-up that is learned from, 0 for the prompt itself. The turns before it are sampled as well but only
    read, because their analysis is dropped from the next prompt.
    """

    prompt: EvalPrompt
    effort: Effort
    turn: int = 0

    @property
    def follow_ups(self) -> list[str]:
        return [follow_up.text for follow_up in self.prompt.follow_ups[: self.turn]]

    def outcome(self, episode: Episode) -> Outcome:
        """The episode with the truth of the turn in which it ended."""
        return outcome_of(self.prompt, self.effort, episode)

    def unanswered(self) -> Outcome:
        """No episode, with the truth of this turn."""
        return unanswered(self.prompt, self.effort, self.turn)


def items_of(prompts: Sequence[EvalPrompt], renderer: Renderer, efforts: Sequence[Effort] = ()) -> list[Item]:
    """Each turn of each prompt, at its own effort or at every one of `efforts`."""
    return [
        Item(prompt, effort, turn)
        for prompt in prompts
        for turn in range(1 + len(prompt.follow_ups))
        for effort in (efforts or (renderer.effort_of(prompt.conversation),))
    ]
