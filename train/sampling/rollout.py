"""What a rollout is: the actions that were sampled, the calls that were run, and what the model read as their results.

Types alone, so that rewards read rollouts without what samples them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from counterpoint.data.conversation import Conversation, Effort
from counterpoint.data.harmony.codes import Code, Violation
from counterpoint.data.harmony.completion import Completion, ToolCall, parse_completion

Fault = Literal["unknown_tool", "bad_arguments", "raised", "hung", "died"]
MAX_RESULT_CHARS = 8_000
_CITED = re.compile(r"【([0-9]{1,9})†L([0-9]{1,9})(?:-L?([0-9]{1,9}))?】")
_DISPLAY = re.compile(r"\[([0-9]+)\] .*?(?: \((\S+)\))?\n\*\*viewing lines [^\n]*\*\*\n\n", re.DOTALL)
_SHOWN_LINE = re.compile(r"^L([0-9]+): (.*)$", re.MULTILINE)
EpisodeStop = Literal["return", "length", "calls", "malformed", "environment", "turns", "invalid"]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the model reads. `fault` is None for a call that went well; cut: characters that were left out, of those
    above `most`; trace: of a fault in Python, its traceback."""

    content: str
    fault: Fault | None = None
    cut: int = 0
    trace: str = field(default="", compare=False)
    most: int = field(default=MAX_RESULT_CHARS, compare=False)


@dataclass(frozen=True, slots=True)
class Called:
    """A call and what the model read as its result. seconds: how long it took."""

    call: ToolCall
    result: ToolResult
    seconds: float = field(default=0.0, compare=False)

    @property
    def fault(self) -> Fault | None:
        return self.result.fault


@dataclass(frozen=True, slots=True)
class Citation:
    """`【cursor†Lfirst-Llast】` in a final. url: of the page that the `browser` tool showed under this cursor, empty
    where it has none. text: the cited lines, None where the tool never showed all of them."""

    cursor: int
    first: int
    last: int
    url: str = ""
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer to one user message: the typed result of all its actions, and the calls that were run."""

    completion: Completion
    called: tuple[Called, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """A rollout as a reward sees it.

    row: its fields in the data file. id: of the row. prompt: what was asked first. turns: answers, one for each user
    message. ended: as `Episode.stop`. seed: of its sampling. messages: everything that was said, thoughts among them,
    each with role, channel, recipient or name, and content. env: for `Environment.reward` alone, the instance.
    """

    row: Mapping[str, Any]
    id: str
    effort: Effort
    prompt: Conversation
    turns: tuple[Turn, ...]
    ended: EpisodeStop
    seed: int = 0
    messages: tuple[Mapping[str, str], ...] = ()
    env: Any = None

    @property
    def completion(self) -> Completion:
        """Of the last turn."""
        return self.turns[-1].completion

    @property
    def final(self) -> str | None:
        """The last turn's final; None where it has none."""
        return self.turns[-1].completion.final if self.turns else None

    @property
    def finals(self) -> list[str]:
        """Of all turns that have one."""
        return [turn.completion.final for turn in self.turns if turn.completion.final is not None]

    @property
    def citations(self) -> list[Citation]:
        """Of all finals, with what the `browser` tool had shown there."""
        shown: dict[int, tuple[str, dict[int, str]]] = {}
        for called in self.called:
            if called.call.namespace == "browser" and (head := _DISPLAY.match(called.result.content)):
                lines = {int(line[1]): line[2] for line in _SHOWN_LINE.finditer(called.result.content, head.end())}
                shown[int(head[1])] = head[2] or "", lines
        found = []
        for cited in (cited for final in self.finals for cited in _CITED.finditer(final)):
            cursor, first, last = int(cited[1]), int(cited[2]), int(cited[3] or cited[2])
            url, lines = shown.get(cursor, ("", {}))
            whole = first <= last < first + len(lines) and all(n in lines for n in range(first, last + 1))
            text = "\n".join(lines[n] for n in range(first, last + 1)) if whole else None
            found.append(Citation(cursor, first, last, url, text))
        return found

    @property
    def called(self) -> tuple[Called, ...]:
        """All calls that were run."""
        return tuple(called for turn in self.turns for called in turn.called)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A prompt and what followed it, token by token.

    completion_ids: from the token after the prompt to the end, results among them; env_mask: 1 for each that was
    sampled, 0 for each that the environment wrote; logprobs: of each, 0 for what the environment wrote and None where
    the engine gave none, or None where it gives none at all. routes: as of `Sampled`, at least those of the
    tokens that are read before the last sampled one; or None.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    env_mask: Sequence[int]
    logprobs: Sequence[float | None] | None = None
    routes: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Episode:
    """One rollout.

    prompt_ids to logprobs, routes: of its last turn, as of `SampledRow`; rows_of_actions: where each action has a
    prompt of its own, the row of each; earlier_rows: rows of the turns before. actions: what was sampled, by action,
    and starts: where each begins in completion_ids. called: the calls that were run.
    stop: `return` a final; `length` out of tokens; `calls` one more call than allowed; `malformed` neither a final
    nor a call that names a tool; `environment` it said so; `turns` one more user message than allowed; `invalid`
    the environment failed, and `invalid` says how. turn: of the user messages that the rollout is given one after
    the other, the number of the one that this answers. earlier: the turns before it. asked: the first prompt.
    messages: what was said in all turns. earned: by name, what the environment gave. seed: of its sampling.
    requests: of a package that asked an endpoint, what was counted there.
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
    earlier: tuple[Turn, ...] = ()
    earlier_rows: tuple[SampledRow, ...] = ()
    rows_of_actions: tuple[SampledRow, ...] = ()
    asked: Conversation | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    earned: Mapping[str, float] = field(default_factory=dict)
    invalid: str | None = None
    seed: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    routes: Any = field(default=None, compare=False, repr=False)

    @property
    def rows(self) -> tuple[SampledRow, ...]:
        """Of the last turn: what was sampled, each with what the model was given."""
        whole = SampledRow(self.prompt_ids, self.completion_ids, self.env_mask, self.logprobs, self.routes)
        return self.rows_of_actions or (whole,)

    @property
    def turns(self) -> tuple[Turn, ...]:
        return (*self.earlier, Turn(self.completion(), self.called)) if self.actions else self.earlier

    def completion(self) -> Completion:
        """The whole episode as one typed result: all thoughts and calls, the last action's final and stop; positions of
        violations count from the episode's first token."""
        actions = self.actions
        if not actions:
            return parse_completion([])
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
