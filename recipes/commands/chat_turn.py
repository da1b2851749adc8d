"""One turn of `chat`: sampled token by token, its calls run, and put behind the conversation."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from counterpoint.data.conversation import Conversation, Effort, Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.data.pages.visible import visible, visible_line
from counterpoint.recipes.commands.sample_view import ChannelPrinter
from counterpoint.train.episodes.episodes import EpisodeLimits, run_episodes
from counterpoint.train.episodes.said import answered
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.episodes.tools import Provider, Toolbox
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.rollout import ToolResult
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.stream import stream


class Turns:
    """Answers of a checkpoint. declared: tools whose results the user gives."""

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: Renderer,
        toolkit: Toolkit,
        declared: Sequence[Tool],
        args: argparse.Namespace,
    ) -> None:
        self.loaded, self.renderer, self.toolkit, self.args = loaded, renderer, toolkit, args
        own = {tool.name for tool in toolkit.tools}
        self.declared = tuple(tool for tool in declared if tool.name not in own)
        self.number = 0

    def answered(self, asked: Conversation, effort: Effort) -> Conversation:
        """Prints the answer to the last message; the conversation with it, without it where it is no final."""
        self.number += 1
        started = time.perf_counter()
        engine = _Spoken(self.loaded, self.args.plain)
        limits = EpisodeLimits(self.args.max_new_tokens, sys.maxsize, self.args.calls)
        (episode,) = run_episodes(
            [asked],
            self.renderer,
            engine,
            limits=limits,
            toolbox=self._toolbox,
            efforts=[effort],
            temperature=self.args.temperature,
            seed=[self.args.seed + self.number],
        )
        wrong = next((action for action in episode.actions if not action.ok), episode.actions[-1])
        engine.printer.verdict(wrong, time.perf_counter() - started)
        if episode.actions[-1].final is None:
            print(f"no answer ({episode.stop}): the message is taken back", file=sys.stderr)
            return replace(asked, messages=asked.messages[:-1])
        return answered(asked, episode)

    def _toolbox(self) -> Toolbox:
        heard = [_Heard(provider) for provider in self.toolkit.toolbox().providers]
        return Toolbox([*heard, _Asking(self.declared)] if self.declared else heard)


class _Heard:
    """A provider whose results are printed."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.tools, self.builtin_tools = provider.tools, provider.builtin_tools

    def call(self, call: ToolCall) -> ToolResult | None:
        result = self.provider.call(call)
        if result is not None:
            print(f"┃ result of {visible_line(call.recipient, 60)}\n{visible(result.content)}", flush=True)
        return result

    def close(self) -> None:
        self.provider.close()


class _Asking:
    """The user gives the results of tools that are only declared."""

    builtin_tools: tuple[str, ...] = ()

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        self.tools = tools

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.recipient.removeprefix("functions.") not in {tool.name for tool in self.tools}:
            return None
        try:
            return ToolResult(input(f"result of {call.recipient}: " if sys.stdin.isatty() else ""))
        except EOFError:
            return ToolResult("error: no result was given", "raised")

    def close(self) -> None: ...


class _Spoken:
    """An engine for one prompt at a time, each token printed as it is drawn."""

    def __init__(self, loaded: LoadedModel, plain: bool) -> None:
        self.loaded, self.plain = loaded, plain
        self.printer = ChannelPrinter(loaded.vocabulary, plain)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        (prompt,) = prompts
        self.printer = ChannelPrinter(self.loaded.vocabulary, self.plain)
        ids: list[int] = []
        first = seed if isinstance(seed, int) else seed[0]
        for id_ in stream(self.loaded, prompt, max_new_tokens, temperature, first, stop_ids):
            ids.append(id_)
            self.printer.add(id_)
        self.printer.end()
        return [Sampled(ids, "stop" if ids and ids[-1] in stop_ids else "length")]
