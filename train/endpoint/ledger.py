"""The calls of one rollout: each request as token ids, continuing what was sampled before wherever it goes on from it.

A request whose history is what we gave, with the same tools, followed by the results of its call, continues the sampled
ids. Any other is written anew, by the same writer as training data, each of our own replies with the thoughts and the
arguments that were sampled. Whether those are still shown is the writer's rule, as at inference.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Effort
from counterpoint.data.conversation import Message as HarmonyMessage
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.endpoint.replies import Reply, reply_of
from counterpoint.train.endpoint.requests import Asked, Message, RefusedError, called, effort_named, key_of
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.said import channel_of
from counterpoint.train.sampling.expert_routes import ExpertRoutes
from counterpoint.train.sampling.sample import Sampled, sample_seed

_AS_SENT = ConversionSettings(parallel_calls="together", unanswered="keep")
Sample = Callable[[list[int], int, Asked, int], Sampled]
"""Prompt ids, most tokens, the request, and a seed that is the request's own."""


@dataclass(eq=False)
class Call:
    """One request and its sample. keys: of the request's messages and of the reply. holds: the calls whose replies are
    in the request. after: the one from whose history it goes on; continues: its ids are the beginning of this prompt;
    results: what the client said after it. session: as the client names it. lost: the client went away before it could
    read the reply."""

    asked: Asked
    conversation: Conversation
    effort: Effort
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float | None] | None
    completion: Completion
    reply: Reply
    keys: tuple[Any, ...]
    holds: tuple[Call, ...] = ()
    after: Call | None = None
    continues: bool = False
    results: tuple[Message, ...] = ()
    session: str | None = None
    routes: ExpertRoutes | None = field(default=None, compare=False, repr=False)
    lost: bool = False

    @property
    def is_broken(self) -> bool:
        """Whether the model is why a client cannot go on: a reply that was cut, or arguments that are no object."""
        return self.reply.flaw is not None or (
            self.reply.call is not None and self.completion.calls[-1].arguments is None
        )

    @property
    def root(self) -> tuple[Any, ...]:
        """Of the conversation: what was said before the first reply."""
        end = next((n for n, key in enumerate(self.keys) if key[0] == "assistant"), len(self.keys))
        return self.keys[:end]


