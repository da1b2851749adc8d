"""Several environments in one run: each row names its own, in its field `environment`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

from counterpoint.configs.errors import RowError

FIELD = "environment"
E = TypeVar("E")


class Routes(Generic[E]):
    """Environments by name."""

    def __init__(self, named: Mapping[str, E]) -> None:
        self.named = named

    def of(self, row: Mapping[str, Any]) -> E:
        """The one of a row. RowError as `name_of`."""
        return self.named[name_of(row, self.named)]


def name_of(row: Mapping[str, Any], names: Collection[str]) -> str:
    """The name of a row's environment, the only one where it names none. RowError for an unknown one, and for none
    where there are several."""
    named, known = row.get(FIELD), ", ".join(names)
    if named is None and len(names) == 1:
        return next(iter(names))
    if named is None:
        raise RowError("no_environment", FIELD, "is missing", f"name the row's: {known}")
    if not isinstance(named, str) or named not in names:
        raise RowError(
            "unknown_environment", FIELD, f"{str(named)[:60]!r} is none of the run's", f"take one of {known}"
        )
    return named
