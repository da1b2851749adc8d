"""TRL's DPOTrainer and KTOTrainer as the oracles of our losses on pairs and on rated completions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from row_tokenizer import RowTokenizer, restore_stops
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from counterpoint.configs.preference_section import DpoSettings
from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.train.model.load import LoadedModel

Side = tuple[Sequence[int], Sequence[int], Sequence[int]]


class _OnOurRows:
    """TRL on ids as they are: it would tokenise again, and write an end token after `<|call|>`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        trainer: Any = self
        trainer._metrics["train"].clear()
        return trainer.compute_loss(trainer.model, batch)

    def told(self) -> dict[str, float]:
        """The metrics of the last loss."""
        trainer: Any = self
        return {name: values[-1] for name, values in trainer._metrics["train"].items()}


class PairOracle(_OnOurRows, DPOTrainer):
    pass


class RatedOracle(_OnOurRows, KTOTrainer):
    pass


def oracle(
    loaded: LoadedModel, folder: Path, dpo: DpoSettings, rows: int, reference: Any = None
) -> PairOracle | RatedOracle:
    """TRL's trainer on `loaded.model`. An adapter as it is now is the reference, or `reference` is."""
    common: Any = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "beta": dpo.beta,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "max_steps": 1,
        "disable_dropout": True,
        "router_aux_loss_coef": 0.0,
    }
    given: Any = {
        "model": loaded.model,
        "ref_model": reference,
        "train_dataset": Dataset.from_dict({"row": list(range(rows))}),
        "data_collator": list,  # its own would look up words
        "processing_class": RowTokenizer(loaded),
    }
    if dpo.rated:
        weights: Any = {"desirable_weight": dpo.wanted_weight, "undesirable_weight": dpo.unwanted_weight}
        made: Any = RatedOracle(args=KTOConfig(**common, loss_type=dpo.losses[0], **weights), **given)
    else:
        losses: Any = {
            "loss_type": list(dpo.losses),
            "loss_weights": dpo.loss_weights and list(dpo.loss_weights),
            "label_smoothing": dpo.label_smoothing,
        }
        made = PairOracle(args=DPOConfig(**common, **losses), **given)
    restore_stops(loaded)
    return made


def whole(model: Any) -> Any:
    """A frozen copy."""
    return copy.deepcopy(model).requires_grad_(False)


def batch_of(loaded: LoadedModel, rows: Sequence[Pair] | Sequence[Rated]) -> dict[str, torch.Tensor]:
    """TRL's batch: all chosen sides, then all rejected ones; or rated completions with `label`, and as `KL_*` each
    prompt with the completion of the row before it."""
    sides: list[Side] = []
    for row in rows:
        sides.append(
            (row.prompt_ids, row.chosen_ids, row.chosen_mask)
            if isinstance(row, Pair)
            else (row.prompt_ids, row.ids, row.mask)
        )
    pairs = [row for row in rows if isinstance(row, Pair)]
    if pairs:
        return padded(loaded, sides + [(row.prompt_ids, row.rejected_ids, row.rejected_mask) for row in pairs])
    rated = [row for row in rows if isinstance(row, Rated)]
    foreign = padded(loaded, [(row.prompt_ids, rated[n - 1].ids, rated[n - 1].mask) for n, row in enumerate(rated)])
    label = torch.tensor([row.wanted for row in rated])
    return {**padded(loaded, sides), **{f"KL_{name}": each for name, each in foreign.items()}, "label": label}


def padded(loaded: LoadedModel, sides: Sequence[Side]) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, completion_mask (B, S) int64, padded on the right; the last is 1 for compared tokens."""
    longest = max(len(prompt) + len(ids) for prompt, ids, _ in sides)
    input_ids = torch.full((len(sides), longest), loaded.pad_row)
    attention_mask, completion_mask = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for b, (prompt, ids, mask) in enumerate(sides):
        n = len(prompt) + len(ids)
        input_ids[b, :n] = torch.as_tensor(loaded.vocabulary_map.rows([*prompt, *ids]))
        attention_mask[b, :n] = 1
        completion_mask[b, len(prompt) : n] = torch.tensor(mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
