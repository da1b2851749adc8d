"""Typed access to fields of a row, with paths for messages. `null` counts as absent: Parquet writes absent keys so."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from counterpoint.configs.errors import RowError


def describe(value: Any) -> str:
    """What a JSON value is, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    return type(value).__name__


def wrong_type(value: Any, field: str, wanted: str) -> RowError:
    """What a field holds instead of what is wanted; of one that is not there it cannot be told whether it is null."""
    what = "missing or null" if value is None else f"is {describe(value)}"
    return RowError("wrong_type", field, what, f"write {wanted}")


def one_of(value: Any, names: Container[str]) -> bool:
    """Whether a value is one of some words; it may be anything, lists too."""
    return isinstance(value, str) and value in names


def as_text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(value, field, "a string")
    return value


def as_object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(value, field, "an object")
    return value


def as_list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong_type(value, field, "a list")
    return value


def text_of(row: Mapping[str, Any], key: str, field: str) -> str | None:
    """`row[key]` as text, None where absent. `field` is the path of `row` ("" for the whole row)."""
    value = row.get(key)
    return None if value is None else as_text(value, join(field, key))


def join(field: str, key: str) -> str:
    return f"{field}.{key}" if field else key
