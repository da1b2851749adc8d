"""Conversation -> Harmony ids with exact loss weights: one training example per assistant turn.

The prompt of an example is byte-identical to what inference sees before that turn; its target holds the whole turn
(analysis, preambles, calls, final), with tool results between as masked context. Rules: docs/harmony.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from counterpoint.data.conversation import Conversation, Effort, Message, Notice
from counterpoint.data.harmony.encoding import CallStyle, Grammar
from counterpoint.data.harmony.prompt import Openings
from counterpoint.data.harmony.vocabulary import CALL, END, RETURN, Vocabulary
from counterpoint.data.harmony.window import Turn, history, split_turns

CONTEXT, ANALYSIS, COMMENTARY, FINAL = 0, 1, 2, 3
CHANNEL_NAMES = ("context", "analysis", "commentary", "final")
CHANNEL_CODES = {name: code for code, name in enumerate(CHANNEL_NAMES)}

TrainOn = Literal["turns", "last_turn", "assistant", "final"]
MissingThinking = Literal["keep", "final_body", "effort_low"]


@dataclass(frozen=True, slots=True)
class ChannelWeights:
    """Loss weights by part of an assistant message; 0 trains none of it.

    analysis, preamble, final: header and body of that kind of message. call_header: from the channel to `<|message|>`
    of a tool call; call_arguments: its body. terminators: `<|end|>`, `<|call|>`, `<|return|>`, and the
    `<|start|>assistant` of a message that follows in the same action.
    """

    analysis: float = 1.0
    preamble: float = 1.0
    call_header: float = 1.0
    call_arguments: float = 1.0
    final: float = 1.0
    terminators: float = 1.0


@dataclass(frozen=True, slots=True)
class RenderSettings:
    """How conversations are written where the row itself does not say.

    effort: of rows without one. effort_buckets: (a, b) takes low below a analysis tokens, medium below b, else high,
    for rows without an effort and with analysis. date: `YYYY-MM-DD` in every system message, "" for none.
    call_style: section of a trained call's recipient (`channel` is what gpt-oss samples).
    train_on: `turns` one example per turn; `last_turn` the last only; `final` every turn, loss on finals only;
    `assistant` one example a conversation, every assistant message trained in place and no analysis dropped (the
    `<|end|>` of a final inside it is not trained: at inference it never follows one).
    missing_thinking: for turns without analysis: `keep` trains them whole, `final_body` leaves out the header of the
    final so that answering first is not learned, `effort_low` writes effort low into the prompt.
    """

    effort: Effort = "medium"
    effort_buckets: tuple[int, int] | None = None
    date: str = "2025-06-28"
    identity: str | None = None
    call_style: CallStyle = "channel"
    weights: ChannelWeights = field(default_factory=ChannelWeights)
    train_on: TrainOn = "turns"
    missing_thinking: MissingThinking = "keep"


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    ids (N,) int32; weights (N,) float32, the loss weight of predicting ids[i], 0 = context; channels (N,) uint8, codes
    of `CHANNEL_NAMES` for the tokens of the target, `CONTEXT` elsewhere. turn counts assistant turns from 0.
    """

    source: str
    turn: int
    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    channels: npt.NDArray[np.uint8]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Ids that share their fate.

    message: index in the conversation, -1 for the opening, -2 for a `<|start|>assistant` of the prompt.
    part: `system`, `developer`, `context`, `prompt`, or a field of `ChannelWeights`.
    """

    ids: Sequence[int]
    weight: float
    channel: int
    message: int
    part: str


class Renderer:
    """Writes conversations with one vocabulary and one set of settings. Not safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary, settings: RenderSettings | None = None) -> None:
        self.vocabulary = vocabulary
        self.settings = settings or RenderSettings()
        self.grammar = Grammar(vocabulary)
        self.openings = Openings(vocabulary)

    def prompt(self, conversation: Conversation, effort: Effort | None = None) -> list[int]:
        """Ids that inference sees for this conversation; they end with `<|start|>assistant`.

        `effort` overrides the row's and the settings'.
        """
        messages = conversation.messages
        ids = [i for span in self._opening(conversation, effort or self.effort_of(conversation)) for i in span.ids]
        for index in history(messages, len(messages)):
            ids.extend(self.context(messages[index]))
        return [*ids, *self.grammar.start_assistant]

    def tool_result(self, name: str, channel: str, content: str) -> list[int]:
        """What the environment appends after a call: the result and the next `<|start|>assistant`."""
        message = Message(role="tool", content=content, name=name, channel=channel)  # pyright: ignore[reportArgumentType]
        return [*self.grammar.context(message), *self.grammar.start_assistant]

    def context(self, message: Message) -> list[int]:
        """A message as later turns see it; a late developer message is written as instructions."""
        if message.role == "developer":
            return self.openings.developer(message.content)
        return self.grammar.context(message)

    def examples(self, conversation: Conversation) -> list[Example]:
        """Training examples of a conversation, none for turns whose weights are all 0."""
        examples: list[Example] = []
        contexts: dict[int, list[int]] = {}
        for turn, spans in self._turn_spans(conversation, contexts):
            if any(span.weight > 0 for span in spans):
                examples.append(_example(conversation, turn, spans))
        return examples

    def spans(self, conversation: Conversation) -> list[tuple[Turn, list[Span]]]:
        """The spans of every turn, untrained turns too: what `counterpoint show` explains."""
        return list(self._turn_spans(conversation, {}))

    def effort_of(self, conversation: Conversation) -> Effort:
        settings = self.settings
        if conversation.effort is not None:
            return conversation.effort
        thoughts = [m.content for m in conversation.messages if m.role == "assistant" and m.channel == "analysis"]
        if not thoughts and settings.missing_thinking == "effort_low":
            return "low"
        if thoughts and settings.effort_buckets is not None:
            longest = max(len(self.vocabulary.encode(text)) for text in thoughts)
            low, medium = settings.effort_buckets
            return "low" if longest < low else "medium" if longest < medium else "high"
        return settings.effort

    def _turn_spans(
        self, conversation: Conversation, contexts: dict[int, list[int]]
    ) -> Iterator[tuple[Turn, list[Span]]]:
        settings, messages = self.settings, conversation.messages
        opening = self._opening(conversation, self.effort_of(conversation))
        turns = split_turns(messages)
        if settings.train_on == "assistant":
            yield from self._whole(conversation, opening, turns, contexts)
            return
        for turn in turns[-1:] if settings.train_on == "last_turn" else turns:
            spans = list(opening)
            for index in history(messages, turn.start):
                spans.append(self._context(messages, index, contexts))
            spans.extend(self._target(conversation, turn, contexts))
            yield turn, spans

    def _whole(
        self, conversation: Conversation, opening: list[Span], turns: list[Turn], contexts: dict[int, list[int]]
    ) -> Iterator[tuple[Turn, list[Span]]]:
        if not turns:
            return
        messages = conversation.messages
        spans, done = list(opening), 0
        for turn in turns:
            spans.extend(self._context(messages, index, contexts) for index in range(done, turn.start))
            spans.extend(self._target(conversation, turn, contexts, last=turn is turns[-1]))
            done = turn.trained_stop
        yield turns[-1], spans

    def _opening(self, conversation: Conversation, effort: Effort) -> list[Span]:
        settings = self.settings
        date = settings.date if conversation.date is None else conversation.date
        identity = settings.identity if conversation.identity is None else conversation.identity
        tools = conversation.tools
        system = self.openings.system(effort, date, identity, conversation.builtin_tools, bool(tools))
        developer = self.openings.developer(conversation.instructions, tools, conversation.response_formats)
        return [Span(system, 0.0, CONTEXT, -1, "system"), Span(developer, 0.0, CONTEXT, -1, "developer")]

    def _context(self, messages: Sequence[Message], index: int, contexts: dict[int, list[int]]) -> Span:
        ids = contexts.get(index)
        if ids is None:
            ids = contexts[index] = self.context(messages[index])
        return Span(ids, 0.0, CONTEXT, index, "context")

    def _target(
        self, conversation: Conversation, turn: Turn, contexts: dict[int, list[int]], last: bool = True
    ) -> Iterator[Span]:
        messages = conversation.messages
        bare = self.settings.missing_thinking == "final_body" and not any(
            messages[i].channel == "analysis" for i in range(turn.start, turn.trained_stop)
        )
        yield Span(self.grammar.start_assistant, 0.0, CONTEXT, -2, "prompt")
        for index in range(turn.start, turn.trained_stop):
            message = messages[index]
            if message.role == "tool":
                yield self._context(messages, index, contexts)
                if index + 1 < turn.trained_stop and messages[index + 1].role == "assistant":
                    yield Span(self.grammar.start_assistant, 0.0, CONTEXT, -2, "prompt")
                continue
            yield from self._trained(message, index, conversation.weight, bare, RETURN if last else END)
            if index + 1 < turn.trained_stop and messages[index + 1].role == "assistant":
                if message.is_call:
                    yield Span(self.grammar.start_assistant, 0.0, CONTEXT, -2, "prompt")
                    continue
                scale = message.weight * conversation.weight * self._final_only(message)
                channel = CHANNEL_CODES[messages[index + 1].channel or "context"]
                start_weight = self.settings.weights.terminators * scale
                yield Span(self.grammar.start_assistant, start_weight, channel, index, "terminators")

    def _trained(self, message: Message, index: int, scale: float, bare: bool, final_end: int) -> Iterator[Span]:
        """The tokens of one assistant message after `<|start|>assistant`; a token and its weight in the same line."""
        weights = self.settings.weights
        channel = CHANNEL_CODES[message.channel or "context"]
        scale *= message.weight * self._final_only(message)
        kind = _kind(message)
        if message.raw_ids is not None:
            yield Span(message.raw_ids, getattr(weights, kind[1]) * scale, channel, index, kind[1])
            return
        header, body = getattr(weights, kind[0]) * scale, getattr(weights, kind[1]) * scale
        if bare and message.is_final:
            header = 0.0
        end = CALL if message.is_call else final_end if message.is_final else END
        end_weight = 0.0 if message.is_final and end == END else weights.terminators * scale
        yield Span(self.grammar.header_after_role(message, self.settings.call_style), header, channel, index, kind[0])
        yield Span(self.vocabulary.encode(message.content), body, channel, index, kind[1])
        yield Span((end,), end_weight, channel, index, "terminators")

    def _final_only(self, message: Message) -> float:
        return 0.0 if self.settings.train_on == "final" and not message.is_final else 1.0


def _kind(message: Message) -> tuple[str, str]:
    """Fields of `ChannelWeights` for a message's header and body."""
    if message.is_call:
        return "call_header", "call_arguments"
    kind = {"analysis": "analysis", "commentary": "preamble"}.get(message.channel or "", "final")
    return kind, kind


def _example(conversation: Conversation, turn: Turn, spans: Sequence[Span]) -> Example:
    ids: list[int] = []
    trained: list[tuple[int, int, float, int]] = []
    for span in spans:
        start = len(ids)
        ids.extend(span.ids)
        if span.channel != CONTEXT:
            trained.append((start, len(ids), span.weight, span.channel))
    weights = np.zeros(len(ids), dtype=np.float32)
    channels = np.zeros(len(ids), dtype=np.uint8)
    for start, stop, weight, channel in trained:
        weights[start:stop] = weight
        channels[start:stop] = channel
    return Example(
        conversation.source, turn.number, np.array(ids, dtype=np.int32), weights, channels, conversation.notices
    )
