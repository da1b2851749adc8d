"""Schedules, rates by part, AdamW's constants, noise on embeddings and frozen parts: each seen in the optimizer that a
run makes, or in what a step changed."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers.optimization import get_scheduler

from counterpoint.configs.errors import ModelError
from counterpoint.configs.schema import LoraSettings, RateSettings, SftRun, TrainSettings
from counterpoint.train.adapters.attach import attach_lora, attachment_table
from counterpoint.train.adapters.parts import freeze, model_part
from counterpoint.train.loop.training_arguments import schedule_arguments, sft_arguments

STEPS = 10


def rates_of(steps: int = STEPS, **train: Any) -> list[float]:
    """The share of the learning rate at each step, by the scheduler that transformers makes of our settings; the last
    is that of the step after the last."""
    settings = TrainSettings(learning_rate=2e-4, **train)
    given = schedule_arguments(settings, steps)
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = get_scheduler(
        given["lr_scheduler_type"], optimizer, given["warmup_steps"], steps, given["lr_scheduler_kwargs"]
    )
    shares = []
    for _ in range(steps + 1):
        shares.append(schedule.get_last_lr()[0] / settings.learning_rate)
        optimizer.step()
        schedule.step()
    return [round(share, 6) for share in shares]


def half_cosine(progress: float, floor: float) -> float:
    return round(floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)), 6)


def test_cosine_falls_to_its_floor() -> None:
    assert rates_of(schedule="cosine", warmup_steps=0) == [half_cosine(n / 10, 0.0) for n in range(11)]
    assert rates_of(schedule="cosine", warmup_steps=0, min_rate=0.1) == [half_cosine(n / 10, 0.1) for n in range(11)]


def test_linear_falls_to_its_floor() -> None:
    assert rates_of(schedule="linear", warmup_steps=0) == [round(1 - n / 10, 6) for n in range(11)]
    assert rates_of(schedule="linear", warmup_steps=2, min_rate=0.2) == [
        0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [STEPS, STEPS + 5])
def test_a_warm_up_as_long_as_the_run_is_no_error(schedule: str, warmup: int) -> None:
    floor = 0.0 if schedule == "constant" else 0.25
    shares = rates_of(schedule=schedule, warmup_steps=warmup, min_rate=floor)
    begin = floor if schedule == "wsd" else 0.0
    assert shares[:STEPS] == [round(begin + (1 - begin) * n / warmup, 6) for n in range(STEPS)]


def test_wsd_stays_up_and_falls_at_the_end() -> None:
    assert rates_of(schedule="wsd", warmup_steps=2, decay_ratio=0.4) == [
        0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0
    ]  # fmt: skip
    assert rates_of(schedule="wsd", warmup_steps=0, decay_ratio=0.2, min_rate=0.5) == [1.0] * 9 + [0.75, 0.5]
    assert rates_of(steps=20, schedule="wsd", warmup_steps=0) == [1.0] * 19 + [0.5, 0.0]
    # A fall as long as the run begins behind the warm-up.
    assert rates_of(schedule="wsd", warmup_steps=2, decay_ratio=1.0)[2:] == [round(1 - n / 8, 6) for n in range(9)]


def run(lora: dict[str, Any] | None = None, **train: Any) -> SftRun:
    values = {"device": "cpu", "learning_rate": 1e-3, "warmup_steps": 0, "schedule": "constant", **train}
    return SftRun.model_validate(
        {"recipe": "sft", "data": {"train": "rows.jsonl"}, "train": values, "lora": lora or {"rank": 4, "alpha": 8}}
    )


def trainer_of(tiny_run: ModuleType, folder: Path, settings: SftRun, steps: int = 1, **more: Any) -> Any:
    """The trainer on a tiny model with the adapter and the optimizer's arguments of `settings`."""
    model = tiny_run.tiny_model(lora=False)
    if settings.lora.enabled:
        model = attach_lora(model, settings.lora)
    freeze(model, settings.train)
    given = sft_arguments(settings, folder, 100)
    names = ("adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha", "weight_decay", "max_grad_norm")
    return tiny_run.make(
        folder, model=model, steps=steps, batch=1, accumulation=1, rate=given.learning_rate, every=1000,
        loop={"rates": settings.train.rates}, **{name: getattr(given, name) for name in names}, **more,
    )  # fmt: skip


def by_name(trainer: Any) -> dict[str, dict[str, Any]]:
    """Name of a parameter -> its group of the optimizer."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {names[id(p)]: group for group in trainer.optimizer.param_groups for p in group["params"]}


def test_rates_by_part_and_of_b(tiny_run: ModuleType, tmp_path: Path) -> None:
    settings = run(rates={"lora_b": 16, "experts": 0.5}, weight_decay=0.1)
    trainer = trainer_of(tiny_run, tmp_path, settings)
    trainer.create_optimizer_and_scheduler(1)
    groups = by_name(trainer)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(groups) == trained
    expected = {(False, False): 1e-3, (False, True): 16e-3, (True, False): 0.5e-3, (True, True): 8e-3}
    for name, group in groups.items():
        assert group["initial_lr"] == pytest.approx(expected[".experts." in name, ".lora_B." in name]), name
        assert group["weight_decay"] == 0.1
    # What the log and the plan call the learning rate is that of the first group.
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 1e-3


def test_a_rate_of_a_part_is_what_its_first_step_moves(tiny_run: ModuleType, tmp_path: Path) -> None:
    """AdamW's first step moves every weight with a gradient by its rate."""
    moved: dict[float, dict[str, float]] = {}
    for factor in (1.0, 8.0):
        trainer = trainer_of(tiny_run, tmp_path / str(factor), run(rates={"lora_b": factor}), warmup_steps=0)
        before = tiny_run.weights_of(trainer)
        trainer.train()
        after = tiny_run.weights_of(trainer)
        moved[factor] = {name: float((after[name] - before[name]).abs().max()) for name in after}
    for name in moved[1.0]:
        if ".lora_B." in name:
            assert moved[1.0][name] == pytest.approx(1e-3, rel=0.02), name
            assert moved[8.0][name] == pytest.approx(8e-3, rel=0.02), name
        else:
            assert moved[1.0][name] == moved[8.0][name], name


