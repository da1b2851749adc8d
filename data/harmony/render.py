"""Conversation -> Harmony ids with exact loss weights: one training example per action of the assistant.

An action is what the model samples in one go: analysis, preambles, and the call or the final that ends it. Its prompt
is what the server of `data.serving` writes at that point, which spells earlier actions in its own way. Rules:
docs/harmony.md and docs/serving.md.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from counterpoint.configs.data_section import OpeningSettings, RenderSettings
from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.harmony import reasons
from counterpoint.data.harmony.encoding import Grammar
from counterpoint.data.harmony.example_tree import ExampleTree, Run, TreeBuilder
from counterpoint.data.harmony.prompt import Openings
from counterpoint.data.harmony.reasons import Why, weighed
from counterpoint.data.harmony.served_messages import Served, ServedMessages, leading_of
from counterpoint.data.harmony.serving import form_of
from counterpoint.data.harmony.spans import (
    ANY_MESSAGE,
    CHANNEL_CODES,
    CONTEXT,
    ActionSpans,
    Example,
    Form,
    Span,
    SpanArrays,
    has_loss,
    placed,
    whole_spans,
)
from counterpoint.data.harmony.vocabulary import CALL, END, RETURN, Vocabulary
from counterpoint.data.harmony.window import Action, Turn, split_actions, split_turns

RENDERER_VERSION = 2
"""Raised with every change of ids or weights of any conversation: what older versions prepared is made anew."""

ChosenEffort = tuple[Effort, str]
"""A reasoning effort, and where it comes from in the words of `reasons`."""


class Renderer:
    """Writes conversations with one vocabulary and one set of settings. Not safe to share between threads.

    settings: section `data` of a run file or a part of it; settings that are not given have their defaults.
    """

    def __init__(self, vocabulary: Vocabulary, settings: OpeningSettings | None = None) -> None:
        self.vocabulary = vocabulary
        self.settings = RenderSettings() if settings is None else RenderSettings.of(settings)
        self.form = form_of(self.settings)
        self.continues = self.form.in_turn == "sampled"
        self.part_factors = {part: reasons.of_part(part, weight) for part, weight in self.settings.weights}
        # Asked for every conversation or message, so read once: a field of a section takes twice as long to read.
        identity = self.settings.identity
        self._effort: ChosenEffort = self.settings.effort, reasons.EFFORT_SETTING
        self._date = self.settings.date, reasons.DATE_SETTING
        self._identity = identity, None if identity is None else reasons.IDENTITY_SETTING
        self.finals_only = self.settings.train_on == "final"
        self.bodies_only = self.settings.missing_thinking == "final_body"
        self.grammar = Grammar(vocabulary)
        self.openings = Openings(vocabulary, self.form, self.settings.tool_schemas == "cleaned")
        self.form_of = lru_cache(maxsize=4096)(self._form_of)
        self.start_of = lru_cache(maxsize=4096)(self._start_of)

    def prompt(self, conversation: Conversation, effort: Effort | None = None) -> list[int]:
        """Ids that inference sees for this conversation; they end with `<|start|>assistant`.

        `effort` overrides the row's and the settings'.
        """
        chosen = None if effort is None else (effort, reasons.FORCED)
        return [i for span in self.prompt_spans(conversation, chosen) for i in span.ids]

    def prompt_spans(self, conversation: Conversation, effort: ChosenEffort | None = None) -> list[Span]:
        """The prompt in spans, all of them context."""
        spans = self._opening(conversation, effort or self.chosen_effort(conversation))
        written = _Written(self, conversation)
        ((_, seen),) = written.histories([len(conversation.messages)])
        return [*spans, *seen, written.prompt]

    def completion_spans(self, conversation: Conversation, start: int) -> list[Span]:
        """The assistant's messages from index `start` to the end, as sampled after the prompt of those before it.

        Headers and terminators do not name their message (`Span.message`).
        """
        size = len(conversation.messages)
        return _Written(self, conversation).target(Action(Turn(0, start, size, size), 0, start, size))[1:]

    def tool_result(self, name: str, channel: str, content: str) -> list[int]:
        """What the environment appends after a call: the result and the next `<|start|>assistant`."""
        message = Message(role="tool", content=content, name=name, channel=channel)  # pyright: ignore[reportArgumentType]
        return [*self.context(message), *self.grammar.start_assistant]

    def context(self, message: Message, body: array[int] | None = None) -> array[int]:
        """A message of the history; a late developer message is written as instructions. `body` is its encoded content,
        where the caller has it."""
        if message.role == "developer" and message.raw_ids is None:
            return self.openings.late_developer(message.content)
        return self.grammar.context(message, body, self.form.call_place, self.form.result_place)

    def examples(self, conversation: Conversation) -> list[Example]:
        """Training examples of a conversation, none for turns whose weights are all 0, nor of an unwanted answer."""
        examples: list[Example] = []
        if conversation.is_unwanted:
            return examples
        arrays = SpanArrays()
        source, notices = conversation.source, conversation.notices
        for action, spans in whole_spans(self._action_spans(conversation)):
            if has_loss(spans):
                examples.append(Example(source, action.turn.number, *arrays.of(spans), notices, action.number))
        return examples

    def tree(self, conversation: Conversation, max_tokens: int | None = None) -> tuple[ExampleTree, int]:
        """The examples of at most `max_tokens` tokens, and how many are longer. Work and memory are linear in the
        messages, where those of `examples` are quadratic."""
        builder, too_long, shared = TreeBuilder(), 0, 0
        ids, ends = array("i"), [0]
        actions = () if conversation.is_unwanted else self._action_spans(conversation)
        for action, kept, seen, target in actions:
            del ids[ends[kept] :], ends[kept + 1 :]
            shared = min(shared, len(ids))
            for span in seen:
                ids.extend(span.ids)
                ends.append(len(ids))
            if not has_loss(target):
                continue
            size = sum(len(span.ids) for span in target)
            if max_tokens is not None and len(ids) + size > max_tokens:
                too_long += 1
                continue
            new = ids[shared:]
            runs: list[Run] = []
            start = len(ids)
            for span in target:
                new.extend(span.ids)
                stop = start + len(span.ids)
                if span.channel != CONTEXT and stop > start:
                    if runs and runs[-1][1:] == (start, span.weight, span.channel):
                        runs[-1] = (runs[-1][0], stop, span.weight, span.channel)
                    else:
                        runs.append((start, stop, span.weight, span.channel))
                start = stop
            builder.add(action.turn.number, action.number, shared, np.array(new, dtype=np.int32), runs)
            shared = len(ids)
        return builder.tree(conversation.source, conversation.notices), too_long

    def targets(self, conversation: Conversation, first: int = 0) -> Iterator[Example]:
        """What the examples of a conversation train, without the prompts before it; of the actions from message `first`
        on."""
        messages, whole = conversation.messages, self.settings.train_on == "assistant"
        turns = [] if conversation.is_unwanted else split_turns(messages)
        trained = turns[-1:] if self.settings.train_on == "last_turn" else turns
        spoken = [
            i
            for turn in trained
            for i in range(max(first, turn.start), turn.trained_stop)
            if messages[i].role != "tool"
        ]
        written = _Written(self, conversation, spoken)
        for turn in trained:
            actions = [Action(turn, 0, turn.start, turn.trained_stop)] if whole else self.actions(messages, turn)
            for action in actions:
                if action.stop <= first:
                    continue
                spans = written.target(action, END if whole and turn is not turns[-1] else RETURN)
                if has_loss(spans):
                    yield Example(conversation.source, turn.number, *SpanArrays().of(spans), action=action.number)

    def spans(
        self, conversation: Conversation, turns: Container[int] | None = None, effort: ChosenEffort | None = None
    ) -> Iterator[tuple[Action, list[Span]]]:
        """The spans of every action (or of those of the turns with the numbers `turns`), untrained ones too, each with
        its message.

        It is what `counterpoint show` explains. `effort` overrides the row's and the settings'.
        """
        for action, spans in whole_spans(self._action_spans(conversation, turns, effort)):
            yield action, placed(spans)

    def trained_turns(self, conversation: Conversation) -> set[int]:
        """Numbers of the turns that have loss where their actions are the targets of examples."""
        written = _Written(self, conversation)
        turns = split_turns(conversation.messages)
        actions = (action for turn in turns for action in self.actions(conversation.messages, turn))
        return {action.turn.number for action in actions if has_loss(written.target(action))}

    def actions(self, messages: Sequence[Message], turn: Turn) -> list[Action]:
        """What is trained of a turn, an example each: its actions, or all of it where sampled ids go on."""
        if self.continues:
            return [Action(turn, 0, turn.start, turn.trained_stop)]
        return split_actions(messages, turn)

    def effort_of(self, conversation: Conversation) -> Effort:
        return self.chosen_effort(conversation)[0]

    def chosen_effort(self, conversation: Conversation) -> ChosenEffort:
        settings = self.settings
        if conversation.effort is not None:
            return conversation.effort, reasons.FROM_ROW
        thoughts = [m.content for m in conversation.messages if m.role == "assistant" and m.channel == "analysis"]
        if not thoughts and settings.missing_thinking == "effort_low":
            return "low", reasons.NO_THINKING
        if thoughts and settings.effort_buckets is not None:
            longest = max(len(self.vocabulary.encode(text)) for text in thoughts)
            low, medium = settings.effort_buckets
            effort = "low" if longest < low else "medium" if longest < medium else "high"
            return effort, reasons.by_length(low, medium)
        return self._effort

    def _action_spans(
        self,
        conversation: Conversation,
        only: Container[int] | None = None,
        effort: ChosenEffort | None = None,
    ) -> Iterator[ActionSpans]:
        """Each action to train. Messages are encoded once: later actions hold the same Span objects."""
        settings, messages = self.settings, conversation.messages
        turns = split_turns(messages)
        every = only is None and settings.train_on != "last_turn"
        written = _Written(self, conversation, range(turns[-1].trained_stop if every and turns else 0))
        opening = self._opening(conversation, effort or self.chosen_effort(conversation))
        if settings.train_on == "assistant":
            yield from self._whole(opening, turns, written)
            return
        if settings.train_on == "last_turn":
            turns = turns[-1:]
        if only is not None:
            turns = [turn for turn in turns if turn.number in only]
        actions = [action for turn in turns for action in self.actions(messages, turn)]
        histories = written.histories([action.start for action in actions])
        for first, (action, (kept, seen)) in enumerate(zip(actions, histories, strict=True)):
            target = written.target(action)
            yield (action, len(opening) + kept, seen, target) if first else (action, 0, [*opening, *seen], target)

    def _whole(self, opening: list[Span], turns: list[Turn], written: _Written) -> Iterator[ActionSpans]:
        if not turns:
            return
        spans, done = [], 0
        for turn in turns:
            spans.extend(map(written.sampled, range(done, turn.start)))
            whole = Action(turn, 0, turn.start, turn.trained_stop)
            spans.extend(written.target(whole, RETURN if turn is turns[-1] else END))
            done = turn.trained_stop
        yield Action(turns[-1], 0, turns[-1].start, turns[-1].trained_stop), 0, opening, spans

    def _form_of(
        self,
        channel: str | None,
        recipient: str | None,
        content_type: str | None,
        bare: bool,
        final_end: int,
        why: Why,
    ) -> Form:
        """bare: a final that no analysis precedes keeps its header untrained. final_end: the terminator of a final.
        why: the factors of the message, to which those of its parts come."""
        parts, is_call, is_final = self.part_factors, recipient is not None, channel == "final"
        header, body = _FIELDS["call" if is_call else channel or "final"]
        header_ids = self.grammar.header_after_role(channel, recipient, content_type, self.settings.call_style)
        unlearned = (reasons.BARE_HEADER,) if bare and is_final else ()
        end = CALL if is_call else final_end if is_final else END
        inside = (reasons.END_INSIDE,) if is_final and end == END else ()
        code = CHANNEL_CODES[channel or "context"]
        return Form(
            Span(header_ids, *weighed(*why, parts[header], *unlearned), code, ANY_MESSAGE, header),
            (*weighed(*why, parts[body]), code, body),
            Span(array("i", [end]), *weighed(*why, parts["terminators"], *inside), code, ANY_MESSAGE, "terminators"),
        )

    def _start_of(self, channel: str | None, why: Why) -> Span:
        """The `<|start|>assistant` before a message that follows another one in the same action."""
        code, part = CHANNEL_CODES[channel or "context"], "terminators"
        return Span(self.grammar.start_assistant, *weighed(*why, self.part_factors[part]), code, ANY_MESSAGE, part)

    def _opening(self, conversation: Conversation, effort: ChosenEffort) -> list[Span]:
        if conversation.opening_ids is not None:
            return [Span(array("i", conversation.opening_ids), 0.0, reasons.OWN_OPENING, CONTEXT, -1, "system")]
        level, effort_from = effort
        date, date_from = self._date
        if conversation.date is not None:
            date, date_from = conversation.date, reasons.FROM_ROW
        identity, identity_from = self._identity
        if conversation.identity is not None:
            identity, identity_from = conversation.identity, reasons.FROM_ROW
        tools = conversation.tools
        in_prompt = self.form.formats_in_prompt or self.settings.response_formats == "prompt"
        formats = conversation.response_formats if in_prompt else ()
        instructions = self._instructions(conversation)
        system = self.openings.system(level, date, identity, conversation.builtin_tools, bool(tools))
        developer = self.openings.developer(instructions, tools, formats)
        system_why = reasons.system(effort_from, date_from, identity_from)
        developer_why = reasons.developer(instructions is not None, len(tools), len(formats))
        return [
            Span(system, 0.0, system_why, CONTEXT, -1, "system"),
            Span(developer, 0.0, developer_why, CONTEXT, -1, "developer"),
        ]

    def _instructions(self, conversation: Conversation) -> str | None:
        texts = [conversation.instructions] if conversation.instructions is not None else []
        texts += [message.content for message in conversation.messages[: leading_of(conversation, self.form)]]
        if self.form.leading == "cleaned":
            texts = [text.removeprefix("# Instructions\n\n") for text in texts]
            texts = [text for text in texts if text]
        return "\n\n".join(texts) if texts else None


class _Written:
    """The messages of one conversation as spans; each text is encoded once, however many actions see it."""

    def __init__(self, renderer: Renderer, conversation: Conversation, needed: Iterable[int] = ()) -> None:
        """needed: the texts of these messages are encoded in one call."""
        self.renderer = renderer
        self.conversation = conversation
        self.messages = conversation.messages
        self.why = () if conversation.weight == 1 else (reasons.of_row(conversation.weight),)
        contents = {
            index: message.content
            for index in needed
            if (message := self.messages[index]).raw_ids is None and message.role != "developer"
        }
        encoded = renderer.vocabulary.encode_arrays([*contents.values()])
        self._bodies = dict(zip(contents, encoded, strict=True))
        self._contexts: dict[int, Span] = {}
        self._sampled: dict[int, Span] = {}
        self.prompt = Span(renderer.grammar.start_assistant, 0.0, reasons.PROMPT, CONTEXT, -2, "prompt")
        self._final_type = renderer.form.structured_final if conversation.response_formats else None

    def body(self, index: int) -> array[int]:
        ids = self._bodies.get(index)
        if ids is None:
            ids = self._bodies[index] = self.renderer.vocabulary.encode_array(self.messages[index].content)
        return ids

    def histories(self, starts: Sequence[int]) -> Iterator[tuple[int, list[Span]]]:
        """The history before the actions that begin at each of the ascending message indices `starts`: how many spans
        of the last one stay, and those that follow."""
        form = self.renderer.form
        self._served = ServedMessages(self.messages, form, leading_of(self.conversation, form))
        for kept, seen in self._served.seen(starts):
            yield kept, [self._context(item) for item in seen]

    def sampled(self, index: int) -> Span:
        """A message as it stands in the conversation, where no server writes it again."""
        span = self._sampled.get(index)
        if span is None:
            span = self._sampled[index] = self._span(index, self.messages[index])
        return span

    def _context(self, item: Served) -> Span:
        span = self._contexts.get(id(item))
        if span is None:
            span = self._contexts[id(item)] = self._span(item.index, item.message)
        return span

    def _span(self, index: int, message: Message) -> Span:
        own = message.content is self.messages[index].content and message.raw_ids is None
        body = self.body(index) if own and message.role != "developer" else None
        return Span(self.renderer.context(message, body), 0.0, reasons.CONTEXT[message.role], CONTEXT, index, "context")

    def target(self, action: Action, final_end: int = RETURN) -> list[Span]:
        """From `<|start|>assistant` to the action's last terminator; results inside are context."""
        messages, turn, stop = self.messages, action.turn, action.stop
        bare = self.renderer.bodies_only and not any(messages[i].channel == "analysis" for i in range(turn.start, stop))
        spans = [self.prompt]
        for index in range(action.start, stop):
            message = messages[index]
            why, calls = (), True
            if message.role == "tool":
                spans.append(self.sampled(index))
            else:
                why, calls = self._why_of(message), message.recipient is not None
                spans += self._trained(message, index, why, bare, final_end)
            if index + 1 == stop or messages[index + 1].role != "assistant":
                continue
            spans.append(self.prompt if calls else self.renderer.start_of(messages[index + 1].channel, why))
        return spans

    def _trained(self, message: Message, index: int, why: Why, bare: bool, final_end: int) -> tuple[Span, ...]:
        """The tokens of one assistant message after `<|start|>assistant`."""
        content_type = self._final_type if message.is_final and not message.content_type else message.content_type
        form = self.renderer.form_of(message.channel, message.recipient, content_type, bare, final_end, why)
        weight, body_why, channel, part = form.body
        if message.raw_ids is not None:
            return (Span(array("i", message.raw_ids), weight, body_why, channel, index, part),)
        return form.header, Span(self.body(index), weight, body_why, channel, index, part), form.end

    def _why_of(self, message: Message) -> Why:
        """The factors that all parts of a message share."""
        why = self.why if message.weight == 1 else (*self.why, reasons.of_message(message.weight))
        return (*why, reasons.FINALS_ONLY) if self.renderer.finals_only and not message.is_final else why


_FIELDS = {"call": ("call_header", "call_arguments"), "analysis": ("analysis", "analysis"),
           "commentary": ("preamble", "preamble"), "final": ("final", "final")}  # fmt: skip
