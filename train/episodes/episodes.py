"""Rollouts of several turns: the model samples, its call is run, the result is appended, and sampling continues.

Token ids in, token ids out. What was sampled is kept id for id and never rendered again; only tool results are written
by the renderer, and they are masked. Where the user says more after a final, a new prompt is rendered without the
earlier analysis, and a new episode follows. Whatever a tool or a model does, an episode is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.completion import Completion, ToolCall, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.tools import Toolbox
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.rollout import Called, Episode, EpisodeStop
from counterpoint.train.sampling.sample import Sampled, Sampler, SamplingStoppedError, sample_seed

BUILTIN = ("python", "browser")


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """action_tokens: of one action. completion_tokens: of all actions and results together. calls: of an episode."""

    action_tokens: int = 512
    completion_tokens: int = 4096
    calls: int = 8


def run_episodes(
    prompts: Sequence[Conversation],
    renderer: Renderer,
    engine: Engine,
    *,
    limits: EpisodeLimits | None = None,
    toolbox: Callable[[], Toolbox] | None = None,
    efforts: Sequence[Effort | None] | None = None,
    temperature: float = 1.0,
    seed: int | Sequence[int] = 0,
    follow_ups: Sequence[Sequence[str]] | None = None,
    stops: Callable[[], bool] | None = None,
) -> list[Episode]:
    """One episode of each prompt, in order; all unfinished ones are sampled together.

    prompts: conversations that end where the model should answer, with the tools that are declared to it. toolbox:
    makes the tools that one rollout can call; None runs no call, and a call ends the episode. efforts: of each prompt,
    None takes the conversation's. seed: one for all, from which each derives its own by its index, or one a prompt.
    follow_ups: of each prompt, what the user says after each final; the episode is that of the last turn, or of the
    first that ends without a final. stops: SamplingStoppedError once it is true, asked after every action and call (of
    a `Sampler` also after every token).
    """
    seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    wanted = list(efforts) if efforts is not None else [None] * len(prompts)
    more = list(follow_ups) if follow_ups is not None else [()] * len(prompts)
    running = [
        _Running(prompt, renderer, limits or EpisodeLimits(), effort or renderer.effort_of(prompt), seed, tuple(texts))
        for prompt, effort, seed, texts in zip(prompts, wanted, seeds, more, strict=True)
    ]
    with ExitStack() as stack:
        if stops is not None and isinstance(engine, Sampler):
            engine = replace(engine, stops=stops)
        while active := [episode for episode in running if episode.stop is None]:
            sampled = engine.sample(
                [episode.ids for episode in active],
                min(active[0].limits.action_tokens, max(episode.left for episode in active)),
                temperature,
                [sample_seed(episode.seed, episode.n_sampled) for episode in active],
            )
            for episode, found in zip(active, sampled, strict=True):
                if stops is not None and stops():
                    raise SamplingStoppedError
                episode.take(found)
                if episode.wants is not None and episode.toolbox is None and toolbox is not None:
                    episode.toolbox = stack.enter_context(toolbox())
                episode.answer()
                episode.go_on()
    return [episode.finished() for episode in running]


def continued(prompt: Conversation, episode: Episode, text: str) -> Conversation:
    """The conversation continued with the user's `text`; rendered, it drops earlier analysis as at inference."""
    messages = list(prompt.messages)
    called = list(episode.called)
    for action in episode.actions:
        messages += _messages(action, called)
    return replace(prompt, messages=(*messages, Message("user", text)))


