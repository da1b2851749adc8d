"""Our losses of pairs and of rated completions against TRL's: packed tree rows against padded ones, the same number,
gradients and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import TrainingArguments
from trl_preferences import batch_of, oracle, whole

from counterpoint.configs.preference_section import RATED_LOSSES, DpoLoss, DpoSettings
from counterpoint.configs.schema import LoraSettings
from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.data.layout.collate import Collator
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.preference_loss import Side, pair_loss, rated_loss
from counterpoint.train.loop.preference_rows import micro_batches, units_of
from counterpoint.train.loop.preference_trainer import PreferenceTrainer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny


def model(adapted: bool = True) -> LoadedModel:
    torch.manual_seed(0)
    loaded = random_tiny()
    if not adapted:
        return loaded
    return loaded.with_model(attach_lora(loaded.model, LoraSettings(rank=4, expert_rank=2, router=True)))


def stirred(loaded: LoadedModel, by: float) -> None:
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if ("lora_B" in name and ".default." in name) or not hasattr(loaded.model, "peft_config"):
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * by


def rows_of(loaded: LoadedModel, rated: bool) -> list[Any]:
    """Prompts of 30, 3, 17 and 9 tokens, completions of 1 to 10: some compared in part, two that begin alike, one that is
    the beginning of the other, one of which nothing is compared."""
    draw = torch.Generator().manual_seed(0)
    known = loaded.vocabulary_map.ids(list(range(1, loaded.vocabulary_map.n_rows)))

    def ids(n: int) -> list[int]:
        return known[torch.randint(0, len(known), (n,), generator=draw).numpy()].tolist()

    pairs = []
    for prompt, up, down in ((30, 10, 7), (3, 1, 4), (17, 6, 3), (9, 5, 8)):
        pair = Pair("", "given", ids(prompt), ids(up), ids(down), [1] * up, [1] * down)
        if up == 10:
            pair.chosen_mask[4:7] = [0] * 3
            pair.rejected_ids[:2] = pair.chosen_ids[:2]
        if up == 6:
            pair.rejected_ids[:] = pair.chosen_ids[:3]
        if up == 5:
            pair.rejected_mask[:] = [0] * 8
        pairs.append(pair)
    if not rated:
        return pairs
    both = [(pair, side) for pair in pairs for side in (True, False) if side or any(pair.rejected_mask)]
    return [
        Rated("", "wanted", pair.prompt_ids, *((pair.chosen_ids, pair.chosen_mask, True) if side
              else (pair.rejected_ids, pair.rejected_mask, False)))
        for pair, side in both
    ]  # fmt: skip


def trainer_of(loaded: LoadedModel, folder: Path, dpo: DpoSettings, rows: Sequence[Any]) -> PreferenceTrainer:
    args = TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=len(rows), use_cpu=True, report_to="none",
        train_sampling_strategy="sequential", max_grad_norm=0.0,
    )  # fmt: skip
    loop = LoopSettings(folder / "checkpoints")
    return PreferenceTrainer(loaded, args, rows, dpo, 10_000, loop, Identity({}, "", len(rows)))


def stepped(trainer: PreferenceTrainer, n: int) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
    """(loss, gradients, what is logged) of a step."""
    model: Any = trainer.model
    model.zero_grad()
    trainer._metrics.clear()
    trainer.state.num_input_tokens_seen = 0
    loss = float(trainer.training_step(model, {"numbers": torch.arange(n)}))
    return loss, gradients(model), {name: values[-1] for name, values in trainer._metrics.items()}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def settings(**given: Any) -> DpoSettings:
    return DpoSettings.model_validate({"beta": 0.3, **given})


CASES: dict[str, DpoSettings] = {
    **{name: settings(losses=name) for name in ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair")},
    "sppo_hard": settings(losses="sppo_hard", beta=1),
    **{name: settings(losses=name) for name in ("apo_zero", "apo_down", "sigmoid_norm", "apo_zero_unpaired")},
    "robust": settings(losses="robust", label_smoothing=0.2),
    "summed": settings(losses=("sigmoid", "sft", "ipo"), loss_weights=(0.5, 2.0, 0.1)),
    "kto": settings(losses="kto"),
    "kto onward": settings(losses="kto", wanted_weight=2.0, unwanted_weight=0.5),
    "full": settings(losses=("sigmoid", "sft")),
}
QUICK = ("summed", "robust", "kto onward", "apo_zero_unpaired")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_a_step_is_trl_s(name: str, tmp_path: Path) -> None:
    dpo = CASES[name]
    loaded = model(adapted=name != "full")
    if name == "kto onward":  # an adapter that was trained before is its own reference
        stirred(loaded, 0.02)
    rows = rows_of(loaded, dpo.rated)
    ours = trainer_of(loaded, tmp_path, dpo, rows)
    before = whole(loaded.model) if name == "full" else None
    if name == "kto onward":
        loaded.model.delete_adapter("ref")  # TRL adds its own
    theirs = oracle(loaded, tmp_path, dpo, len(rows), before)
    stirred(loaded, 0.03)

    loaded.model.train().zero_grad()
    expected = theirs.loss(batch_of(loaded, rows))
    expected.backward()
    wanted, told = gradients(loaded.model), theirs.told()
    assert sum(float(each.norm()) for each in wanted.values()) > 1e-3
    if name == "kto onward":  # without it, the estimate is below 0 and cut
        assert told["kl"] > 0.01
    for ours.row_tokens, least in ((10_000, 1), (50, 2)):
        assert len(ours._batches(ours._part(rows), (0,))) >= least
        loss, found, logged = stepped(ours, len(rows))
        # Its squares multiply what the sums of log-probabilities are rounded by.
        close = 5e-6 if name == "sppo_hard" else 1e-6
        assert loss == pytest.approx(expected.item(), abs=close * max(1.0, abs(expected.item())))
        assert found.keys() == wanted.keys()
        for part, gradient in wanted.items():
            assert float((found[part] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, part
        for key, value in told.items():
            assert logged[key] == pytest.approx(value, abs=2e-5 * max(1.0, abs(value))), key
        loaded.model.eval()
        held_out = ours.held_out(rows)
        assert held_out["loss"] == pytest.approx(loss, abs=1e-5 * max(1.0, abs(loss)))
        assert held_out["rewards/margins"] == pytest.approx(told["rewards/margins"], abs=1e-5)


def made_up() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    names = ("up", "down", "up_reference", "down_reference")
    facts = {name: -20 + 3 * torch.randn(6, generator=draw) for name in names}
    facts |= {"up_tokens": torch.tensor([3, 9, 4, 1, 7, 5]), "down_tokens": torch.tensor([2, 8, 8, 6, 1, 3])}
    return facts | {"wanted": torch.tensor([1, 0, 0, 1, 1, 0]), "drift": torch.tensor([0.5, 2.0])}


def by_hand(dpo: DpoSettings, facts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The gradient at the log-probabilities of six made-up pairs, or completions."""
    up, down = facts["up"].clone().requires_grad_(), facts["down"].clone().requires_grad_()
    chosen, rejected = (
        Side(each, facts[f"{name}_reference"], facts[f"{name}_tokens"]) for name, each in (("up", up), ("down", down))
    )
    if dpo.rated:
        loss = rated_loss(dpo, chosen, facts["wanted"] > 0, facts["drift"][0], 1 / 6)
    else:
        loss = pair_loss(dpo, chosen, rejected, 1 / 6, 1 / 29)
    loss.backward()
    return torch.cat([torch.zeros(6) if each.grad is None else each.grad for each in (up, down)])


