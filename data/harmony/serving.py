"""What each server puts before the model when a client sends a conversation back: one frozen form a name.

A server does not see the tokens that it sampled, it sees the client's messages and writes them again, each in a way of
its own. `seen` gives the messages of a history as a form writes them; the renderer turns them into ids. What was
measured on which version: docs/serving.md and tests/golden/served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from counterpoint.configs.data_section import OpeningSettings, ServingName
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CONSTRAIN_JSON, Channel, Conversation, Message
from counterpoint.data.harmony.encoding import Place
from counterpoint.data.harmony.ollama_declarations import go_json


@dataclass(frozen=True, slots=True)
class ServedForm:
    """How one server writes the messages of a request.

    in_turn: `served` where a client sends the messages back between two actions, `sampled` where the sampled ids go on.
    call_place, result_place: the part of the header that holds the recipient (`bare`: none and no channel,
        `no_channel`: after the role). call_type: content type of a call to a function; "given" keeps the message's.
    result_body: a result's text, or that text as a JSON string. arguments: as the client sends them, parsed and
        written with spaces (`spaced`), the same in ASCII (`ascii`), by Go (`go`), or as a JSON string in a string
        (`quoted`).
    calls: all calls of a message, or its first only.
    merged: an API with one field each for thoughts and text, in which several are joined by line breaks; else each is
        an item of its own, in the order in which it was sampled.
    beside_call: where text next to a call goes. `commentary_first` is before the analysis, `commentary` and `final`
        behind it, `analysis` instead of it.
    reasoning: whether analysis of an open tool loop comes back. analysis_until: what ends its stay in the prompt;
        `loop` is a final, or a last message that is no result; `library` is openai-harmony's own rule.
    declarations: whose TypeScript declares the tools.
    developer: a developer message is written when it holds something, also for empty instructions (`given`), or always.
    leading: several system messages at the start are messages of their own, or one joined text, or one without their
        headings (`cleaned`). neighbours: messages of one role in a row are messages of their own, or one.
    late: later system messages are developer messages, or only those that hold something are (`filled`), or they stay
        system messages (`system`), or are developer text behind `Instructions:` (`prefixed`), or the server loses them
        or moves them to the front (`moved`): such rows are refused.
    structured_final: content type of a final that a response format constrains.
    formats_in_prompt: response formats are declared in the developer message.
    names: of users. builtin_calls: whether calls to python and browser can stand in the history.
    cleaned: schemas are rewritten before they are declared (`data.tool_schemas: cleaned`).
    evidence: the servers and versions whose ids it equals in tests/golden/served, or that it was read from source.
    """

    name: str
    in_turn: Literal["served", "sampled"] = "served"
    call_place: Literal["role", "channel"] = "role"
    call_type: str | None = "json"
    result_place: Place = "role"
    result_body: Literal["text", "json"] = "text"
    arguments: Literal["verbatim", "spaced", "ascii", "go", "quoted"] = "verbatim"
    calls: Literal["all", "first"] = "all"
    merged: bool = True
    beside_call: Literal["commentary_first", "commentary", "final", "analysis", "dropped"] = "commentary"
    reasoning: Literal["returned", "lost"] = "returned"
    analysis_until: Literal["final", "loop", "user", "library"] = "final"
    declarations: Literal["harmony", "jinja", "ollama"] = "harmony"
    developer: Literal["filled", "given", "always"] = "filled"
    leading: Literal["separate", "joined", "cleaned"] = "separate"
    neighbours: Literal["separate", "merged"] = "separate"
    late: Literal["developer", "filled", "system", "prefixed", "lost", "moved"] = "developer"
    structured_final: str | None = None
    formats_in_prompt: bool = False
    names: Literal["kept", "dropped"] = "dropped"
    builtin_calls: bool = True
    cleaned: bool = False
    evidence: str = ""


FIRST_FORM = "counterpoint_0_1"
"""What version 0.1 wrote: its run folders and prepared folders keep it."""

_HARMONY = ServedForm(
    "openai_harmony",
    call_type="given",
    developer="given",
    names="kept",
    evidence="openai-harmony 0.0.8, compared in the tests of the renderer",
)
_VLLM = ServedForm(
    "vllm",
    result_place="channel",
    beside_call="commentary_first",
    structured_final=CONSTRAIN_JSON,
    evidence="golden ids of vllm 0.33.0",
)
_TEMPLATE = ServedForm(
    "transformers",
    result_body="json",
    arguments="quoted",
    calls="first",
    beside_call="analysis",
    declarations="jinja",
    late="lost",
    builtin_calls=False,
    evidence="golden ids of transformers 5.24.0 and the official template",
)


def _named(base: ServedForm, name: str, **changes: object) -> ServedForm:
    return replace(base, name=name, **changes)  # pyright: ignore[reportArgumentType]


FORMS: Mapping[str, ServedForm] = MappingProxyType(
    {
        form.name: form
        for form in (
            _VLLM,
            _named(_VLLM, "vllm_0_30", result_place="role", evidence="golden ids of vllm 0.30.0"),
            _named(_VLLM, "vllm_responses", beside_call="final", merged=False, late="filled"),
            _TEMPLATE,
            _named(
                _TEMPLATE,
                "transformers_5_19",
                reasoning="lost",
                evidence="golden ids of transformers 5.20.2 and the official template",
            ),
            _named(
                _TEMPLATE,
                "llama_cpp",
                arguments="spaced",
                beside_call="dropped",
                evidence="golden ids of llama_cpp llama-cpp-python-0.3.36 and the official template",
            ),
            _named(
                _TEMPLATE,
                "sglang",
                arguments="spaced",
                reasoning="lost",
                evidence="golden ids of sglang 0.5.23 and the official template",
            ),
            _named(
                _VLLM,
                "sglang_responses",
                result_place="bare",
                beside_call="commentary",
                merged=False,
                analysis_until="library",
                developer="always",
                late="prefixed",
                structured_final=None,
                evidence="golden ids of sglang 0.5.23",
            ),
            _named(
                _HARMONY,
                "reference",
                call_type=None,
                beside_call="final",
                merged=False,
                developer="filled",
                late="system",
                analysis_until="loop",
                names="dropped",
                evidence="golden ids of reference 0.0.9, OpenAI's gpt_oss",
            ),
            _named(
                _HARMONY,
                "ollama",
                call_place="channel",
                call_type=CONSTRAIN_JSON,
                result_place="no_channel",
                beside_call="final",
                analysis_until="user",
                arguments="go",
                declarations="ollama",
                developer="filled",
                leading="joined",
                neighbours="merged",
                late="moved",
                names="dropped",
                builtin_calls=False,
                evidence="golden ids of ollama 0.33.0-rc2 and the library's template",
            ),
            _HARMONY,
            _named(_HARMONY, "sampled", in_turn="sampled", evidence="no server: sampled ids go on"),
            _named(
                _HARMONY,
                FIRST_FORM,
                in_turn="sampled",
                leading="cleaned",
                formats_in_prompt=True,
                cleaned=True,
                evidence="no server: what version 0.1 wrote",
            ),
        )
    }
)
"""Every form by its name, which is a value of `data.serving`."""


def form_of(settings: OpeningSettings) -> ServedForm:
    """The form that `data.serving` names, with what `data.served` says of the clients."""
    return _form_of(settings.serving, settings.served.reasoning, settings.served.arguments)


@lru_cache(maxsize=256)
def _form_of(name: ServingName, reasoning: str, arguments: str) -> ServedForm:
    changes = {"reasoning": reasoning, "arguments": arguments}
    return _named(FORMS[name], name, **{key: value for key, value in changes.items() if value != "of_server"})


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

    def seen(self, starts: Sequence[int]) -> Iterator[list[Served]]:
        """What the prompts of actions hold that begin at the ascending message indices `starts`.

        Raises RowError where the server cannot write a message before one of them.
        """
        until = self.form.analysis_until
        settled: list[Served] = []
        recent: list[Served] = []
        done = 0
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
            seen = settled + recent
            if until == "loop" and seen and seen[-1].message.role != "tool":
                seen = [item for item in seen if item.message.channel != "analysis"]
            elif until == "library":
                seen = _dropped_by_library(seen)
            yield seen

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
            fix = "move it to the front, or choose another data.serving"
            raise RowError("not_served", f"messages[{index}]", f"{form.name} {lost}", fix)
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
            raise RowError("not_served", f"messages[{start}]", what, "choose another data.serving")
        if form.in_turn == "sampled" or form.call_type == "given":
            self._items += [Served(i, self._written(messages[i], i)) for i in range(start, stop)]
            return
        place = form.beside_call if last.is_call else "final"
        thoughts = [i for i in range(start, stop) if messages[i].channel == "analysis" and not messages[i].is_call]
        texts = [i for i in range(start, stop) if i not in thoughts and not messages[i].is_call]
        if form.reasoning == "lost":
            thoughts = []
        if texts and thoughts and place == "analysis":
            what = f"{form.name} refuses a call with both text and thinking"
            fix = "set data.text_beside_call: analysis, or choose another data.serving"
            raise RowError("not_served", f"messages[{texts[0]}]", what, fix)
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
            self._items.append(Served(stop - 1, self._written(last, stop - 1)))

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
            self._items.append(Served(index, self._written(message, index)))

    def _written(self, message: Message, index: int) -> Message:
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
            raise RowError("not_served", f"messages[{index}]", what, "choose another data.serving")
        content_type = message.content_type if form.call_type == "given" else form.call_type
        content = self._arguments(message.content, index)
        if content_type != message.content_type or content is not message.content:
            message = replace(message, content_type=content_type, content=content)
        return message

    def _arguments(self, text: str, index: int) -> str:
        how = self.form.arguments
        if how == "verbatim":
            return text
        if how == "quoted":
            return json.dumps(text, ensure_ascii=False)
        try:
            arguments = json.loads(text)
            return go_json(arguments) if how == "go" else json.dumps(arguments, ensure_ascii=how == "ascii")
        except (ValueError, RecursionError, OverflowError):
            what = f"{self.form.name} parses the arguments of a call, and these are no JSON"
            raise RowError("not_served", f"messages[{index}]", what, "write a JSON object") from None


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


def _ends(message: Message) -> bool:
    """Whether an action ends with this message: nothing is sampled behind a call or a final."""
    return message.is_call or message.is_final
