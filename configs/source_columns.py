"""What a source says of its own columns and speakers: sections `columns` and `roles` of an entry of `data.train`."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from counterpoint.configs.base import OneOrMany, Settings, Text


class ColumnSettings(Settings):
    """Names of a source's columns, by what they hold: `messages`, or `prompt` with `answer` or `calls`, or a pair."""

    messages: Text | None = None
    """A list of messages."""

    role: Text | None = None
    """In a message, who speaks."""

    content: Text | None = None
    """In a message, what is said."""

    prompt: Text | None = None
    """The question: a text, or messages."""

    context: Text | None = None
    """A text that is written behind the question, on a line of its own."""

    history: Text | None = None
    """Earlier turns: messages, or pairs of a question and its answer."""

    answer: Text | None = None
    """The answer, which is trained: a text, a message or messages."""

    thinking: Text | None = None
    """The chain of thought before the answer."""

    calls: Text | None = None
    """Tool calls that are the answer: `{name, arguments}`, or a list of them, or that as text."""

    system: Text | None = None
    """The instructions."""

    tools: Text | None = None
    """Declarations of tools."""

    chosen: Text | None = None
    """The wanted answer of a pair."""

    rejected: Text | None = None
    """The unwanted answer of a pair."""

    @model_validator(mode="after")
    def _checks(self) -> ColumnSettings:
        pair = self.chosen is not None and self.rejected is not None
        table = self.prompt is not None and (self.answer is not None or self.calls is not None)
        if self.messages is None and not pair and not table:
            raise ValueError(
                "they are no whole row: name `messages`, or `prompt` with `answer` or `calls`, or `chosen` with "
                "`rejected`"
            )
        return self


class RoleSettings(Settings):
    """Names of speakers in a source, one or several each."""

    system: Annotated[tuple[Text, ...], OneOrMany] = ()
    """Whose texts are instructions."""

    user: Annotated[tuple[Text, ...], OneOrMany] = ()
    """Who asks."""

    assistant: Annotated[tuple[Text, ...], OneOrMany] = ()
    """Who answers, and is trained."""

    call: Annotated[tuple[Text, ...], OneOrMany] = ()
    """Whose contents are tool calls."""

    tool: Annotated[tuple[Text, ...], OneOrMany] = ()
    """Whose contents are results of tools."""
