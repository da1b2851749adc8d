"""Whether each token of a conversation is trained, with the reason in words: what `counterpoint show` prints.

Pure: a conversation and a renderer in, plain values out. Names and texts are the row's own;
`counterpoint.data.pages.visible` makes them safe to print.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from counterpoint.data.conversation import Conversation, Effort, Message, Notice, Preference
from counterpoint.data.harmony import reasons
from counterpoint.data.harmony.reasons import OPENS, Named
from counterpoint.data.harmony.render import ChosenEffort, Renderer
from counterpoint.data.harmony.spans import CHANNEL_NAMES, CONTEXT, Span
from counterpoint.data.harmony.vocabulary import START
from counterpoint.data.harmony.window import Action, Turn, split_turns


@dataclass(frozen=True, slots=True)
class ExplainedSpan:
    """Tokens of one example that are treated alike.

    kind: `system`, `developer`, `user`, `tool`, `assistant` (all context), `prompt`, or a field of `ChannelWeights` for
    a part of the target. channel: of the target, `context` elsewhere. position: of its first token in the example.
    reason: why it is masked, or weighs other than 1; "" for what is trained with weight 1.
    """

    ids: Sequence[int]
    weight: float
    channel: str
    position: int
    kind: str
    reason: str

    @property
    def trained(self) -> bool:
        return self.weight > 0


@dataclass(frozen=True, slots=True)
class Block:
    """One message in an example, or the place of messages that are not in it (then without spans).

    label: `system`, `developer`, `user`, `tool`, `analysis`, `preamble`, `call`, `final`, `prompt`; `dropped` or `left
    out` for messages that are not there. name: of the tool that is called or answers. message: index in the
    conversation, -1 for tokens that belong to no message. channel: of the message, trained or not; `context` where it
    has none. missing: messages that are not there. note: why. again: a call of the same turn, which a server writes in
    another way than it was sampled.
    """

    label: str
    message: int
    channel: str = "context"
    name: str = ""
    spans: tuple[ExplainedSpan, ...] = ()
    missing: Named = ()
    note: str = ""
    again: bool = False

    @property
    def trained(self) -> bool:
        return any(span.trained for span in self.spans)

    @property
    def reasons(self) -> list[str]:
        """The note and the reasons of the spans, each once, in order."""
        own = dict.fromkeys((self.note, *(span.reason for span in self.spans)))
        return [r for r in own if r and not (r.startswith(OPENS) and r.removeprefix(OPENS).lstrip(": ") in own)]

    @property
    def n_tokens(self) -> int:
        return sum(len(span.ids) for span in self.spans)


@dataclass(frozen=True, slots=True)
class ExplainedExample:
    """One training example, or what would be one.

    turn: counts assistant turns from 0, None for a prompt. action, actions: number of the action in its turn from 0,
    and how many the turn has. whole: all turns up to this one are its target. side: `chosen` or `rejected` of a
    preference pair, else "". trained: tokens with a weight above 0, by channel. left_out: why training does not see it;
    "" where it does.
    """

    turn: int | None
    blocks: tuple[Block, ...]
    trained: Counter[str]
    action: int = 0
    actions: int = 1
    whole: bool = False
    side: str = ""
    left_out: str = ""

    @property
    def n_tokens(self) -> int:
        return sum(block.n_tokens for block in self.blocks)

    @property
    def n_trained(self) -> int:
        return self.trained.total()


@dataclass(frozen=True, slots=True)
class Explained:
    """A row. kind: `conversation`, `prompt` (nothing to train) or `preference`. turns: assistant turns in it."""

    source: str
    format: str
    kind: str
    effort: Effort
    effort_reason: str
    turns: int
    notices: tuple[Notice, ...]
    examples: tuple[ExplainedExample, ...]

    @property
    def notice_counts(self) -> list[tuple[Notice, int]]:
        """The first notice of each kind, and how many there are of it."""
        first = {notice.kind: notice for notice in reversed(self.notices)}
        counts = Counter(notice.kind for notice in self.notices)
        return [(first[kind], count) for kind, count in counts.items()]


def explain(
    item: Conversation | Preference,
    renderer: Renderer,
    *,
    effort: Effort | None = None,
    max_tokens: int | None = None,
    turns: Container[int] | None = None,
) -> Explained:
    """What training makes of a row.

    effort: in place of the row's. max_tokens: `data.max_tokens`. turns: numbers of the turns to explain (from 0), all
    where None; `Explained.turns` counts them all. Raises RowError where the row cannot be rendered.
    """
    conversation = item.prompt if isinstance(item, Preference) else item
    chosen = renderer.chosen_effort(conversation) if effort is None else (effort, reasons.FORCED)
    if isinstance(item, Preference):
        kind, examples = "preference", _sides(item, renderer, chosen, max_tokens)
    elif split_turns(conversation.messages):
        kind, examples = "conversation", _Explainer(conversation, renderer, chosen, max_tokens).examples(turns)
    else:
        kind, examples = "prompt", [_Explainer(conversation, renderer, chosen, max_tokens).prompt()]
    return Explained(
        conversation.source,
        conversation.format,
        kind,
        *chosen,
        len(split_turns(conversation.messages)),
        conversation.notices,
        tuple(examples),
    )


def _sides(
    pair: Preference, renderer: Renderer, effort: ChosenEffort, max_tokens: int | None
) -> list[ExplainedExample]:
    """Both sides of a pair; what they share is context."""
    sides = []
    # The actions of a side are one completion, in which sampled ids go on.
    changes = {"train_on": "last_turn"}
    last_turn = Renderer(renderer.vocabulary, renderer.settings.model_copy(update=changes))
    last_turn.continues = True
    last_turn.openings = renderer.openings
    shared = tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in pair.prompt.messages)
    for side, messages in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        whole = replace(pair.prompt, messages=(*shared, *messages))
        explainer = _Explainer(whole, last_turn, effort, max_tokens, shared=len(shared))
        sides.extend(replace(example, side=side) for example in explainer.examples())
    return sides


class _Explainer:
    def __init__(
        self,
        conversation: Conversation,
        renderer: Renderer,
        effort: ChosenEffort,
        max_tokens: int | None,
        shared: int = 0,
    ) -> None:
        self.conversation = conversation
        self.messages = conversation.messages
        self.renderer = renderer
        self.train_on = renderer.settings.train_on
        self.turns = split_turns(conversation.messages)
        self.turn_of = {i: turn for turn in self.turns for i in range(turn.start, turn.trained_stop)}
        self.effort = effort
        self.max_tokens = max_tokens
        self.shared = shared

    def examples(self, turns: Container[int] | None = None) -> list[ExplainedExample]:
        spans_of_actions = self.renderer.spans(self.conversation, turns, self.effort)
        return [self._example(action, spans) for action, spans in spans_of_actions]

    def prompt(self) -> ExplainedExample:
        spans = self.renderer.prompt_spans(self.conversation, self.effort)
        blocks = self._blocks(spans, None)
        dropped = set(range(len(self.messages))) - {span.message for span in spans}
        return ExplainedExample(
            None, tuple(self._with_gaps(blocks, dropped)), Counter(), left_out=reasons.prompt_only(self.messages)
        )

    def _example(self, action: Action, spans: Sequence[Span]) -> ExplainedExample:
        turn = action.turn
        whole = self.train_on == "assistant"
        seen = set(range(action.start)) if whole else {span.message for span in spans}
        blocks = self._with_gaps(self._blocks(spans, None if whole else action), set(range(action.start)) - seen)
        actions = self.renderer.actions(self.messages, turn)
        if action.number + 1 == len(actions):
            blocks.extend(self._after(turn))
        trained: Counter[str] = Counter()
        for block in blocks:
            for span in block.spans:
                if span.trained:
                    trained[span.channel] += len(span.ids)
        n_tokens = sum(block.n_tokens for block in blocks)
        left_out = reasons.left_out(trained.total(), n_tokens, self.max_tokens)
        return ExplainedExample(
            turn.number, tuple(blocks), trained, action.number, len(actions), whole=whole, left_out=left_out
        )

    def _blocks(self, spans: Iterable[Span], action: Action | None) -> list[Block]:
        """A block for each `<|start|>`; `action` is what is trained, None where context has no earlier turns."""
        groups: list[list[Span]] = []
        for span in spans:
            if not span.ids:
                continue
            if not groups or span.ids[0] == START:
                groups.append([])
            groups[-1].append(span)
        blocks, position = [], 0
        for group in groups:
            explained = []
            for span in group:
                explained.append(self._span(span, position, action))
                position += len(span.ids)
            blocks.append(self._block(group[-1], tuple(explained), action))
        return blocks

    def _block(self, span: Span, spans: tuple[ExplainedSpan, ...], action: Action | None) -> Block:
        if span.message < 0:
            return Block(span.part, -1, spans=spans)
        message = self.messages[span.message]
        name = message.recipient or (message.name if message.role == "tool" else None) or ""
        again = action is not None and span.part == "context" and message.is_call and span.message >= action.turn.start
        return Block(label_of(message), span.message, message.channel or "context", name, spans, again=again)

    def _span(self, span: Span, position: int, action: Action | None) -> ExplainedSpan:
        kind, reason = span.part, span.why[0].text if span.why else ""
        if span.channel != CONTEXT:
            sampled = self.messages[span.message].raw_ids is not None
            reason = reasons.target(span.weight, span.why, span.ids[0] == START, sampled)
            if span.message < self.shared:
                reason = reasons.SHARED
        elif span.part == "context":
            kind, reason = self.messages[span.message].role, self._context_reason(span, action)
        return ExplainedSpan(span.ids, span.weight, CHANNEL_NAMES[span.channel], position, kind, reason)

    def _context_reason(self, span: Span, action: Action | None) -> str:
        """`Span.why`, which later turns share, with what the place in this example adds to it."""
        role, own = self.messages[span.message].role, self.turn_of.get(span.message)
        if role == "tool" and (own is None or (action is not None and own.number != action.turn.number)):
            return reasons.EARLIER_RESULT
        if role != "assistant":
            return span.why[0].text
        if own is None:
            return reasons.UNFINISHED_CONTEXT
        if span.message < self.shared:
            return reasons.SHARED
        if action is not None and own.number == action.turn.number:
            return reasons.earlier_action(self.renderer.form.name)
        return reasons.earlier_turn(own.number, self.train_on == "last_turn", own.number in self._trained_turns)

    @cached_property
    def _trained_turns(self) -> set[int]:
        return self.renderer.trained_turns(self.conversation)

    def _with_gaps(self, blocks: list[Block], dropped: set[int]) -> list[Block]:
        """The blocks, with one more block wherever messages were dropped."""
        out: list[Block] = []
        rest = sorted(dropped, reverse=True)
        for block in blocks:
            reached = block.message if block.message >= 0 else len(self.messages) if block.label == "prompt" else 0
            gap = []
            while rest and rest[-1] < reached:
                gap.append(rest.pop())
            if gap:
                missing = self._named(gap)
                out.append(Block("dropped", -1, missing=missing, note=reasons.dropped(missing)))
            out.append(block)
        return out

    def _after(self, turn: Turn) -> list[Block]:
        """Blocks for the messages after the target that no later example shows in their place."""
        stop = len(self.messages) if turn.number == self.turns[-1].number else turn.stop
        groups = groupby(
            range(turn.trained_stop, stop), key=lambda i: (self.messages[i].role == "assistant", i < turn.stop)
        )
        blocks = []
        for (says, in_turn), group in groups:
            missing = self._named(group)
            note = reasons.unfinished(missing) if says else reasons.behind(missing, in_turn)
            blocks.append(Block("left out", -1, missing=missing, note=note))
        return blocks

    def _named(self, indices: Iterable[int]) -> Named:
        return tuple((i, reasons.what(self.messages[i])) for i in indices)


def label_of(message: Message) -> str:
    """The word for a message in margins and headings."""
    if message.role != "assistant":
        return message.role
    if message.is_call:
        return "call"
    return {"analysis": "analysis", "commentary": "preamble"}.get(message.channel or "", "final")
