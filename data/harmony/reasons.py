"""Why a token is masked, weighs other than 1, or is not there at all: a sentence each, in the words of the settings."""

from __future__ import annotations

from collections.abc import Sequence

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.conversation import Conversation, Message

OPENS = "<|start|>assistant"
PROMPT = f"prompt: the server writes {OPENS}"
TOOL_RESULT = "tool result: environment, never trained"
EARLIER_RESULT = "context: tool result of an earlier turn"
UNFINISHED = "not trained: no final or call ends this turn"
UNFINISHED_CONTEXT = f"context, {UNFINISHED}"
SHARED = "context: both sides of the pair share it"
_NAMED = 6

Named = tuple[tuple[int, str], ...]
"""Messages by index, each with what it is (`what`)."""


def effort(conversation: Conversation, settings: RenderSettings, forced: bool = False) -> str:
    """Where the reasoning effort comes from."""
    if forced:
        return "--effort"
    if conversation.effort is not None:
        return "the row"
    thinks = any(m.role == "assistant" and m.channel == "analysis" for m in conversation.messages)
    if not thinks and settings.missing_thinking == "effort_low":
        return "no thinking, data.missing_thinking = effort_low"
    if thinks and settings.effort_buckets is not None:
        low, medium = settings.effort_buckets
        return f"length of the analysis, data.effort_buckets = [{low}, {medium}]"
    return "data.effort"


def opening(conversation: Conversation, settings: RenderSettings, part: str, effort_reason: str) -> str:
    """Of the system message, the developer message, and `<|start|>assistant`."""
    if part == "system" and conversation.opening_ids is not None:
        return "context: the row's own opening, ids kept"
    if part == "system":
        date = "the row" if conversation.date is not None else "data.date"
        text = f"context: system message; effort from {effort_reason}, date from {date}"
        if conversation.identity is not None:
            return f"{text}, identity from the row"
        return text if settings.identity is None else f"{text}, identity from data.identity"
    if part == "developer":
        holds = [] if conversation.instructions is None else ["instructions"]
        for word, items in (("tool", conversation.tools), ("response format", conversation.response_formats)):
            if items:
                holds.append(f"{len(items)} {word}{'s' * (len(items) > 1)}")
        return f"context: developer message with {', '.join(holds)}"
    return PROMPT


def given(message: Message) -> str:
    """Of a user's message, or a developer's in its place."""
    return "context: user message" if message.role == "user" else "context: developer message in its place"


def earlier_turn(number: int, settings: RenderSettings, trained: bool) -> str:
    """Of an assistant message of a turn that was before."""
    if settings.train_on == "last_turn":
        return f"context: earlier turn {number + 1}; data.train_on = last_turn"
    if not trained:
        return f"context: earlier turn {number + 1}, not trained"
    return f"context: earlier turn {number + 1}, trained in an example of its own"


def target(
    conversation: Conversation,
    message: Message,
    part: str,
    weight: float,
    settings: RenderSettings,
    opens: bool = False,
) -> str:
    """Of a part of the trained turn; "" where it is trained with weight 1 and written by the renderer.

    opens: the part is the `<|start|>assistant` of the next message, which shares the fate of `message`.
    """
    setting = getattr(settings.weights, part)
    factors = []
    if conversation.weight != 1:
        factors.append((conversation.weight, f"weight {_number(conversation.weight)} of the whole row"))
    if message.weight != 1:
        factors.append((message.weight, f"weight {_number(message.weight)} in the row"))
    if settings.train_on == "final" and not message.is_final:
        factors.append((0.0, "data.train_on = final"))
    if setting != 1:
        factors.append((setting, f"data.weights.{part} = {_number(setting)}"))
    if weight > 0:
        raw = "kept as sampled: ids of the row" if message.raw_ids is not None else ""
        words = " × ".join(text for _, text in factors)
        changed = f"weight {_number(weight)}: {words}" if weight != 1 and len(factors) > 1 else words
        reason = "; ".join(text for text in (changed, raw) if text)
        return f"{OPENS}: {reason}" if opens and reason else reason
    zero = next((text for factor, text in factors if factor == 0), None)
    if zero is None:
        zero = (
            "<|end|> behind a final is never sampled"
            if part == "terminators"
            else "header of an answer without thinking, data.missing_thinking = final_body"
        )
    return f"{OPENS} not trained: {zero}" if opens else f"not trained: {zero}"


def dropped(messages: Named) -> str:
    """Of analysis that a later turn does not see."""
    return f"earlier analysis dropped, as at inference: {_listed(messages)}"


def unfinished(messages: Named) -> str:
    """Of assistant messages behind the last call or final of their turn."""
    return f"{UNFINISHED}: {_listed(messages)}"


def behind(messages: Named, in_turn: bool) -> str:
    """Of other messages behind the last call or final of a turn."""
    where = "behind the last call or final of the turn" if in_turn else "no assistant turn follows"
    return f"left out, {where}: {_listed(messages)}"


def has_loss(conversation: Conversation, message: Message, settings: RenderSettings) -> bool:
    """Whether an assistant message has a part that is trained."""
    parts = {"analysis": ["analysis"], "commentary": ["preamble"], "final": ["final"]}.get(message.channel or "", [])
    parts = ["call_header", "call_arguments"] if message.is_call else parts
    scale = conversation.weight * message.weight * (settings.train_on != "final" or message.is_final)
    return scale > 0 and any(getattr(settings.weights, part) for part in (*parts, "terminators"))


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
