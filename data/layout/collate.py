"""Tree rows -> the tensors of one batch (B rows, padded to the longest, S tokens; T targets in all)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoint.data.layout.tree import TreeRow

if TYPE_CHECKING:
    import torch

RowsOfIds = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


PADDING_RUN = 128
"""Padding tokens that attend to each other, causally: a sequence of each would take 128 rows of a flash kernel's
scratch memory, one of them all the time of a row of that length. Chosen; what padding computes is never read."""


def padding(first: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(position, subtree_end) of the padding tokens `first` to `width` of a row: runs that see nothing of the row."""
    place = np.arange(width - first, dtype=np.int64)
    return place % PADDING_RUN, np.minimum(first + (place // PADDING_RUN + 1) * PADDING_RUN, width)


class Collator:
    """Makes a batch of `TreeRow`s.

    rows_of_ids maps vocabulary ids to the model's embedding rows (None: they are the same). The batch holds
    input_ids (B,S) int64, position_ids (B,S) int64, subtree_end (B,S) int64 (see `padding`),
    target_index (T,) int64 flat into B*S, target_ids (T,) int64, target_weights (T,) float32, target_channels (T,)
    uint8, row_sources: the examples of each row, as "file:line#turn".
    """

    def __init__(self, rows_of_ids: RowsOfIds | None = None, pad_row: int = 0) -> None:
        self.rows_of_ids = rows_of_ids
        self.pad_row = pad_row

    def __call__(self, rows: Sequence[TreeRow]) -> dict[str, Any]:
        width = max(len(row) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_row, dtype=np.int64)
        position_ids, subtree_end = (np.empty((len(rows), width), dtype=np.int64) for _ in range(2))
        for b, row in enumerate(rows):
            input_ids[b, : len(row)] = self._map(row.ids)
            position_ids[b, : len(row)], subtree_end[b, : len(row)] = row.position, row.subtree_end
            position_ids[b, len(row) :], subtree_end[b, len(row) :] = padding(len(row), width)
        target_ids = self._map(np.concatenate([row.target_id for row in rows]))
        target_index = np.concatenate([row.target_source + b * width for b, row in enumerate(rows)])
        return {
            "input_ids": _tensor(input_ids),
            "position_ids": _tensor(position_ids),
            "subtree_end": _tensor(subtree_end),
            "target_index": _tensor(target_index.astype(np.int64)),
            "target_ids": _tensor(target_ids.astype(np.int64)),
            "target_weights": _tensor(np.concatenate([row.target_weight for row in rows])),
            "target_channels": _tensor(np.concatenate([row.target_channel for row in rows])),
            "row_sources": [source for row in rows for source in row.sources],
        }

    def _map(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return ids if self.rows_of_ids is None else self.rows_of_ids(ids)


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    import torch

    return torch.from_numpy(array)
