"""Why a token is masked, weighs other than 1, or is not there at all: one sentence each, in the terms of the settings.

The renderer makes each weight from its factors (`weighed`) and keeps them with it, as `Span.why`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from counterpoint.data.conversation import Message, Role

OPENS = "<|start|>assistant"
EARLIER_RESULT = "context: tool result of an earlier turn"
UNFINISHED = "not trained: no final or call ends this turn"
UNFINISHED_CONTEXT = f"context, {UNFINISHED}"
SHARED = "context: both sides of the pair share it"
_NAMED = 6

FROM_ROW = "the row"
FORCED = "--effort"
NO_THINKING = "no thinking, data.missing_thinking = effort_low"
EFFORT_SETTING, DATE_SETTING, IDENTITY_SETTING = "data.effort", "data.date", "data.identity"

Named = tuple[tuple[int, str], ...]
"""Messages by index, each with what it is (`what`)."""


class Factor(NamedTuple):
    """What a loss weight is multiplied with, and why."""

    value: float
    text: str


Why = tuple[Factor, ...]
"""The factors of a weight that are not 1, in order: their product is the weight, that of () is 1."""

PROMPT: Why = (Factor(0.0, f"prompt: the server writes {OPENS}"),)
OWN_OPENING: Why = (Factor(0.0, "context: the row's own opening, ids kept"),)
TOOL_RESULT: Why = (Factor(0.0, "tool result: environment, never trained"),)
CONTEXT: dict[Role, Why] = {
    "user": (Factor(0.0, "context: user message"),),
    "developer": (Factor(0.0, "context: developer message in its place"),),
    "assistant": (Factor(0.0, "context: earlier turn"),),
    "tool": TOOL_RESULT,
}
FINALS_ONLY = Factor(0.0, "data.train_on = final")
END_INSIDE = Factor(0.0, "<|end|> after a final is never sampled")
BARE_HEADER = Factor(0.0, "header of an answer without thinking, data.missing_thinking = final_body")


def weighed(*factors: Factor) -> tuple[float, Why]:
    """The weight that the factors make, and why it is other than 1."""
    why = tuple(factor for factor in factors if factor.value != 1)
    return prod((factor.value for factor in why), start=1.0), why


def of_row(weight: float) -> Factor:
    return Factor(weight, f"weight {_number(weight)} of the whole row")


@lru_cache(maxsize=256)
def of_message(weight: float) -> Factor:
    return Factor(weight, f"weight {_number(weight)} in the row")


def of_part(part: str, weight: float) -> Factor:
    """part: a field of `ChannelWeights`."""
    return Factor(weight, f"data.weights.{part} = {_number(weight)}")


def by_length(low: int, medium: int) -> str:
    """Of an effort by `data.effort_buckets`."""
    return f"length of the analysis, data.effort_buckets = [{low}, {medium}]"


@lru_cache(maxsize=256)
def system(effort_from: str, date_from: str, identity_from: str | None) -> Why:
    """Of the system message, with where its parts come from; None for OpenAI's own identity."""
    text = f"context: system message; effort from {effort_from}, date from {date_from}"
    return (Factor(0.0, text if identity_from is None else f"{text}, identity from {identity_from}"),)


@lru_cache(maxsize=256)
def developer(instructions: bool, tools: int, response_formats: int) -> Why:
    """Of the developer message, with what it holds."""
    holds = ["instructions"] if instructions else []
    for word, count in (("tool", tools), ("response format", response_formats)):
        if count:
            holds.append(f"{count} {word}{'s' * (count > 1)}")
    return (Factor(0.0, f"context: developer message with {', '.join(holds)}"),)


def earlier_turn(number: int, last_only: bool, trained: bool) -> str:
    """Of an assistant message of an earlier turn. last_only: no turn but the last is trained."""
    text = f"{CONTEXT['assistant'][0].text} {number + 1}"
    if last_only:
        return f"{text}; data.train_on = last_turn"
    return f"{text}, trained in an example of its own" if trained else f"{text}, not trained"


@lru_cache(maxsize=64)
def earlier_action(form: str) -> str:
    """Of an assistant message of an earlier action of the same turn."""
    return f"context: earlier action of this turn, as {form} writes it; trained in an example of its own"


def target(weight: float, why: Why, opens: bool = False, sampled: bool = False) -> str:
    """Of a part of the trained turn; "" where it is trained with weight 1 and written by the renderer.

    opens: the part is the `<|start|>assistant` of the next message, which is treated like the message before it.
    sampled: the row has the message as ids.
    """
    words = " × ".join(factor.text for factor in why)
    if weight > 0:
        changed = f"weight {_number(weight)}: {words}" if weight != 1 and len(why) > 1 else words
        reason = "; ".join(text for text in (changed, "kept as sampled: ids of the row" if sampled else "") if text)
        return f"{OPENS}: {reason}" if opens and reason else reason
    zero = next((factor.text for factor in why if factor.value == 0), words)
    return f"{OPENS} not trained: {zero}" if opens else f"not trained: {zero}"


def dropped(messages: Named) -> str:
    """Of analysis that a later turn does not see."""
    return f"earlier analysis dropped, as at inference: {_listed(messages)}"


def unfinished(messages: Named) -> str:
    """Of assistant messages after the last call or final of their turn."""
    return f"{UNFINISHED}: {_listed(messages)}"


def behind(messages: Named, in_turn: bool) -> str:
    """Of other messages after the last call or final of a turn."""
    where = "after the last call or final of the turn" if in_turn else "no assistant turn follows"
    return f"left out, {where}: {_listed(messages)}"


def left_out(n_trained: int, n_tokens: int, max_tokens: int | None) -> str:
    """Why an example is not trained at all; "" where it is."""
    if not n_trained:
        return "no example: every part of this turn has weight 0"
    if max_tokens is not None and n_tokens > max_tokens:
        return f"left out: {n_tokens:,} tokens are more than data.max_tokens = {max_tokens}"
    return ""


def prompt_only(messages: Sequence[Message]) -> str:
    """Of a row without any assistant turn."""
    last = messages[-1].role if messages else "no"
    return f"prompt only: nothing to train, the row ends in {'an' if last == 'assistant' else 'a'} {last} message"


def what(message: Message) -> str:
    """`analysis`, `call to functions.f`, `result of python`, `user message`."""
    if message.role == "tool":
        return f"result of {message.name or 'a tool'}"
    if message.role != "assistant":
        return f"{message.role} message"
    if message.is_call:
        return f"call to {message.recipient}"
    return {"analysis": "analysis", "commentary": "preamble"}.get(message.channel or "", "final")


def _listed(messages: Named) -> str:
    named = ", ".join(f"message {index + 1} ({text})" for index, text in messages[:_NAMED])
    rest = len(messages) - _NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{len(messages)} messages: {named}{more}" if len(messages) > 1 else named


def _number(value: float) -> str:
    return f"{value:g}"
