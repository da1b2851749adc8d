"""TRL's KTO loss on our rated completions: the batch, and its loss against the paper's formula written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from counterpoint.configs.schema import DpoRun
from counterpoint.data.dataset.pairs import Rated
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.preference_trainers import RatedCollator, RatedTrainer
from counterpoint.train.loop.rl_arguments import kto_arguments
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny

WORDS = ["The sum is 12.", "7 times 8 is", " 56.", "I call it."]


def rows_of(loaded: LoadedModel) -> list[Rated]:
    ids = [loaded.vocabulary.encode(text) for text in WORDS]
    return [
        Rated("a:1", "wanted", ids[0], ids[1], [1] * len(ids[1]), True),
        Rated("a:2", "unwanted", ids[2], ids[3], [0, *[1] * (len(ids[3]) - 1)], False),
        Rated("a:3", "unwanted", ids[0], ids[2], [1] * len(ids[2]), False),
    ]


def logp(loaded: LoadedModel, prompt: list[int], ids: list[int], mask: list[int]) -> torch.Tensor:
    """Sum of log-probabilities of the masked tokens, of one row without padding."""
    rows = torch.from_numpy(loaded.vocabulary_map.rows([*prompt, *ids]))[None]
    logps = loaded.model(input_ids=rows).logits[0].log_softmax(-1)
    each = logps[:-1].gather(1, rows[0, 1:, None])[len(prompt) - 1 :, 0]
    return (each * torch.tensor(mask)).sum()


def test_a_batch_holds_each_prompt_with_its_own_and_a_foreign_completion() -> None:
    loaded = random_tiny()
    rated = rows_of(loaded)
    batch = RatedCollator(loaded, rated)([{"row": 0}, {"row": 1}])
    assert batch["label"].tolist() == [True, False]
    rows = loaded.vocabulary_map.rows
    foreign = [*rated[1].prompt_ids, *rated[0].ids]
    assert batch["KL_input_ids"][1, : len(foreign)].tolist() == rows(foreign).tolist()
    assert batch["KL_attention_mask"][1].sum() == len(foreign)
    assert batch["KL_completion_mask"][0].sum() == sum(rated[1].mask)
    assert batch["completion_mask"][1].sum() == sum(rated[1].mask)


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_the_loss_is_the_formula(tmp_path: Path, loss: str) -> None:
    torch.manual_seed(0)
    loaded = random_tiny()
    settings = DpoRun.model_validate(
        {
            "recipe": "dpo", "data": {"train": "rows.jsonl"}, "lora": {"rank": 4},
            "dpo": {"losses": loss, "beta": 0.3, "wanted_weight": 2.0},
            "train": {"steps": 1, "batch_rows": 3, "device": "cpu"},
        }
    )  # fmt: skip
    loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    rated = rows_of(loaded)
    identity = Identity({}, "data", 3)
    trainer = RatedTrainer(
        loaded, kto_arguments(settings, tmp_path, 1), rated, LoopSettings(tmp_path / "checkpoints"), identity
    )
    assert trainer.args.train_sampling_strategy == "random"
    batch = trainer.data_collator([{"row": 0}, {"row": 1}, {"row": 2}])  # type: ignore[misc]
    assert trainer.compute_loss(loaded.model, batch).item() == pytest.approx((2 * 0.5 + 0.5 + 0.5) / 3, abs=1e-6)

    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)

        def moved(prompt: list[int], ids: list[int], mask: list[int]) -> torch.Tensor:
            with loaded.model.disable_adapter():
                reference = logp(loaded, prompt, ids, mask)
            return logp(loaded, prompt, ids, mask) - reference

        own = torch.stack([moved(r.prompt_ids, r.ids, r.mask) for r in rated])
        others = [rated[-1], *rated[:-1]]
        foreign = torch.stack([moved(r.prompt_ids, o.ids, o.mask) for r, o in zip(rated, others, strict=True)])
    kl = foreign.mean().clamp(min=0) if loss == "kto" else torch.zeros(())
    assert loss != "kto" or kl > 0.01, foreign
    sign = torch.tensor([1.0, -1.0, -1.0])
    each = 1 - torch.sigmoid(0.3 * sign * (own - kl))
    wanted = (each * torch.tensor([2.0, 1.0, 1.0])).mean()
    assert trainer.compute_loss(loaded.model, batch).item() == pytest.approx(wanted.item(), abs=1e-5)
