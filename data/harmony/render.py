"""Conversation -> Harmony ids with exact loss weights: one training example per assistant turn.

The prompt of an example is byte-identical to what inference sees before that turn; its target holds the whole turn
(analysis, preambles, calls, final), with tool results between as masked context. Rules: docs/harmony.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from counterpoint.data.conversation import Conversation, Effort, Message, Notice
from counterpoint.data.harmony.encoding import CallStyle, Grammar
from counterpoint.data.harmony.prompt import Openings
from counterpoint.data.harmony.vocabulary import CALL, END, RETURN, Vocabulary
from counterpoint.data.harmony.window import Turn, histories, history, split_turns

RENDERER_VERSION = 1
"""Raised with every change of ids or weights of any conversation: what older versions prepared is made anew."""

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


@dataclass(slots=True, eq=False)
class Span:
    """Ids that share their fate. Not to be changed; not frozen, because that makes it three times as slow to make.

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
        self.weights_of = _weights_of(self.settings.weights)

    def prompt(self, conversation: Conversation, effort: Effort | None = None) -> list[int]:
        """Ids that inference sees for this conversation; they end with `<|start|>assistant`.

        `effort` overrides the row's and the settings'.
        """
        return [i for span in self.prompt_spans(conversation, effort) for i in span.ids]

    def prompt_spans(self, conversation: Conversation, effort: Effort | None = None) -> list[Span]:
        """The prompt in spans, all of them context."""
        spans = self._opening(conversation, effort or self.effort_of(conversation))
        written = _Written(self, conversation)
        spans.extend(map(written.context, history(conversation.messages, len(conversation.messages))))
        return [*spans, written.prompt]

    def completion_spans(self, conversation: Conversation, start: int) -> list[Span]:
        """The assistant's messages from index `start` to the end, as sampled after the prompt of those before it."""
        size = len(conversation.messages)
        return _Written(self, conversation).target(Turn(0, start, size, size))[1:]

    def tool_result(self, name: str, channel: str, content: str) -> list[int]:
        """What the environment appends after a call: the result and the next `<|start|>assistant`."""
        message = Message(role="tool", content=content, name=name, channel=channel)  # pyright: ignore[reportArgumentType]
        return [*self.grammar.context(message), *self.grammar.start_assistant]

    def context(self, message: Message) -> array[int]:
        """A message as later turns see it; a late developer message is written as instructions."""
        if message.role == "developer" and message.raw_ids is None:
            return self.openings.developer(message.content)
        return self.grammar.context(message)

    def examples(self, conversation: Conversation) -> list[Example]:
        """Training examples of a conversation, none for turns whose weights are all 0."""
        return self.examples_within(conversation, None)[0]

    def examples_within(self, conversation: Conversation, max_tokens: int | None) -> tuple[list[Example], int]:
        """The examples of at most `max_tokens` tokens, and how many are longer."""
        examples: list[Example] = []
        too_long = 0
        arrays = _Arrays()
        for turn, spans in self._turn_spans(conversation):
            if not any(span.weight > 0 and span.ids for span in spans):
                continue
            if max_tokens is not None and sum(len(span.ids) for span in spans) > max_tokens:
                too_long += 1
                continue
            ids, weights, channels = arrays.of(spans)
            examples.append(Example(conversation.source, turn.number, ids, weights, channels, conversation.notices))
        return examples, too_long

    def spans(
        self, conversation: Conversation, turns: Container[int] | None = None
    ) -> Iterator[tuple[Turn, list[Span]]]:
        """The spans of every turn (or of those with the numbers `turns`), untrained turns too.

        It is what `counterpoint show` explains.
        """
        return self._turn_spans(conversation, turns)

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
        self, conversation: Conversation, only: Container[int] | None = None
    ) -> Iterator[tuple[Turn, list[Span]]]:
        """Spans of each turn to train. Messages are encoded once: later turns hold the same Span objects."""
        settings, messages = self.settings, conversation.messages
        turns = split_turns(messages)
        written = _Written(self, conversation)
        opening = self._opening(conversation, self.effort_of(conversation))
        if settings.train_on == "assistant":
            yield from self._whole(opening, turns, written)
            return
        if settings.train_on == "last_turn":
            turns = turns[-1:]
        if only is not None:
            turns = [turn for turn in turns if turn.number in only]
        for turn, seen in zip(turns, histories(messages, [turn.start for turn in turns]), strict=True):
            yield turn, [*opening, *map(written.context, seen), *written.target(turn)]

    def _whole(self, opening: list[Span], turns: list[Turn], written: _Written) -> Iterator[tuple[Turn, list[Span]]]:
        if not turns:
            return
        spans, done = list(opening), 0
        for turn in turns:
            spans.extend(map(written.context, range(done, turn.start)))
            spans.extend(written.target(turn, RETURN if turn is turns[-1] else END))
            done = turn.trained_stop
        yield turns[-1], spans

    def _opening(self, conversation: Conversation, effort: Effort) -> list[Span]:
        if conversation.opening_ids is not None:
            return [Span(conversation.opening_ids, 0.0, CONTEXT, -1, "system")]
        settings = self.settings
        date = settings.date if conversation.date is None else conversation.date
        identity = settings.identity if conversation.identity is None else conversation.identity
        tools = conversation.tools
        system = self.openings.system(effort, date, identity, conversation.builtin_tools, bool(tools))
        developer = self.openings.developer(conversation.instructions, tools, conversation.response_formats)
        return [Span(system, 0.0, CONTEXT, -1, "system"), Span(developer, 0.0, CONTEXT, -1, "developer")]