LOSSES = [name for name in get_args(DpoLoss) if name not in RATED_LOSSES]


def test_no_loss_is_another() -> None:
    found = [
        by_hand(settings(losses=name, label_smoothing=0.2 if name == "robust" else 0.0), made_up()) for name in LOSSES
    ]
    found += [by_hand(settings(losses="kto"), made_up())]
    for n, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-4 * one.abs().max() for other in found[:n])


@pytest.mark.parametrize(
    ("dpo", "wrong"),
    [
        ({"losses": ("sigmoid", "sft")}, {"beta": 0.31}),
        ({"losses": ("sigmoid", "sft")}, {"loss_weights": (1, 0.9)}),
        ({"losses": "robust", "label_smoothing": 0.2}, {"label_smoothing": 0.21}),
        ({"losses": "kto"}, {"losses": "apo_zero_unpaired", "drift": 0}),
        ({"losses": "kto"}, {"wanted_weight": 1.1}),
        ({"losses": "kto"}, {"unwanted_weight": 1.1}),
        *[({"losses": "sigmoid"}, name) for name in ("up", "down", "up_reference", "down_reference")],
        *[({"losses": "ipo"}, name) for name in ("up_tokens", "down_tokens")],
        *[({"losses": "kto"}, name) for name in ("wanted", "drift", "up_reference")],
    ],
    ids=str,
)  # fmt: skip
def test_every_wrong_setting_and_fact_is_seen(dpo: dict[str, Any], wrong: Any) -> None:
    facts, changed = made_up(), dict(dpo)
    if isinstance(wrong, str):
        facts[wrong] = facts[wrong].roll(1)
    else:
        facts["drift"] = facts["drift"] * wrong.get("drift", 1)
        changed |= {name: value for name, value in wrong.items() if name != "drift"}
    right, found = by_hand(settings(**dpo), made_up()), by_hand(settings(**changed), facts)
    assert (right - found).abs().max() > 1e-4 * right.abs().max()


def test_rows_are_packed_and_no_unit_is_cut() -> None:
    loaded = random_tiny()
    rows = rows_of(loaded, rated=True)
    units = units_of(rows)
    assert [list(other.ids) for _, other in units] == [row.ids for row in [rows[-1], *rows[:-1]]]
    assert all(
        own.prompt_ids == other.prompt_ids == row.prompt_ids for (own, other), row in zip(units, rows, strict=True)
    )
    batches = micro_batches(units_of(rows_of(loaded, rated=False)), (0, 1), 40, Collator(loaded.vocabulary_map.rows))
    # Of 30 + 10 + 7 tokens less two that both sides begin with; a rejected side that the chosen one begins with is in it.
    assert [batch["input_ids"].numel() for batch in batches] == [45, 8, 23 + 14]
    assert [batch["units"].tolist() for batch in batches] == [[0], [1], [2, 3]]
    assert batches[1]["side"].tolist() == [2, *[3] * 4]
    assert batches[2]["side"].tolist() == [*[4] * 6, *[5] * 3, *[6] * 5], (
        "nothing of the last rejected side is compared"
    )
