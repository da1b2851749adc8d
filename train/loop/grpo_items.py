"""What a group of rollouts is sampled from, and the truth that each rollout is scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.sampling.rollout import Called, Episode, Rollout
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Outcome


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
        outcome = self._with_truth(episode.turn, episode.completion(), episode.called)
        rollout = Rollout(
            self.prompt.conversation.metadata, self.prompt.id, self.effort, episode.asked or self.prompt.conversation,
            episode.turns, episode.stop, episode.seed, episode.messages,
        )  # fmt: skip
        return replace(outcome, rollout=rollout, earned=episode.earned)

    def unanswered(self) -> Outcome:
        """No episode, with the truth of this turn."""
        return self._with_truth(self.turn, parse_completion([]), ())

    def _with_truth(self, turn: int, completion: Completion, called: tuple[Called, ...]) -> Outcome:
        asked = self.prompt.follow_ups[turn - 1] if turn and self.prompt.follow_ups else self.prompt
        row, said = self.prompt.conversation.metadata, self.prompt.conversation
        return Outcome(completion, called, asked.reference, self.effort, asked.scorer, row=row, asked=said)


def items_of(prompts: Sequence[EvalPrompt], renderer: Renderer, efforts: Sequence[Effort] = ()) -> list[Item]:
    """Each turn of each prompt, at its own effort or at every one of `efforts`."""
    return [
        Item(prompt, effort, turn)
        for prompt in prompts
        for turn in range(1 + len(prompt.follow_ups))
        for effort in (efforts or (renderer.effort_of(prompt.conversation),))
    ]
