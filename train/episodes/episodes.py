"""Rollouts of several turns: the model samples, its call is run, the result is appended, and sampling continues.

Token ids in, token ids out, as the server writes them that `data.serving` names. Under `sampled`, what was sampled is
kept id for id; only tool results are written by the renderer, and they are masked. Any other server sees messages
alone: each action has a prompt of its own, with what was said before written again. Where the user says more after a
final, a new prompt is rendered without the earlier analysis. Whatever a tool, an environment or a model does, an
episode is returned.

Each rollout has a thread of its own: tools, users and rewards run beside each other and beside the sampling, which is
done in batches of what waits (sampling_desk.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.completion import Completion, ToolCall, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import RETURN
from counterpoint.train.episodes.environment_worker import Facts
from counterpoint.train.episodes.environments import Environments, EnvironmentSession
from counterpoint.train.episodes.routes import Routes
from counterpoint.train.episodes.said import channel_of, continued, plain, said
from counterpoint.train.episodes.sampling_desk import SamplingDesk
from counterpoint.train.episodes.tools import BuiltinPython, Ended, EpisodeEnded, InvalidRolloutError, Toolbox
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.expert_routes import ExpertRoutes, joined
from counterpoint.train.sampling.rollout import Called, Episode, EpisodeStop, Rollout, SampledRow, Turn
from counterpoint.train.sampling.sample import Sampled, sample_seed


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """action_tokens: of one action. completion_tokens: of all actions and results together. calls: of a turn.
    prompt_tokens: of a prompt that an environment writes; None sets no limit."""

    action_tokens: int = 512
    completion_tokens: int = 4096
    calls: int = 8
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What a rollout's environment is given: the row with its id, and the facts of its context."""

    row: Mapping[str, Any]
    id: str = ""
    facts: Facts = field(default_factory=Facts)


class Player(Protocol):
    """A rollout while it is played. release: ends what it holds; `closed` does so, too. abort: called from another
    thread, ends a call in progress."""

    def play(self, desk: SamplingDesk) -> None: ...
    def closed(self) -> Episode: ...
    def abort(self) -> None: ...
    def release(self) -> None: ...


class Driver(Protocol):
    """Environments whose rollouts are driven by a program of their own, which asks for every sample."""

    def player(
        self, renderer: Renderer, limits: EpisodeLimits, effort: Effort, seed: int, world: World, place: int
    ) -> Player: ...


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
    environments: Environments | Driver | Routes[Any] | None = None,
    worlds: Sequence[World] | None = None,
    after: Callable[[int, Episode], None] = lambda place, episode: None,
    stops: Callable[[], bool] | None = None,
) -> list[Episode]:
    """One episode of each prompt, in order; those that wait for a sample are sampled together.

    prompts: conversations that end where the model should answer, with the tools that are declared to it. toolbox:
    makes the tools that one rollout can call; None runs no call, and a call ends the episode. efforts: of each prompt,
    None takes the conversation's. seed: one for all, from which each derives its own by its index, or one a prompt.
    follow_ups: of each prompt, what the user says after each final; the episode is that of the last turn, or of the
    first that ends without a final. environments, worlds: gives each rollout an instance of its own, which may write
    the prompt, has tools, and says what follows a final; of several, the one that its row names. after: called for each
    episode once it has ended, in its thread, with its number. stops: SamplingStoppedError once it is true, asked after
    every action and while nothing is sampled (of a `Sampler` also after every token).
    """
    seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
    wanted = list(efforts) if efforts is not None else [None] * len(prompts)
    more = list(follow_ups) if follow_ups is not None else [()] * len(prompts)
    facts = list(worlds) if worlds is not None else [World(prompt.metadata) for prompt in prompts]
    desk = SamplingDesk(engine, temperature, stops)
    most = limits or EpisodeLimits()
    running: list[Player] = []
    for place, (prompt, effort, seed, texts, world) in enumerate(zip(prompts, wanted, seeds, more, facts, strict=True)):
        level = effort or renderer.effort_of(prompt)
        own = environments.of(world.row) if isinstance(environments, Routes) else environments
        if own is not None and not isinstance(own, Environments):
            running.append(own.player(renderer, most, level, seed, world, place))
            continue
        running.append(
            _Running(
                prompt, renderer, most, level, seed, tuple(texts),
                environments=own, world=world, make_toolbox=toolbox, place=place,
            )
        )  # fmt: skip
    episodes: list[Episode | None] = [None] * len(running)

    def ended(place: int) -> None:
        episodes[place] = episode = running[place].closed()
        after(place, episode)

    plays = [lambda each=each: each.play(desk) for each in running]
    desk.run(plays, ended, abort=lambda: [each.abort() for each in running])
    return [episode for episode in episodes if episode is not None]


