"""TRL's DPOTrainer on our pairs and its KTOTrainer on our rated completions: identical prompt ids, masks by channel,
nothing tokenised again.

Legend: B pairs or rated completions, S tokens of the longest with its prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.train.adapters.attach import is_fresh, keep_reference
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.row_dataset import ROW, row_numbers
from counterpoint.train.loop.row_tokenizer import RowTokenizer, restore_stops
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal


class _OnOurRows(BaseTrainer):
    """What both trainers share. Their reference is the model as it is given: the base under a fresh adapter, a copy of
    an adapter that was trained before, or a copy of the model where all weights are trained."""

    loaded: LoadedModel

    def __init__(
        self,
        loaded: LoadedModel,
        args: Any,
        rows: Sequence[Any],
        collator: Callable[[Sequence[dict[str, int]]], dict[str, torch.Tensor]],
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.loaded = loaded
        adapted = hasattr(loaded.model, "peft_config")
        fresh = adapted and is_fresh(loaded.model)
        trainer_of_trl: Any = super().__init__
        trainer_of_trl(
            model=loaded.model,
            ref_model=None if adapted else copy.deepcopy(loaded.model).requires_grad_(False),
            args=args,
            data_collator=collator,
            train_dataset=row_numbers(rows),
            processing_class=RowTokenizer(loaded),
            callbacks=callbacks,
        )
        if adapted:
            # TRL's copy of a fresh adapter adds nothing, so the reference is the model with it switched off.
            keep_reference(loaded.model, needed=not fresh)
        self.processing_class = None
        restore_stops(loaded)
        self.set_up_loop(loop, identity, extras, stop)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Our rows are tokens already; TRL would render them again and write an end token after `<|call|>`."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        """transformers keeps these columns of a data set; TRL's own are those of rows that it would tokenise."""
        self._signature_columns = [ROW]


class PreferenceTrainer(_OnOurRows, DPOTrainer):
    """Trains `loaded.model` on pairs."""

    def __init__(
        self,
        loaded: LoadedModel,
        args: DPOConfig,
        pairs: Sequence[Pair],
        loop: LoopSettings,
        identity: Identity,
        **rest: Any,
    ) -> None:
        super().__init__(loaded, args, pairs, PairCollator(loaded, pairs), loop, identity, **rest)


class RatedTrainer(_OnOurRows, KTOTrainer):
    """Trains `loaded.model` on completions that are wanted or not.

    shuffle: draw a new order for every pass. TRL refuses it because it pairs each prompt with another row's completion
    in the data set; here that is done in the batch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        args: KTOConfig,
        rows: Sequence[Rated],
        loop: LoopSettings,
        identity: Identity,
        *,
        shuffle: bool = True,
        **rest: Any,
    ) -> None:
        super().__init__(loaded, args, rows, RatedCollator(loaded, rows), loop, identity, **rest)
        if shuffle:
            self.args.train_sampling_strategy = "random"


class _Collator:
    def __init__(self, loaded: LoadedModel) -> None:
        self.rows = loaded.vocabulary_map.rows
        self.pad_row = loaded.pad_row

    def padded(self, sides: Sequence[tuple[list[int], list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """Prompts, completions and their masks -> input_ids, attention_mask, completion_mask (B, S) int64."""
        longest = max(len(prompt) + len(ids) for prompt, ids, _ in sides)
        input_ids = torch.full((len(sides), longest), self.pad_row)
        attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        for b, (prompt, ids, mask) in enumerate(sides):
            n = len(prompt) + len(ids)
            input_ids[b, :n] = torch.as_tensor(self.rows([*prompt, *ids]))
            attention_mask[b, :n] = 1
            completion_mask[b, len(prompt) : n] = torch.tensor(mask)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


class PairCollator(_Collator):
    """Numbers of pairs to TRL's batch: all chosen sides, then all rejected ones, padded on the right.

    input_ids, attention_mask, completion_mask: (2B, S) int64; completion_mask is 1 where a token is compared.
    """

    def __init__(self, loaded: LoadedModel, pairs: Sequence[Pair]) -> None:
        super().__init__(loaded)
        self.pairs = pairs

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        pairs = [self.pairs[feature[ROW]] for feature in features]
        sides = [(p.prompt_ids, p.chosen_ids, p.chosen_mask) for p in pairs]
        return self.padded(sides + [(p.prompt_ids, p.rejected_ids, p.rejected_mask) for p in pairs])


class RatedCollator(_Collator):
    """Numbers of rated completions to TRL's batch, padded on the right.

    In addition to the three tensors of `padded` and `label` (B,) bool, the same three as `KL_*`: each prompt with the
    completion of the row before it, the first with the last one's. TRL estimates from them how far the model has moved.
    """

    def __init__(self, loaded: LoadedModel, rated: Sequence[Rated]) -> None:
        super().__init__(loaded)
        self.rated = rated

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        rated = [self.rated[feature[ROW]] for feature in features]
        own = self.padded([(r.prompt_ids, r.ids, r.mask) for r in rated])
        others = zip(rated, [rated[-1], *rated[:-1]], strict=True)
        foreign = self.padded([(r.prompt_ids, other.ids, other.mask) for r, other in others])
        label = torch.tensor([r.wanted for r in rated])
        return {**own, **{f"KL_{name}": tensor for name, tensor in foreign.items()}, "label": label}
