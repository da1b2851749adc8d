"""The recorded calls of a rollout as the episode that training, reports and rewards read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import RETURN
from counterpoint.train.endpoint.ledger import Call, trained
from counterpoint.train.endpoint.rows import Row, rows_of
from counterpoint.train.episodes.said import plain_messages
from counterpoint.train.sampling.rollout import Called, Episode, EpisodeStop, ToolResult


def episode_of(
    calls: Sequence[Call], effort: Effort, seed: int, earned: Mapping[str, float], counts: Mapping[str, int]
) -> Episode:
    """Row by row, each of which is learned from; the rows before the last are its earlier turns.

    counts: of the endpoint. calls: at least one.
    """
    kept = trained(calls)
    kept = kept or [calls[-1]]
    results = {id(call.after): call.results for call in kept if call.after is not None}
    *before, last = [_episode(row, kept, results, effort, seed) for row in rows_of(kept)]
    return replace(
        last,
        earlier=tuple(turn for each in before for turn in each.turns),
        earlier_rows=tuple(row for each in before for row in each.rows),
        turn=len(before),
        asked=kept[0].conversation,
        messages=_messages(kept[-1]),
        earned=earned,
        requests={**counts, "orphans": len(calls) - len(kept)},
    )


def invalid_episode(calls: Sequence[Call], renderer: Renderer, effort: Effort, seed: int, why: str) -> Episode:
    """Nothing is learned from it."""
    if calls:
        found = episode_of(calls, effort, seed, {}, {})
        return replace(found, stop="invalid", invalid=why, env_mask=[0] * len(found.env_mask))
    asked = Conversation((Message("user", ""),))
    ids = renderer.prompt(asked, effort)
    return Episode(ids, [RETURN], [0], (), (), (), "invalid", effort, asked=asked, invalid=why, seed=seed)


def _episode(row: Row, calls: Sequence[Call], results: Mapping[int, Any], effort: Effort, seed: int) -> Episode:
    held = [calls[number] for number in row.calls]
    called = []
    for call in held:
        answer = results.get(id(call), ())
        if call.reply.call is not None and answer and answer[0]["role"] == "tool":
            called.append(Called(call.completion.calls[-1], ToolResult(answer[0]["content"])))
    return Episode(
        row.prompt_ids,
        row.completion_ids,
        row.mask,
        tuple(call.completion for call in held),
        tuple(row.starts),
        tuple(called),
        _stop(held[-1]),
        effort,
        row.logprobs,
        seed=seed,
        routes=row.routes,
    )


def _stop(call: Call) -> EpisodeStop:
    """A package that has had enough after a call has ended the episode."""
    if call.reply.flaw is not None:
        return call.reply.flaw
    return "return" if call.reply.call is None else "environment"


def _messages(call: Call) -> tuple[Mapping[str, str], ...]:
    return plain_messages(call.conversation, call.completion)