@dataclass
class Ledger:
    """Answers the requests of one rollout and keeps them. Thread-safe; requests may come at the same time.

    owned: sampling belongs to the run, and what a client says of it is counted as overridden. counts: requests,
    `rewritten` histories, `overridden/NAME` and `ignored/NAME` fields. failed: why the rollout says nothing. most: the
    most requests that are answered, None for any number.
    """

    renderer: Renderer
    sample: Sample
    effort: Effort
    limits: EpisodeLimits
    seed: int = 0
    owned: bool = True
    most: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: list[Call] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    failed: str | None = None
    _drawn: Counter[bytes] = field(default_factory=Counter)

    def answer(self, asked: Asked, session: str | None = None) -> Call:
        """RefusedError for a request that cannot be answered."""
        with self.lock:
            made = self._prompt(asked)
            prompt_ids, after, continues = made.prompt_ids, made.after, made.continues
            digest = hashlib.sha256(array("i", prompt_ids).tobytes()).digest()
            seed = sample_seed(self.seed, digest.hex(), self._drawn[digest])
            self._drawn[digest] += 1
        left = self.limits.completion_tokens - (len(prompt_ids) - len(_opening(made)) if continues else 0)
        sampled = Sampled([], "length")
        if left > 0:
            sampled = self.sample(prompt_ids, min(self.limits.action_tokens, left), asked, seed)
        ids = sampled.ids[: max(0, left)]
        completion = parse_completion(
            ids,
            self.renderer.vocabulary,
            tools=made.conversation.tools,
            builtin_tools=made.conversation.builtin_tools,
            effort=None if continues else made.effort,  # what follows a result may answer at once
            response_format=made.conversation.response_format,
            finish_reason=sampled.finish_reason if len(ids) == len(sampled.ids) else "length",
        )
        may_call = sum(call.reply.call is not None for call in chain(after if continues else None)) < self.limits.calls
        made.ids, made.completion, made.session = ids, completion, session
        made.logprobs = sampled.logprobs and sampled.logprobs[: len(ids)]
        made.routes = sampled.routes
        id = sample_seed(seed, "reply").to_bytes(8, "big").hex()
        made.reply = reply_of(completion, id, len(prompt_ids), asked.stop, may_call)
        made.keys = (*made.keys, key_of(made.reply.message))
        with self.lock:
            self.calls.append(made)
        return made

    def earlier(self, response: str) -> list[Message]:
        """The messages up to and with the reply of this id."""
        with self.lock:
            found = next((call for call in self.calls if f"resp_{call.reply.id}" == response), None)
        if found is None:
            raise RefusedError(f"previous_response_id: {response} was not given here", "previous_response_id")
        return [*found.asked.messages, found.reply.message]

    def _prompt(self, asked: Asked) -> Call:
        if self.most is not None and self.counts["requests"] >= self.most:
            self.failed = f"more than {self.most} requests to the model: raise `requests`, or end the package sooner"
            raise RefusedError(self.failed)
        self.counts["requests"] += 1
        self._count(asked)
        effort = self.effort if self.owned else effort_named(asked, self.effort)
        keys = tuple(key_of(self._restored(message)) for message in asked.messages)
        before = [call for call in self.calls if keys[: len(call.keys)] == call.keys]
        after = max(reversed(before), key=lambda call: len(call.keys), default=None)
        rest = asked.messages[len(after.keys) :] if after is not None else asked.messages
        ours = {call.keys[-1]: call for call in self.calls}
        holds = tuple(ours[key] for key in keys if key in ours)
        conversation = self._conversation(asked, ours)
        same = after is not None and after.asked.tools == asked.tools and after.effort == effort
        if after is not None and same and self.renderer.continues and _results_of(after, rest):
            ids, continues = self._continued(after, rest), True
        else:
            ids, continues = self._written(conversation, effort), False
            edited = self.calls and any(message["role"] == "assistant" for message in rest)
            if edited or (after is not None and not same):
                self.counts["rewritten"] += 1
        most = self.limits.prompt_tokens
        if not continues and most is not None and len(ids) > most:
            self.failed = f"a prompt of {len(ids)} tokens, more than data.max_tokens ({most})"
            raise RefusedError(self.failed, "messages", code="context_length_exceeded")
        none = parse_completion([])
        return Call(
            asked, conversation, effort, ids, [], None, none, Reply(""), keys, holds, after, continues, tuple(rest)
        )  # fmt: skip

    def _restored(self, message: Message) -> Message:
        """A call whose arguments are no object, which clients replace by one of their own, is known by its id."""
        if not message.get("tool_calls"):
            return message
        ours = {call.reply.call["id"]: call.reply.call for call in self.calls if call.reply.call and call.is_broken}
        return {**message, "tool_calls": [ours.get(call["id"], call) for call in message["tool_calls"]]}

    def _count(self, asked: Asked) -> None:
        for name in asked.wanted or {} if self.owned else ():
            self.counts[f"overridden/{name}"] += 1
        if not self.owned and asked.want("top_p", 1) != 1:
            self.counts["ignored/top_p"] += 1
        for name in asked.ignored:
            self.counts[f"ignored/{name}"] += 1

    def _conversation(self, asked: Asked, ours: Mapping[Any, Call]) -> Conversation:
        messages: list[Message] = []
        for message in asked.messages:
            call = ours.get(key_of(self._restored(message))) if message["role"] == "assistant" else None
            if call is not None and call.reply.flaw is None:
                messages.append(_as_sampled(call))
            elif message["role"] != "assistant" or message["content"] or message.get("tool_calls"):
                messages.append(message)  # of an empty reply nothing is left to show
        row: dict[str, Any] = {"messages": messages}
        if asked.tools:
            row["tools"] = list(asked.tools)
        if asked.response_format is not None:
            row["response_format"] = dict(asked.response_format)
        try:
            conversation = convert(row, "openai", _AS_SENT)
        except RowError as error:
            raise RefusedError(str(error), error.field) from None
        assert isinstance(conversation, Conversation)
        return conversation

    def _written(self, conversation: Conversation, effort: Effort) -> list[int]:
        try:
            return self.renderer.prompt(conversation, effort)
        except RowError as error:
            raise RefusedError(str(error), error.field) from None

    def _continued(self, after: Call, rest: Sequence[Message]) -> list[int]:
        """The ids that were sampled, with the result of their call and what the user says next."""
        call, renderer = after.completion.calls[-1], self.renderer
        said = [HarmonyMessage("tool", rest[0]["content"], channel_of(call), name=call.recipient)]
        for message in rest[1:]:
            said.append(HarmonyMessage("user" if message["role"] == "user" else "developer", message["content"]))
        ids = [*after.prompt_ids, *after.ids]
        for message in said:
            ids += renderer.context(message)
        return [*ids, *renderer.grammar.start_assistant]


def _results_of(call: Call, rest: Sequence[Message]) -> bool:
    """Whether these messages are the result of its call, and what users say after it."""
    if call.reply.call is None or not rest or rest[0]["role"] != "tool":
        return False
    if rest[0]["tool_call_id"] != call.reply.call["id"]:
        return False
    return all(message["role"] in ("user", "system", "developer") for message in rest[1:])


def _as_sampled(call: Call) -> Message:
    """A reply with all of its thoughts, and its arguments as they were sampled unless they are no object."""
    completion = call.completion
    message = dict(call.reply.message)
    if call.is_broken and call.reply.call is not None:
        message["tool_calls"] = [called(call.reply.call["id"], call.reply.call["function"]["name"], "{}")]
    if completion.preambles and call.reply.call is not None:
        message["content"] = "\n".join(completion.preambles)
    return message


def chain(call: Call | None) -> list[Call]:
    """The calls whose ids one row holds, up to this one, the last first."""
    out: list[Call] = []
    while call is not None:
        out.append(call)
        call = call.after if call.continues else None
    return out


def _opening(call: Call) -> list[int]:
    """The prompt of the row that a continuing call is in."""
    return chain(call)[-1].prompt_ids


def trained(calls: Sequence[Call]) -> list[Call]:
    """Calls whose reply a later request holds, and the last one of each conversation. What a retry or an edit left
    behind, and what the client did not live to read, is no part of any."""
    extended = {id(held) for call in calls for held in call.holds}
    last = {call.root: call for call in calls if not call.lost}
    return [call for call in calls if id(call) in extended or last.get(call.root) is call]


def notice_of(count: str) -> str | None:
    """What a count of a ledger means to its user; None for one that needs no word."""
    kind, _, field = count.partition("/")
    notices = {
        "overridden": f"`{field}` of a request belongs to the run, and was overridden",
        "ignored": f"`{field}` of a request has no effect",
        "rewritten": "a history that was not given was written anew",
    }
    return notices.get(kind)