class _Written:
    """The messages of one conversation as spans; each text is encoded once, however many turns see it."""

    def __init__(self, renderer: Renderer, conversation: Conversation) -> None:
        self.renderer = renderer
        self.messages = conversation.messages
        self.scale = conversation.weight
        self._bodies: dict[int, array[int]] = {}
        self._contexts: dict[int, Span] = {}
        self.prompt = Span(renderer.grammar.start_assistant, 0.0, CONTEXT, -2, "prompt")

    def body(self, index: int) -> array[int]:
        ids = self._bodies.get(index)
        if ids is None:
            ids = self._bodies[index] = self.renderer.vocabulary.encode_array(self.messages[index].content)
        return ids

    def context(self, index: int) -> Span:
        """A message as later turns see it."""
        span = self._contexts.get(index)
        if span is None:
            message = self.messages[index]
            if message.raw_ids is None and message.role != "developer":
                ids = self.renderer.grammar.context(message, self.body(index))
            else:
                ids = self.renderer.context(message)
            span = self._contexts[index] = Span(ids, 0.0, CONTEXT, index, "context")
        return span

    def target(self, turn: Turn, final_end: int = RETURN) -> list[Span]:
        """From `<|start|>assistant` to the turn's last terminator, tool results between as context."""
        messages, stop = self.messages, turn.trained_stop
        bare = self.renderer.settings.missing_thinking == "final_body" and not any(
            messages[i].channel == "analysis" for i in range(turn.start, stop)
        )
        spans = [self.prompt]
        terminators = self.renderer.settings.weights.terminators
        for index in range(turn.start, stop):
            message = messages[index]
            scale, calls = 0.0, True
            if message.role == "tool":
                spans.append(self.context(index))
            else:
                scale, calls = self._scale_of(message), message.recipient is not None
                spans += self._trained(message, index, scale, bare, final_end)
            if index + 1 == stop or messages[index + 1].role != "assistant":
                continue
            if calls:
                spans.append(self.prompt)
            else:
                channel = CHANNEL_CODES[messages[index + 1].channel or "context"]
                spans.append(Span(self.prompt.ids, terminators * scale, channel, index, "terminators"))
        return spans

    def _trained(self, message: Message, index: int, scale: float, bare: bool, final_end: int) -> tuple[Span, ...]:
        """The tokens of one assistant message after `<|start|>assistant`; a token and its weight in the same line."""
        renderer, is_call, is_final = self.renderer, message.recipient is not None, message.channel == "final"
        channel = CHANNEL_CODES[message.channel or "context"]
        head, part, header, body = renderer.weights_of["call" if is_call else message.channel]
        if message.raw_ids is not None:
            return (Span(message.raw_ids, body * scale, channel, index, part),)
        if bare and is_final:
            header = 0.0
        end = CALL if is_call else final_end if is_final else END
        end_weight = 0.0 if is_final and end == END else renderer.settings.weights.terminators
        header_ids = renderer.grammar.header_after_role(message, renderer.settings.call_style)
        return (
            Span(header_ids, header * scale, channel, index, head),
            Span(self.body(index), body * scale, channel, index, part),
            Span(_ENDS[end], end_weight * scale, channel, index, "terminators"),
        )

    def _scale_of(self, message: Message) -> float:
        trained = self.renderer.settings.train_on != "final" or message.is_final
        return message.weight * self.scale if trained else 0.0


_ENDS = {end: array("i", [end]) for end in (CALL, END, RETURN)}


def _weights_of(weights: ChannelWeights) -> dict[str | None, tuple[str, str, float, float]]:
    """Fields of `ChannelWeights` for header and body of a message by its channel (or `call`), and their values."""
    fields = {"call": ("call_header", "call_arguments"), "analysis": ("analysis", "analysis")}
    fields |= {"commentary": ("preamble", "preamble"), "final": ("final", "final")}
    by_kind = {
        kind: (head, part, getattr(weights, head), getattr(weights, part)) for kind, (head, part) in fields.items()
    }
    return {**by_kind, None: by_kind["final"]}


class _Arrays:
    """Spans of one turn after the other -> arrays. Context that two turns share is laid out once."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._ends: list[int] = []
        self._ids = array("i")

    def of(self, spans: list[Span]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """ids, weights and channels of an example."""
        shared = 0
        for old, new in zip(self._spans, spans, strict=False):
            if old is not new:
                break
            shared += 1
        del self._ids[self._ends[shared - 1] if shared else 0 :], self._ends[shared:]
        changes: list[tuple[int, float, int]] = [(0, 0.0, CONTEXT)]
        weight, channel = 0.0, CONTEXT
        ids, ends = self._ids, self._ends
        for span in spans[shared:]:
            if span.weight != weight or span.channel != channel:
                weight, channel = span.weight, span.channel
                changes.append((len(ids), weight, channel))
            ids.extend(span.ids)
            ends.append(len(ids))
        self._spans = spans
        weights_N = np.zeros(len(ids), dtype=np.float32)
        channels_N = np.zeros(len(ids), dtype=np.uint8)
        changes.append((len(ids), 0.0, CONTEXT))
        for (start, weight, channel), (stop, _, _) in pairwise(changes):
            if channel != CONTEXT:
                weights_N[start:stop] = weight
                channels_N[start:stop] = channel
        return np.array(ids, dtype=np.int32), weights_N, channels_N
