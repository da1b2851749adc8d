"""Alpaca (`instruction`, `input`, `output`, `system`, `history`) and the columns of Multilingual-Thinking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, as_text, describe, text_of

_ALPACA = frozenset({"instruction", "input", "output", "system", "history"})
_COLUMNS = frozenset({"developer", "user", "analysis", "final", "reasoning_language"})


def convert_alpaca(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Conversation:
    """user = instruction, a line break, input; the answer is output. Raises RowError."""
    draft = Draft(format, options)
    read_common(draft, row, _ALPACA)
    if system := text_of(row, "system", ""):
        draft.system(system, "system")
    for i, pair in enumerate(as_list(row.get("history") or [], "history")):
        where = f"history[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            what = f"is {describe(pair)}" if not isinstance(pair, list) else f"holds {len(pair)} texts"
            raise RowError("bad_history", where, what, 'write ["question", "answer"]')
        draft.user(as_text(pair[0], f"{where}[0]"), f"{where}[0]")
        draft.assistant(where, text=as_text(pair[1], f"{where}[1]"), text_field=f"{where}[1]")
    instruction = as_text(row.get("instruction"), "instruction")
    extra = text_of(row, "input", "")
    draft.user(f"{instruction}\n{extra}" if extra else instruction, "instruction")
    draft.assistant("output", text=as_text(row.get("output"), "output"), text_field="output")
    return draft.finish()


def convert_multilingual(row: Mapping[str, Any], format: str, options: ConversionSettings) -> Conversation:
    """The columns as they are; `reasoning_language` is metadata. Raises RowError."""
    draft = Draft(format, options)
    read_common(draft, row, _COLUMNS)
    if developer := text_of(row, "developer", ""):
        draft.system(developer, "developer")
    draft.user(as_text(row.get("user"), "user"), "user")
    analysis = text_of(row, "analysis", "")
    draft.assistant("final", thinking=analysis, text=as_text(row.get("final"), "final"), text_field="final")
    if (language := text_of(row, "reasoning_language", "")) is not None:
        draft.metadata["reasoning_language"] = language
        draft.notice("reasoning_language", "reasoning_language", "kept as metadata; say it in developer to teach it")
    return draft.finish()
