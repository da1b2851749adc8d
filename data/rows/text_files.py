"""Text files with raw Harmony: one row a file; a server's log of `N_prompt_text` and `N_response_text` is one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from counterpoint.configs.errors import RowError
from counterpoint.data.rows.open_file import MOST_BYTES, SPLIT, TOO_LONG
from counterpoint.data.rows.row import BadRow, RawRow
from counterpoint.data.rows.strict_json import BOM, decode

_PROMPT = "_prompt_text"
_COMPANIONS = {"_response_text": "response", "_finish_reason": "finish_reason"}


def is_companion(file: Path) -> bool:
    """Whether a file belongs to the row of a prompt file next to it."""
    for ending in _COMPANIONS:
        if file.stem.endswith(ending):
            return file.with_name(f"{file.stem.removesuffix(ending)}{_PROMPT}{file.suffix}").is_file()
    return False


def text_rows(file: Path, name: str) -> Iterator[RawRow | BadRow]:
    """The row of a text file: `{"text"}`, or `{"prompt", "response", "finish_reason"}` where the files next to it give
    them."""
    if file.stat().st_size > MOST_BYTES:
        yield BadRow(f"{name}:1", "row_too_long", "row", TOO_LONG, SPLIT)
        return
    raw = file.read_bytes()
    if not raw.strip():
        return
    value: dict[str, str] = {}
    try:
        text = decode(raw.removeprefix(BOM), "row")
        if not file.stem.endswith(_PROMPT):
            yield RawRow(f"{name}:1", raw, {"text": text})
            return
        value["prompt"] = text
        for ending, key in _COMPANIONS.items():
            companion = file.with_name(f"{file.stem.removesuffix(_PROMPT)}{ending}{file.suffix}")
            if companion.is_file():
                value[key] = decode(companion.read_bytes().removeprefix(BOM), key)
        yield RawRow(f"{name}:1", raw, value)
    except RowError as error:
        yield BadRow(f"{name}:1", error.kind, error.field, error.what, error.fix, raw)