@dataclass
class _Running:
    """An episode while it is sampled."""

    prompt: Conversation
    renderer: Renderer
    limits: EpisodeLimits
    effort: Effort
    seed: int
    follow_ups: tuple[str, ...] = ()
    turn: int = 0
    n_sampled: int = 0
    toolbox: Toolbox | None = None
    wants: ToolCall | None = None
    stop: EpisodeStop | None = None
    actions: list[Completion] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    called: list[Called] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    has_logprobs: bool = True

    def __post_init__(self) -> None:
        self.prompt_ids = self.renderer.prompt(self.prompt, self.effort)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt_ids, *self.completion]

    @property
    def left(self) -> int:
        return self.limits.completion_tokens - len(self.completion)

    def take(self, sampled: Sampled) -> None:
        """An action as it was sampled, cut where this episode's tokens end."""
        ids, reason = sampled.ids, sampled.finish_reason
        if len(ids) > self.left:
            ids, reason = ids[: self.left], "length"
        action = parse_completion(
            ids,
            self.renderer.vocabulary,
            tools=self.prompt.tools,
            builtin_tools=self.prompt.builtin_tools,
            # What follows a result may answer at once: only the first action must think.
            effort=self.effort if not self.actions else None,
            response_format=self.prompt.response_format,
            finish_reason=reason,
        )
        self.n_sampled += 1
        self.actions.append(action)
        self.starts.append(len(self.completion))
        self.has_logprobs = self.has_logprobs and sampled.logprobs is not None
        self._write(ids, 1, sampled.logprobs or [])
        self.wants = None
        if action.stop == "length":
            self.stop = "length"
        elif action.stop == "return":
            self.stop = "return"
        elif action.stop == "call" and action.calls and Code.CALL_WITHOUT_RECIPIENT.value not in action.codes:
            self.wants = action.calls[-1]
        else:
            self.stop = "malformed"

    def answer(self) -> None:
        """Run the call that is wanted and write its result, unless the episode is at a limit."""
        if self.wants is None:
            return
        if self.toolbox is None or len(self.called) >= self.limits.calls:
            self.stop = "calls"
            return
        call, self.wants = self.wants, None
        result = self.toolbox.call(call)
        self.called.append(Called(call, result))
        ids = self.renderer.tool_result(call.recipient, _channel_of(call), result.content)
        if len(ids) >= self.left:
            self.stop = "length"
            return
        self._write(ids, 0)

    def go_on(self) -> None:
        """The user's next message as a prompt of its own, where this turn has ended in a final."""
        if self.turn == len(self.follow_ups) or self.stop != "return" or self.actions[-1].final is None:
            return
        self.prompt = continued(self.prompt, self.finished(), self.follow_ups[self.turn])
        self.prompt_ids = self.renderer.prompt(self.prompt, self.effort)
        self.turn, self.stop, self.has_logprobs = self.turn + 1, None, True
        self.actions, self.starts, self.called = [], [], []
        self.completion, self.mask, self.logprobs = [], [], []

    def _write(self, ids: Sequence[int], sampled: int, logprobs: Sequence[float | None] = ()) -> None:
        self.completion.extend(ids)
        self.mask.extend([sampled] * len(ids))
        self.logprobs.extend(logprobs[: len(ids)] or [0.0] * len(ids))

    def finished(self) -> Episode:
        assert self.stop is not None
        return Episode(
            self.prompt_ids,
            self.completion,
            self.mask,
            tuple(self.actions),
            tuple(self.starts),
            tuple(self.called),
            self.stop,
            self.effort,
            self.logprobs if self.has_logprobs else None,
            self.turn,
        )


def _channel_of(call: ToolCall) -> str:
    """A result carries the channel of its call; of a call without one, the channel that its tool belongs to."""
    if call.channel in ("analysis", "commentary"):
        return call.channel
    return "analysis" if call.recipient.partition(".")[0] in BUILTIN else "commentary"


def _messages(action: Completion, called: list[Called]) -> list[Message]:
    """An action's messages, and the result of the call that was run; takes that one off `called`."""
    out: list[Message] = []
    if action.analysis:
        out.append(Message("assistant", action.analysis, "analysis"))
    out += [Message("assistant", text, "commentary") for text in action.preambles]
    if action.stop == "call" and called:
        call, result = called[0].call, called.pop(0).result
        channel = "analysis" if _channel_of(call) == "analysis" else "commentary"
        kind = "<|constrain|>json" if call.arguments is not None else None
        out.append(Message("assistant", call.arguments_text, channel, call.recipient, content_type=kind))
        out.append(Message("tool", result.content, channel, name=call.recipient))
    if action.final is not None:
        out.append(Message("assistant", action.final, "final"))
    return out
