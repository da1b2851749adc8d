"""TRL's DPOTrainer on our pairs: identical prompt ids, masks by channel, nothing tokenised again.

Legend: B pairs, S tokens of the longest side with its prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from counterpoint.data.pairs import Pair
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.arguments import LoopSettings
from counterpoint.train.loop.row_tokenizer import RowTokenizer, restore_stops
from counterpoint.train.loop.stop import StopSignal
from counterpoint.train.loop.whole import WholeRun
from counterpoint.train.model.load import LoadedModel

PAIR = "pair"


class PreferenceTrainer(WholeRun, DPOTrainer):
    """Trains `loaded.model` on pairs. Its reference is the model as it comes in: the base under a fresh adapter, or a
    copy where all weights are trained."""

    def __init__(
        self,
        loaded: LoadedModel,
        args: DPOConfig,
        pairs: Sequence[Pair],
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        adapted = hasattr(loaded.model, "peft_config")
        super().__init__(
            model=loaded.model,
            ref_model=None if adapted else copy.deepcopy(loaded.model).requires_grad_(False),
            args=args,
            data_collator=PairCollator(loaded, pairs),
            train_dataset=Dataset.from_dict({PAIR: list(range(len(pairs)))}),
            processing_class=RowTokenizer(loaded),
            callbacks=callbacks,
        )
        if adapted and "ref" in loaded.model.peft_config:
            # TRL's copy of the adapter: a fresh one adds nothing, so the reference is the model with it switched off.
            loaded.model.delete_adapter("ref")
        self.processing_class = None
        restore_stops(loaded)
        self.take_over(loop, identity, extras, stop)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Our pairs are tokens already; TRL would render them again and write an end behind `<|call|>`."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [PAIR]


class PairCollator:
    """Numbers of pairs to TRL's batch: all chosen sides, then all rejected ones, padded on the right.

    input_ids, attention_mask, completion_mask: (2B, S) int64; completion_mask is 1 where a token is compared.
    """

    def __init__(self, loaded: LoadedModel, pairs: Sequence[Pair]) -> None:
        self.rows = loaded.vocabulary_map.rows
        self.pad_row = loaded.pad_row
        self.pairs = pairs

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        pairs = [self.pairs[feature[PAIR]] for feature in features]
        sides = [(p.prompt_ids, p.chosen_ids, p.chosen_mask) for p in pairs]
        sides += [(p.prompt_ids, p.rejected_ids, p.rejected_mask) for p in pairs]
        longest = max(len(prompt) + len(ids) for prompt, ids, _ in sides)
        input_ids = torch.full((len(sides), longest), self.pad_row)
        attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for b, (prompt, ids, mask) in enumerate(sides):
            n = len(prompt) + len(ids)
            input_ids[b, :n] = torch.as_tensor(self.rows([*prompt, *ids]))
            attention_mask[b, :n] = 1
            completion_mask[b, len(prompt) : n] = torch.tensor(mask)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
