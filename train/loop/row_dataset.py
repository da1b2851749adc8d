"""Rows as TRL's trainers take them: a data set of row numbers, turned into rows when a batch is collated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from counterpoint.data.layout.tree import TreeRow

ROW = "row"


def row_numbers(rows: Sequence[Any]) -> Dataset:
    """The data set that a trainer shuffles and splits: one number a row (TRL takes only this class)."""
    return Dataset.from_dict({ROW: list(range(len(rows)))})


class RowCollator:
    """Row numbers to a batch: looks the rows up and collates them.

    Adds `n_tokens` (padding not counted) and `sources`, the examples of each row.
    """

    def __init__(self, rows: Sequence[TreeRow], collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.rows = rows
        self.collate = collate

    def __call__(self, features: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        rows = [self.rows[feature[ROW]] for feature in features]
        batch = self.collate(rows)
        return {**batch, "n_tokens": sum(len(row) for row in rows), "sources": [list(row.sources) for row in rows]}
