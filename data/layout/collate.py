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


class Collator:
    """Makes a batch of `TreeRow`s.

    rows_of_ids maps vocabulary ids to the model's embedding rows (None: they are the same). The batch holds
    input_ids (B,S) int64, position_ids (B,S) int64, subtree_end (B,S) int64 (padding attends to itself only),
    target_index (T,) int64 flat into B*S, target_ids (T,) int64, target_weights (T,) float32, target_channels (T,)
    uint8, row_sources: the examples of each row, as "file:line#turn".
    """

    def __init__(self, rows_of_ids: RowsOfIds | None = None, pad_row: int = 0) -> None:
        self.rows_of_ids = rows_of_ids
        self.pad_row = pad_row

    def __call__(self, rows: Sequence[TreeRow]) -> dict[str, Any]:
        width = max(len(row) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_row, dtype=np.int64)
        position_ids = np.zeros((len(rows), width), dtype=np.int64)
        subtree_end = np.tile(np.arange(1, width + 1, dtype=np.int64), (len(rows), 1))
        for b, row in enumerate(rows):
            input_ids[b, : len(row)] = self._map(row.ids)
            position_ids[b, : len(row)] = row.position
            subtree_end[b, : len(row)] = row.subtree_end
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
