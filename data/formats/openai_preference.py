"""OpenAI's preference rows: an `input`, and two outputs of which one is preferred.

Source: https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Preference
from counterpoint.data.formats.answers import read_pair
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_object

_READ = frozenset({"input", "preferred_output", "non_preferred_output"})


def looks_like(row: Mapping[str, Any]) -> bool:
    return "preferred_output" in row or "non_preferred_output" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Preference:
    """`{"input": {messages, tools}, "preferred_output", "non_preferred_output"}`. Raises RowError."""
    given = as_object(row.get("input"), "input")
    messages = as_list(given.get("messages"), "input.messages")

    def begin() -> Draft:
        draft = Draft("openai_preference", options)
        read_declarations(draft, given, "input")
        read_common(draft, {k: v for k, v in given.items() if k != "messages"}, DECLARATIONS)
        read_common(draft, row, _READ)
        return draft

    return read_pair(begin, messages, "input.messages", row, ("preferred_output", "non_preferred_output"))
