"""What TRL's trainers ask a tokenizer for, answered from a loaded model: ids here are the model's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterpoint.train.loop.tokenizer_stub import TokenizerStub
from counterpoint.train.model.load import LoadedModel


class RowTokenizer(TokenizerStub):
    """Pads with `<|endoftext|>`, ends with `<|return|>`, decodes rows to Harmony text. It never encodes."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(pad_token="<|endoftext|>", eos_token="<|return|>")
        self._loaded = loaded

    @property
    def pad_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._loaded.pad_row

    @property
    def eos_token_id(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._loaded.stop_rows[0]

    def batch_decode(self, sequences: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> list[str]:  # pyright: ignore
        ids = self._loaded.vocabulary_map.ids
        return [self._loaded.vocabulary.decode(ids(list(rows)).tolist()) if len(rows) else "" for rows in sequences]


def restore_stops(loaded: LoadedModel) -> None:
    """TRL writes its tokenizer's ids into the model's configurations: restore the model's own."""
    model = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = loaded.pad_row, loaded.stop_rows