@dataclass
class _Running:
    """An episode while it is sampled."""

    prompt: Conversation
    renderer: Renderer
    limits: EpisodeLimits
    effort: Effort
    seed: int
    follow_ups: tuple[str, ...] = ()
    environments: Environments | None = None
    world: World = field(default_factory=lambda: World({}))
    make_toolbox: Callable[[], Toolbox] | None = None
    place: int = 0
    turn: int = 0
    n_sampled: int = 0
    toolbox: Toolbox | None = None
    session: EnvironmentSession | None = None
    wants: ToolCall | None = None
    stop: EpisodeStop | None = None
    invalid: str | None = None
    earned: Mapping[str, float] | None = None
    earlier: list[Turn] = field(default_factory=list)
    earlier_rows: list[SampledRow] = field(default_factory=list)
    rows: list[SampledRow] = field(default_factory=list)
    asked: Conversation | None = None
    prompt_ids: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    actions: list[Completion] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    called: list[Called] = field(default_factory=list)
    completion: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    has_logprobs: bool = True
    routes: ExpertRoutes | None = None

    @property
    def served(self) -> bool:
        """Whether each action has a prompt of its own, as the server writes it that `data.serving` names."""
        return not self.renderer.continues

    @property
    def left(self) -> int:
        return self.limits.completion_tokens - len(self.completion)

    def play(self, desk: SamplingDesk) -> None:
        """From the prompt to the end. What the environment breaks makes the episode invalid."""
        try:
            self._begin()
            while self.stop is None:
                tokens = min(self.limits.action_tokens, self.left)
                self.take(desk.sample(self.place, self.context, tokens, sample_seed(self.seed, self.n_sampled)))
                self.answer()
                self.go_on()
        except InvalidRolloutError as error:
            self._is_invalid(error)
        except BaseException:
            self.release()
            raise

    def _begin(self) -> None:
        if self.environments is not None:
            self.session = self.environments.session()
            self.session.sandbox = self._sandbox
            self.prompt = self.session.reset(self.prompt, self.world.row, self.world.facts)
        self.asked = self.prompt
        self.prompt_ids = self.context = self._rendered()

    def _rendered(self) -> list[int]:
        try:
            ids = self.renderer.prompt(self.prompt, self.effort)
        except RowError as error:
            if self.session is None:
                raise
            raise InvalidRolloutError(f"the prompt cannot be written: {error}") from None
        most = self.limits.prompt_tokens
        if self.session is not None and most is not None and len(ids) > most:
            raise InvalidRolloutError(f"a prompt of {len(ids)} tokens, more than data.max_tokens ({most})")
        return ids

    def take(self, sampled: Sampled) -> None:
        """An action as it was sampled, cut where this episode's tokens end."""
        tokens = min(self.limits.action_tokens, self.left)
        ids, reason = sampled.ids, sampled.finish_reason
        if len(ids) > tokens:
            ids, reason = ids[:tokens], "length"
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
        told = sampled.logprobs and sampled.logprobs[: len(ids)]
        self._write(ids, 1, told or [])
        self.routes = joined(self.routes, sampled.routes)
        if self.served:
            self.rows.append(SampledRow(self.context, ids, [1] * len(ids), told, sampled.routes))
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
        toolbox = self._tools()
        if toolbox is None or len(self.called) >= self.limits.calls:
            self.stop = "calls"
            return
        call, self.wants = self.wants, None
        began = time.monotonic()
        try:
            result = toolbox.call(call)
        except EpisodeEnded as end:
            self._ends(end.ended)
            return
        self.called.append(Called(call, result, time.monotonic() - began))
        ids = self.renderer.tool_result(call.recipient, channel_of(call), result.content)
        if len(ids) >= self.left:
            self.stop = "length"
            return
        self._write(ids, 0)
        self._continue()

    def _continue(self) -> None:
        """The prompt of the next action. What a server could not write again is malformed."""
        if not self.served:
            self.context = [*self.prompt_ids, *self.completion]
            return
        so_far = replace(self.prompt, messages=tuple(said(self.prompt, self.actions, self.called)))
        try:
            self.context = self.renderer.prompt(so_far, self.effort)
        except RowError:
            self.stop = "malformed"

    def go_on(self) -> None:
        """The user's next message as a prompt of its own, where this turn has ended in a final."""
        if self.stop != "return" or self.actions[-1].final is None:
            return
        said = self._said_next(self.actions[-1].final)
        if said is None:
            return
        if self.environments is not None and self.turn + 1 >= self.environments.settings.turns:
            self.stop = "turns"
            return
        episode = self._episode()
        self.earlier += episode.turns
        self.earlier_rows += episode.rows
        self.prompt = continued(self.prompt, episode, said)
        self.turn, self.stop, self.has_logprobs, self.routes = self.turn + 1, None, True, None
        self.actions, self.starts, self.called = [], [], []
        self.completion, self.mask, self.logprobs, self.rows = [], [], [], []
        self.prompt_ids = self.context = self._rendered()

    def _said_next(self, final: str) -> str | None:
        if self.session is None:
            return self.follow_ups[self.turn] if self.turn < len(self.follow_ups) else None
        try:
            return self.session.respond(final, self.turn + 1)
        except EpisodeEnded as end:
            self._ends(end.ended)
            return None

    def _ends(self, ended: Ended) -> None:
        self.stop, self.earned = "environment", ended.earned

    def _is_invalid(self, error: InvalidRolloutError) -> None:
        self.stop, self.invalid = "invalid", "\n".join(filter(None, (str(error), error.trace.rstrip())))

    def closed(self) -> Episode:
        """The episode with what its environment gave; its tools and its instance end."""
        try:
            if self.session is not None and self.invalid is None and self.earned is None:
                self.earned = self.session.reward(self._rollout())
        except InvalidRolloutError as error:
            self._is_invalid(error)
        finally:
            self.release()
        return replace(
            self._episode(),
            earlier=tuple(self.earlier),
            earlier_rows=tuple(self.earlier_rows),
            asked=self.asked,
            messages=self._messages(),
            earned=self.earned or {},
            invalid=self.invalid,
            seed=self.seed,
        )

    def abort(self) -> None:
        """End a call in progress; another thread plays."""
        for holder in (self.session, self.toolbox):
            if holder is not None:
                holder.abort()

    def release(self) -> None:
        """End the tools and the instance."""
        if self.toolbox is not None:
            self.toolbox.close()
        if self.session is not None:
            self.session.close()

    def _rollout(self) -> Rollout:
        assert self.asked is not None
        assert self.stop is not None
        turns = (*self.earlier, *self._episode().turns)
        world = self.world
        return Rollout(world.row, world.id, self.effort, self.asked, turns, self.stop, self.seed, self._messages())

    def _messages(self) -> tuple[Mapping[str, str], ...]:
        """Everything from the prompt to the last message, thoughts of earlier turns among it."""
        return tuple(map(plain, said(self.prompt, self.actions, self.called)))

    def _tools(self) -> Toolbox | None:
        """The tools of this rollout, made at its first call; None where it has none."""
        if self.toolbox is None and (self.make_toolbox is not None or self.session is not None):
            own = (self.session,) if self.session is not None else ()
            self.toolbox = Toolbox((*own, *(self.make_toolbox().providers if self.make_toolbox is not None else ())))
        return self.toolbox

    def _sandbox(self) -> Any:
        """The session of the model's `python` tool, for `ctx.python`."""
        toolbox = self._tools()
        found = [] if toolbox is None else [each for each in toolbox.providers if isinstance(each, BuiltinPython)]
        return found[0].sandbox if found else None

    def _write(self, ids: Sequence[int], sampled: int, logprobs: Sequence[float | None] = ()) -> None:
        self.completion.extend(ids)
        self.mask.extend([sampled] * len(ids))
        self.logprobs.extend(logprobs[: len(ids)] or [0.0] * len(ids))

    def _episode(self) -> Episode:
        """This turn. Of an invalid one nothing is learned, but there is something to compute on."""
        assert self.stop is not None
        if self.stop == "invalid" and not self.completion:
            self._write([RETURN], 0)
        if not self.prompt_ids:
            self.prompt_ids = self.renderer.prompt(Conversation((Message("user", ""),)), self.effort)
        return Episode(
            self.prompt_ids,
            self.completion,
            [0] * len(self.mask) if self.stop == "invalid" else self.mask,
            tuple(self.actions),
            tuple(self.starts),
            tuple(self.called),
            self.stop,
            self.effort,
            self.logprobs if self.has_logprobs else None,
            self.turn,
            rows_of_actions=tuple(self.rows),
            routes=self.routes,
        )
