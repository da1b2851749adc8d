"""What a rollout is: the actions that were sampled, the calls that were run, and what the model read as their results.

Types alone, so that rewards read rollouts without what samples them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from counterpoint.data.conversation import Effort
from counterpoint.data.harmony.codes import Code, Violation
from counterpoint.data.harmony.completion import Completion, ToolCall

Fault = Literal["unknown_tool", "bad_arguments", "raised", "hung", "died"]
EpisodeStop = Literal["return", "length", "calls", "malformed"]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model reads. `fault` is None for a call that went well."""

    content: str
    fault: Fault | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Called:
    """A call and what the model read as its result."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class Episode:
    """One rollout.

    completion_ids: from the token after the prompt to the end, results among them; env_mask: 1 for each that was
    sampled, 0 for each that the environment wrote; logprobs: of each, 0 for what the environment wrote and None where
    the engine gave none, or None where it gives none at all. actions: what was sampled, by action, and starts: where
    each begins in completion_ids. called: the calls that were run. stop: `return` a final; `length` out of tokens;
    `calls` one more call than allowed; `malformed` neither a final nor a call that names a tool. turn: of the user
    messages that the rollout is given one after the other, the number of the one that this answers.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    env_mask: list[int]
    actions: tuple[Completion, ...]
    starts: tuple[int, ...]
    called: tuple[Called, ...]
    stop: EpisodeStop
    effort: Effort = "medium"
    logprobs: list[float | None] | None = None
    turn: int = 0

    def completion(self) -> Completion:
        """The whole episode as one typed result: all thoughts and calls, the last action's final and stop; positions of
        violations count from the episode's first token."""
        actions = self.actions
        violations: list[Violation] = []
        for number, (action, offset) in enumerate(zip(actions, self.starts, strict=True)):
            violations += [replace(v, position=v.position + offset) for v in action.violations]
            if action.final is not None and number + 1 < len(actions):
                violations.append(Violation(Code.SECOND_FINAL.value, offset, "a final before the last action"))
        thoughts = [action.analysis for action in actions if action.analysis is not None]
        names = {name for action in actions for name in action.n_tokens_by_channel}
        last = actions[-1]
        return Completion(
            analysis="\n".join(thoughts) if thoughts else None,
            preambles=tuple(text for action in actions for text in action.preambles),
            calls=tuple(call for action in actions for call in action.calls),
            final=last.final,
            unfinished=last.unfinished,
            unfinished_channel=last.unfinished_channel,
            n_tokens_by_channel={
                name: sum(a.n_tokens_by_channel.get(name, 0) for a in actions) for name in sorted(names)
            },
            stop=last.stop,
            violations=tuple(violations),
            ids=tuple(self.completion_ids),
        )