def test_without_factors_the_groups_are_those_of_transformers(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_run, tmp_path, run(lora={"enabled": False}))
    trainer.create_optimizer_and_scheduler(1)
    assert [len(group["params"]) for group in trainer.optimizer.param_groups] == [
        sum(p.ndim > 1 for p in trainer.model.parameters()) - _matrices_without_decay(trainer),
        sum(p.ndim <= 1 for p in trainer.model.parameters()) + _matrices_without_decay(trainer),
    ]


def _matrices_without_decay(trainer: Any) -> int:
    """Biases of experts have two dimensions."""
    return sum(p.ndim > 1 and "bias" in name for name, p in trainer.model.named_parameters())


def test_a_run_with_rates_resumes_with_them(tiny_run: ModuleType, tmp_path: Path) -> None:
    settings = run(rates={"lora_b": 4})
    whole = trainer_of(tiny_run, tmp_path / "whole", settings, steps=4)
    whole.train()
    first = trainer_of(tiny_run, tmp_path / "parts", settings, steps=4)
    first.args.save_steps = first.state.save_steps = 2
    first.train()
    again = trainer_of(tiny_run, tmp_path / "parts", settings, steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoints" / "step-000002"))
    assert again.curve.losses == whole.curve.losses[2:]
    ends = tiny_run.weights_of(whole)
    assert all(torch.equal(tensor, ends[name]) for name, tensor in tiny_run.weights_of(again).items())


def test_constants_of_adamw_arrive(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_run, tmp_path, run(adam_betas=[0.8, 0.95], adam_epsilon=1e-3))
    trainer.create_optimizer_and_scheduler(1)
    for group in trainer.optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-3)


def test_noise_on_embeddings_is_in_training_alone(tiny_run: ModuleType, tmp_path: Path) -> None:
    alpha, seen = 7.0, []
    trainer = trainer_of(tiny_run, tmp_path, run(neftune_alpha=alpha))
    embeddings = trainer.base.get_input_embeddings()

    def note(module: Any, arguments: Any, output: torch.Tensor) -> None:
        noise = output.detach() - module.weight[arguments[0]]
        seen.append((noise, alpha / math.sqrt(noise.shape[1] * noise.shape[2])))

    class Watch(tiny_run.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            embeddings.register_forward_hook(note)  # behind the hook of transformers

    trainer.add_callback(Watch())
    trainer.train()
    ((noise, bound),) = seen
    assert 0.9 * bound < float(noise.abs().max()) <= bound * 1.0001
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    ids = torch.tensor([[3, 4, 5]])
    trainer.model.eval()
    assert torch.equal(embeddings(ids), embeddings.weight[ids])
    trainer.model.train()
    assert torch.equal(embeddings(ids), embeddings.weight[ids]), "the noise stays behind"


FROZEN = {"experts": 4, "router": 2, "embeddings": 1, "attention": 9, "norms": 2, "head": 1}


@pytest.mark.parametrize("part", FROZEN)
def test_a_frozen_part_does_not_move_and_the_rest_does(tiny_run: ModuleType, tmp_path: Path, part: Any) -> None:
    settings = run(lora={"enabled": False}, frozen=part)
    trainer = trainer_of(tiny_run, tmp_path, settings, warmup_steps=0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    of_part = [name for name in before if model_part(name) == part]
    assert len(of_part) == FROZEN[part] * (1 if part in ("embeddings", "head") else 2) + (part == "norms")
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        still = torch.equal(parameter, before[name])
        # A token that no row has keeps its row, but not its matrix.
        assert still == (name in of_part), name


def test_frozen_layers(tiny_run: ModuleType, tmp_path: Path) -> None:
    settings = run(lora={"enabled": False}, frozen_layers=0, frozen=["embeddings", "head"])
    trainer = trainer_of(tiny_run, tmp_path, settings)
    left = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert left
    assert all(".layers.1." in name or name == "model.norm.weight" for name in left)
    assert {layer for row in attachment_table(trainer.model).rows for layer in row.layers} == {1}


def test_what_cannot_be_frozen_is_told(tiny_run: ModuleType) -> None:
    with pytest.raises(ModelError, match=r"train.frozen_layers: this model has layers 0 to 1, not \[2\]"):
        freeze(tiny_run.tiny_model(lora=False), TrainSettings(frozen_layers=(2,)))
    most = TrainSettings(frozen=("embeddings", "head", "norms"), frozen_layers=(0, 1))
    with pytest.raises(ModelError, match="together they freeze every weight"):
        freeze(tiny_run.tiny_model(lora=False), most)


def test_every_parameter_has_its_part(tiny_run: ModuleType) -> None:
    plain = tiny_run.tiny_model(lora=False)
    adapted = attach_lora(tiny_run.tiny_model(lora=False), LoraSettings(rank=2, router=True))
    for model in (plain, adapted):
        for name, _ in model.named_parameters():
            assert model_part(name) is not None, name
    assert set(RateSettings.model_fields) == {"lora_b", *FROZEN}
