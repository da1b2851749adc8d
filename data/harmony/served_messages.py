"""The messages of a conversation as a server's form writes them; the renderer turns them into ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Channel, Conversation, Message
from counterpoint.data.harmony.ollama_declarations import go_json
from counterpoint.data.harmony.serving import ServedForm


def leading_of(conversation: Conversation, form: ServedForm) -> int:
    """How many messages at the start of a conversation are a part of the instructions that open its prompt."""
    count = 0
    for message in conversation.messages:
        if message.role != "developer" or message.raw_ids is not None or (message.name and form.names == "kept"):
            break
        count += 1
    if form.leading == "separate":  # A name, which the server drops, is why it is no instruction already.
        named = count and conversation.instructions is None and conversation.messages[0].name is not None
        return 1 if named else 0
    return count


@dataclass(frozen=True, slots=True)
class Served:
    """A message as a server writes it. index: of the message in the conversation that it comes from."""

    index: int
    message: Message


class ServedMessages:
    """The messages of a conversation as a form writes them, but for the first `leading`, which open the prompt."""

    def __init__(self, messages: Sequence[Message], form: ServedForm, leading: int = 0) -> None:
        self.form = form
        self._items: list[Served] = []
        self._begins: dict[int, int] = dict.fromkeys(range(leading), 0)
        self._called = ""
        self._refused: tuple[int, RowError] | None = None
        try:
            self._write(messages, leading)
        except RowError as error:
            self._refused = len(self._begins) and max(self._begins), error
        self._begins[len(messages)] = len(self._items)

    def _write(self, messages: Sequence[Message], index: int) -> None:
        while index < len(messages):
            self._begins[index] = len(self._items)
            stop = index + 1
            if messages[index].role == "assistant":
                while not _ends(messages[stop - 1]) and stop < len(messages) and messages[stop].role == "assistant":
                    stop += 1
                self._action(messages, index, stop)
            else:
                self._other(messages, index)
            index = stop

    def seen(self, starts: Sequence[int]) -> Iterator[tuple[int, list[Served]]]:
        """What the prompts of actions hold that begin at the ascending message indices `starts`: how many of the
        messages before the last of these stay, and those that follow.

        Raises RowError where the server cannot write a message before one of them.
        """
        until = self.form.analysis_until
        settled: list[Served] = []
        recent: list[Served] = []
        done = stays = 0
        before: list[Served] = []
        for start in starts:
            if self._refused is not None and self._refused[0] < start:
                raise self._refused[1]
            stop = self._begins[start]
            for item in self._items[done:stop]:
                message = item.message
                if message.role == "user" if until == "user" else until != "library" and message.is_final:
                    settled += [old for old in recent if old.message.channel != "analysis"]
                    recent.clear()
                recent.append(item)
            done = stop
            tail = settled[stays:] + recent
            if until == "loop" and recent and recent[-1].message.role != "tool":
                tail = [item for item in tail if item.message.channel != "analysis"]
            elif until == "library":
                tail = _dropped_by_library(tail)
            same = len(before)
            if tail[:same] != before:
                same = next((n for n, (a, b) in enumerate(zip(before, tail, strict=False)) if a is not b), len(tail))
            yield stays + same, tail[same:]
            before = tail[len(settled) - stays :]
            stays = len(settled)

    def _other(self, messages: Sequence[Message], index: int) -> None:
        form, message = self.form, messages[index]
        if message.raw_ids is not None:
            pass
        elif message.role == "tool":
            if form.calls == "first" and self._called:
                message = replace(message, name=self._called)
            if form.result_body == "json":
                message = replace(message, content=json.dumps(message.content, ensure_ascii=False))
        elif message.role == "developer" and form.late in ("lost", "moved"):
            lost = "loses a late system message" if form.late == "lost" else "moves a late system message to the front"
            fix = "join it with the first one, or choose another data.serving"
            raise RowError("not_served", _told(messages[index]), f"{form.name} {lost}", fix)
        elif message.role == "developer" and form.late == "filled" and not message.content:
            return
        elif message.name is not None and form.names == "dropped":
            message = replace(message, name=None)
        if form.neighbours == "merged" and index and _is_user(message) and _is_user(messages[index - 1]):
            before = self._items.pop()
            text = f"{before.message.content}\n\n{message.content}"
            index, message = before.index, replace(before.message, content=text)
        self._items.append(Served(index, message))

    def _action(self, messages: Sequence[Message], start: int, stop: int) -> None:
        """What a client sends as one message: thoughts, texts, and the call or the answer that ends it."""
        form = self.form
        last = messages[stop - 1]
        parallel = last.is_call and start == stop - 1 and start > 0 and messages[start - 1].is_call
        if parallel and form.calls == "first":
            return
        if form.neighbours == "merged" and not parallel and start and messages[start - 1].role == "assistant":
            what = f"{form.name} makes one of two assistant messages in a row, and loses thoughts and calls"
            raise RowError("not_served", _told(messages[start]), what, "choose another data.serving")
        if form.in_turn == "sampled" or form.call_type == "given":
            self._items += [Served(i, self._written(messages[i])) for i in range(start, stop)]
            return
        place = form.beside_call if last.is_call else "final"
        thoughts = [i for i in range(start, stop) if messages[i].channel == "analysis" and not messages[i].is_call]
        texts = [i for i in range(start, stop) if i not in thoughts and not messages[i].is_call]
        if form.reasoning == "lost":
            thoughts = []
        if texts and thoughts and place == "analysis":
            what = f"{form.name} refuses a call with both text and thinking"
            fix = "set data.text_beside_call: analysis, or choose another data.serving"
            raise RowError("not_served", _told(messages[texts[0]]), what, fix)
        if thoughts and place == "dropped":
            texts = []
        said: list[tuple[int, Channel | None]] = [(i, _CHANNELS[place]) for i in texts]
        thought: list[tuple[int, Channel | None]] = [(i, "analysis") for i in thoughts]
        if form.merged:
            parts = (said, thought) if place == "commentary_first" else (thought, said)
            for part in parts:
                self._say(messages, part)
        else:
            for one in sorted(said + thought):
                self._say(messages, [one])
        if last.is_call:
            self._items.append(Served(stop - 1, self._written(last)))

    def _say(self, messages: Sequence[Message], parts: Sequence[tuple[int, Channel | None]]) -> None:
        """Texts of one kind as one message, as an API's field holds them."""
        if not parts:
            return
        index, channel = parts[0]
        message = messages[index]
        if len(parts) > 1 or message.channel != channel:
            text = "\n".join(messages[i].content for i, _ in parts if messages[i].content)
            message = replace(message, channel=channel, content=text, raw_ids=None)
        if message.content or not self.form.merged:
            self._items.append(Served(index, self._written(message)))

    def _written(self, message: Message) -> Message:
        form = self.form
        if message.raw_ids is not None and form.in_turn == "served":
            message = replace(message, raw_ids=None)
        if message.name is not None and form.names == "dropped":
            message = replace(message, name=None)
        if not message.is_call:
            return message if message.content_type is None else replace(message, content_type=None)
        if form.in_turn == "sampled":
            return message
        recipient = message.recipient or ""
        self._called = recipient
        if not recipient.startswith("functions."):
            if form.builtin_calls:
                return message
            what = f"{form.name} has no calls to built-in tools in its history"
            raise RowError("not_served", _told(message), what, "choose another data.serving")
        content_type = message.content_type if form.call_type == "given" else form.call_type
        content = self._arguments(message)
        if content_type != message.content_type or content is not message.content:
            message = replace(message, content_type=content_type, content=content)
        return message

    def _arguments(self, call: Message) -> str:
        how, text = self.form.arguments, call.content
        if how == "verbatim":
            return text
        if how == "quoted":
            return json.dumps(text, ensure_ascii=False)
        try:
            arguments = json.loads(text)
            return go_json(arguments) if how == "go" else json.dumps(arguments, ensure_ascii=how == "ascii")
        except (ValueError, RecursionError, OverflowError):
            what = f"{self.form.name} parses the arguments of a call, and these are no JSON"
            raise RowError("not_served", _told(call), what, "write a JSON object") from None


_CHANNELS: Mapping[str, Channel | None] = {
    "commentary_first": "commentary",
    "commentary": "commentary",
    "final": "final",
    "analysis": "analysis",
    "dropped": "analysis",
}


def _dropped_by_library(seen: list[Served]) -> list[Served]:
    """openai-harmony's own rule: behind a final, the analysis before the first final goes; in a loop nothing does."""
    said = [item for item in seen if item.message.role == "assistant"]
    if not said or not said[-1].message.is_final:
        return seen
    first = next(i for i, item in enumerate(seen) if item.message.is_final)
    return [item for i, item in enumerate(seen) if i > first or item.message.channel != "analysis"]


def _is_user(message: Message) -> bool:
    return message.role == "user" and message.raw_ids is None


def _told(message: Message) -> str:
    """A message by what it is and says: a row may number its messages otherwise."""
    text = message.content if len(message.content) <= 40 else f"{message.content[:40]}..."
    if message.is_call:
        return f"call to {message.recipient} {text!r}"
    role = "system" if message.role == "developer" else message.role
    return f"{role} message {text!r}"


def _ends(message: Message) -> bool:
    """Whether an action ends with this message: nothing is sampled behind a call or a final."""
    return message.is_call or message.is_final
