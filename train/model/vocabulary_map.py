"""Which row of the embedding and the head holds which token id.

A real checkpoint has one row an id (identity). The embedded tiny model keeps only the ids that it needs: ids stay real
o200k ids everywhere outside the model, rows are what `input_ids` and the logits hold. The map is a file next to the
weights as `vocabulary_map.json`; a checkpoint without that file is the identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.vocabulary import N_VOCAB, RestrictedVocabulary, Vocabulary

MAP_FILE = "vocabulary_map.json"


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Sorted real ids, one a row; `kept` None is the identity over `n_rows` rows."""

    kept: np.ndarray | None
    n_rows: int

    @classmethod
    def identity(cls, n_rows: int = N_VOCAB) -> VocabularyMap:
        return cls(None, n_rows)

    @classmethod
    def from_ids(cls, ids: Iterable[int]) -> VocabularyMap:
        """The rows are `ids`, sorted, once each. ModelError for an id that the vocabulary does not have."""
        kept = np.unique(np.fromiter(ids, dtype=np.int64))
        if len(kept) == 0 or kept[0] < 0 or kept[-1] >= N_VOCAB:
            raise ModelError(f"vocabulary map: ids must be in 0..{N_VOCAB - 1}, at least one: make it again")
        return cls(kept, len(kept))

    @property
    def is_identity(self) -> bool:
        return self.kept is None

    @cached_property
    def _row_of(self) -> np.ndarray:
        assert self.kept is not None
        row_of = np.full(N_VOCAB, -1, dtype=np.int64)
        row_of[self.kept] = np.arange(self.n_rows)
        return row_of

    @overload
    def rows(self, ids: torch.Tensor) -> torch.Tensor: ...
    @overload
    def rows(self, ids: np.ndarray | Sequence[int]) -> np.ndarray: ...
    def rows(self, ids: torch.Tensor | np.ndarray | Sequence[int]) -> torch.Tensor | np.ndarray:
        """Rows (int64, any shape) of real ids. ModelError for an id without a row."""
        if isinstance(ids, torch.Tensor):
            return torch.from_numpy(self.rows(ids.detach().cpu().numpy())).to(ids.device)
        array = np.asarray(ids, dtype=np.int64)
        if array.size == 0:
            return array
        low, high = int(array.min()), int(array.max())
        if self.kept is None:
            if low < 0 or high >= self.n_rows:
                raise ModelError(f"token id {low if low < 0 else high}: the model has {self.n_rows} rows: other model?")
            return array
        bad = low if low < 0 else high
        if low >= 0 and high < N_VOCAB:
            rows = self._row_of[array]
            if not (missing := rows < 0).any():
                return rows
            bad = int(array[missing].flat[0])
        raise ModelError(f"token id {bad}: it has no row in this model: encode text with the model's own vocabulary")

    @overload
    def ids(self, rows: torch.Tensor) -> torch.Tensor: ...
    @overload
    def ids(self, rows: np.ndarray | Sequence[int]) -> np.ndarray: ...
    def ids(self, rows: torch.Tensor | np.ndarray | Sequence[int]) -> torch.Tensor | np.ndarray:
        """Real ids (int64, any shape) of rows."""
        if isinstance(rows, torch.Tensor):
            return torch.from_numpy(self.ids(rows.detach().cpu().numpy())).to(rows.device)
        array = np.asarray(rows, dtype=np.int64)
        assert array.size == 0 or (array.min() >= 0 and array.max() < self.n_rows)
        return array if self.kept is None else self.kept[array]

    def row(self, id_: int) -> int:
        """The row of one id."""
        return int(self.rows([id_])[0])

    def vocabulary(self, base: Vocabulary) -> Vocabulary:
        """What encodes text for this model: `base`, or `base` with other ids spelled in single bytes."""
        return base if self.kept is None else RestrictedVocabulary(base, self.kept.tolist())

    def save(self, folder: Path) -> None:
        """Write `vocabulary_map.json` into `folder`; the identity writes nothing."""
        if self.kept is None:
            return
        lines = [json.dumps(self.kept[i : i + 20].tolist())[1:-1] for i in range(0, self.n_rows, 20)]
        (folder / MAP_FILE).write_text('{"ids": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, n_rows: int = N_VOCAB) -> VocabularyMap:
        """The map of a checkpoint folder; without the file the identity over `n_rows`."""
        path = folder / MAP_FILE
        if not path.is_file():
            return cls.identity(n_rows)
        try:
            ids = json.loads(path.read_bytes())["ids"]
            return cls.from_ids(int(i) for i in ids)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: not a vocabulary map ({type(error).__name__}): copy it from the model") from None
