"""How much each trained token counts, and what becomes of trained actions that `counterpoint check` would not pass."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from counterpoint.configs.base import NotNegative, Settings

BadTarget = Literal["quarantine", "keep"]


class BadTargetSettings(Settings):
    """Rows of which a trained action breaks a rule of the checker, by the group of the rule: into the quarantine, or
    trained as they are and counted. Only tokens with a loss weight count."""

    structure: BadTarget = "quarantine"
    """Headers and messages that are not Harmony's grammar."""

    markup: BadTarget = "keep"
    """Control tokens spelled in text (`<|start|>`), which an answer about Harmony may well hold."""

    ending: BadTarget = "quarantine"
    """Messages that end in the wrong one of `<|end|>`, `<|call|>` and `<|return|>`."""

    policy: BadTarget = "keep"
    """Answers without analysis although the effort asks for it (see `missing_thinking`), and empty analysis."""

    tools: BadTarget = "quarantine"
    """Calls to tools that the row does not declare among those that it declares, on the wrong channel, or without
    their namespace."""

    arguments: BadTarget = "quarantine"
    """Arguments that are not a JSON object, or that the tool's schema refuses."""

    response_format: BadTarget = "quarantine"
    """Finals that the row's `response_format` refuses."""

    text: BadTarget = "quarantine"
    """Text that is not UTF-8, empty finals, and texts that repeat themselves over and over."""


class ChannelWeights(Settings):
    """Loss weights, by what a trained token is part of. 0 leaves such tokens as context."""

    analysis: NotNegative = 1.0
    """The chain of thought, header and text."""

    preamble: NotNegative = 1.0
    """Text on the commentary channel that is shown to the user before a call, header and text."""

    call_header: NotNegative = 1.0
    """The header of a tool call: channel, recipient, content type."""

    call_arguments: NotNegative = 1.0
    """The arguments of a tool call."""

    final: NotNegative = 1.0
    """The answer, header and text."""

    terminators: NotNegative = 1.0
    """`<|end|>`, `<|call|>`, `<|return|>`, and the `<|start|>assistant` between the messages of one turn."""

    @model_validator(mode="after")
    def _checks(self) -> ChannelWeights:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("all of them are 0, so nothing would be trained: leave at least one above 0")
        return self
