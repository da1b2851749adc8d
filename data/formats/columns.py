"""Tables of well-known data sets that have no format of their own (Dolly, OpenHermes, xLAM, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.tables import columns_of, read_table


def looks_like(row: Mapping[str, Any]) -> bool:
    return columns_of(row) is not None


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """A question and its answer, trained with what stands beside them. Raises RowError."""
    columns = columns_of(row)
    if columns is None:
        fix = "say which they are with the source's `columns`"
        raise RowError("no_columns", "row", "no columns of a question and its answer that are known", fix)
    return read_table(row, columns, Draft("columns", options))
