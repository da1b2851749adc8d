"""What becomes of trained actions that the strict checker (`counterpoint check`) would not pass: `data.bad_targets`."""

from __future__ import annotations

from typing import Literal

from counterpoint.configs.base import Settings

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

    order: BadTarget = "quarantine"
    """Analysis behind a final, or a second final."""

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
