"""Alpaca: `instruction`, `input`, `output`, `system`, `history`."""

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


def looks_like(row: Mapping[str, Any]) -> bool:
    return "instruction" in row and "output" in row


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """user = instruction, a line break, input; the answer is output. Raises RowError."""
    draft = Draft("alpaca", options)
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
