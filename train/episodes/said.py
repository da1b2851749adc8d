"""What was said in an episode, as messages: actions with their calls, and the results that were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from counterpoint.data.conversation import Channel, Conversation, Message
from counterpoint.data.harmony.completion import Completion, ToolCall
from counterpoint.train.sampling.rollout import Called, Episode

BUILTIN = ("python", "browser")


def continued(prompt: Conversation, episode: Episode, text: str) -> Conversation:
    """The conversation continued with the user's `text`; rendered, it drops earlier analysis as at inference."""
    before = answered(prompt, episode)
    return replace(before, messages=(*before.messages, Message("user", text)))


def answered(prompt: Conversation, episode: Episode) -> Conversation:
    """The conversation with what the model said, its calls and their results."""
    return replace(prompt, messages=tuple(said(prompt, episode.actions, episode.called)))


def said(prompt: Conversation, actions: Sequence[Completion], called: Sequence[Called]) -> list[Message]:
    """Everything from the prompt to the last message, thoughts of earlier turns among it."""
    messages, left = list(prompt.messages), list(called)
    for action in actions:
        messages += _messages(action, left)
    return messages


def channel_of(call: ToolCall) -> Channel:
    """A result carries the channel of its call; of a call without one, the channel that its tool belongs to."""
    if call.channel == "analysis" or call.channel == "commentary":
        return call.channel
    return "analysis" if call.recipient.partition(".")[0] in BUILTIN else "commentary"


def _messages(action: Completion, called: list[Called]) -> list[Message]:
    """An action's messages, and the result of the call that was run; takes that one off `called`."""
    out: list[Message] = []
    if action.analysis:
        out.append(Message("assistant", action.analysis, "analysis"))
    out += [Message("assistant", text, "commentary") for text in action.preambles]
    if action.stop == "call" and called:
        call, result = called[0].call, called.pop(0).result
        channel = channel_of(call)
        kind = "<|constrain|>json" if call.arguments is not None else None
        out.append(Message("assistant", call.arguments_text, channel, call.recipient, content_type=kind))
        out.append(Message("tool", result.content, channel, name=call.recipient))
    if action.final is not None:
        out.append(Message("assistant", action.final, "final"))
    return out


def plain_messages(asked: Conversation, answer: Completion) -> tuple[Mapping[str, str], ...]:
    """What was asked and the answer to it, thoughts among it."""
    return tuple(map(plain, said(asked, [answer], [])))


def plain(message: Message) -> Mapping[str, str]:
    fields = ("role", "channel", "recipient", "name", "content")
    return {name: value for name in fields if (value := getattr(message, name)) is not None}
