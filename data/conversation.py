"""The one shape between source rows and Harmony tokens.

A `Conversation` is Harmony's own view of a dialogue: channels, recipients and tool names are explicit, and nothing of
the source format is left. `counterpoint.data.formats` makes them, and `counterpoint.data.harmony.render` writes them as
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from counterpoint.configs.base import Effort

Role = Literal["developer", "user", "assistant", "tool"]
Channel = Literal["analysis", "commentary", "final"]

CHANNELS: tuple[Channel, ...] = ("analysis", "commentary", "final")
EFFORTS: tuple[Effort, ...] = get_args(Effort)
CONSTRAIN_JSON = "<|constrain|>json"


@dataclass(frozen=True, slots=True)
class Message:
    """One Harmony message.

    role: `tool` is a tool's result; its `name` is the tool's full name (`functions.get_weather`, `python`).
    channel: of assistant and tool messages; None for user and developer messages.
    recipient: the tool that an assistant message calls (`functions.f`, `python`, `browser.search`), else None.
    content_type: as in the header, for example `<|constrain|>json`; None for plain text.
    weight: factor on the loss of this message; 0 trains none of it. Meaningful for assistant messages only.
    raw_ids: ids of the message, kept verbatim where given (source format `harmony`), never rendered again. Of an
        assistant's: from the token after `<|start|>assistant` to the terminator; of others: from `<|start|>` on.
    """

    role: Role
    content: str
    channel: Channel | None = None
    recipient: str | None = None
    name: str | None = None
    content_type: str | None = None
    weight: float = 1.0
    raw_ids: tuple[int, ...] | None = None

    @property
    def is_call(self) -> bool:
        return self.role == "assistant" and self.recipient is not None

    @property
    def is_final(self) -> bool:
        return self.role == "assistant" and self.channel == "final"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the conversation declares; `parameters` is a JSON schema (or None for no arguments)."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A structured output that the developer message declares (`# Response Formats`)."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that was changed, guessed or noticed in a row; never silent, never fatal.

    kind: short stable word for counts; field: path in the source row; detail: for a person.
    """

    kind: str
    field: str
    detail: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue in Harmony's terms.

    messages: in order, without the system message (it is written from `effort`, `date`, `identity`, `builtin_tools`).
    instructions: the developer message that opens the conversation; None where there is none.
    tools: function tools, declared in the opening developer message; builtin_tools: of `python`, `browser`.
    effort, date, identity: None takes the run's setting. date is `YYYY-MM-DD`; "" leaves the line out.
    opening_ids: ids of the system and developer messages that open the conversation, verbatim where given (format
        `harmony`); the fields above are then for reports only.
    weight: factor on the loss of every message (a row's weight).
    source: "file:line". metadata: reference fields of the row (`answer`, ...), untouched.
    """

    messages: tuple[Message, ...]
    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()
    effort: Effort | None = None
    date: str | None = None
    identity: str | None = None
    opening_ids: tuple[int, ...] | None = None
    weight: float = 1.0
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    format: str = ""

    @property
    def response_format(self) -> ResponseFormat | bool:
        """The one that finals hold to; True where there are several, False where there is none."""
        return self.response_formats[0] if len(self.response_formats) == 1 else bool(self.response_formats)

    @property
    def is_unwanted(self) -> bool:
        """Whether the row says (`label: false`) that its answer is a bad one: to learn from, never to imitate."""
        return self.metadata.get("label") is False


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two continuations (OpenAI preference, TRL `prompt/chosen/rejected`).

    `prompt` is shared by both sides; `chosen` and `rejected` are assistant messages in Harmony's terms.
    """

    prompt: Conversation
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    @property
    def source(self) -> str:
        return self.prompt.source
