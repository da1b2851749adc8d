"""The report on experts during a run: when it is written, and that its numbers are right."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.routing import ExpertReport, Routing, experts_with_gradient, routing_of

IDS = torch.tensor([[5, 9, 3, 40, 7, 7, 21, 60, 2, 11], [8, 2, 1, 33, 12, 0, 0, 0, 0, 0]])


def train(model, report, rates):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1.0)
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    given = {"model": model, "optimizer": optimizer}
    model.train()
    report.on_train_begin(None, state, None, **given)
    for rate in rates:
        model(input_ids=IDS, labels=IDS).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        report.on_pre_optimizer_step(None, state, None, **given)
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        report.on_step_end(None, state, None, **given)
        assert model.training
    report.on_train_end(None, state, None, **given)


def test_it_waits_for_a_step_that_moves_weights(build_gptoss, tmp_path):
    numbers = []
    report = ExpertReport(tmp_path, lambda step, values: numbers.append((step, values)), every=2)
    model = attach_lora(build_gptoss(), LoraSettings(rank=2, router=True))
    train(model, report, [0.0, 0.0, 0.05, 0.05, 0.05])
    records = [json.loads(line) for line in (tmp_path / "adapter.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [3, 4, 5]
    assert [step for step, _ in numbers] == [3, 4, 5]
    for record in records:
        assert record["experts_with_gradient"]["experts.down"].keys() == {"0", "1"}
        assert [sum(layer) for layer in record["load"]] == pytest.approx([1, 1], abs=1e-5)
        assert all(0 <= value <= 1 for value in record["entropy"])
        assert record["router/changed"] >= 0
    assert records[-1]["router/drift"] > 0
    assert numbers[0][1]["adapter/experts_with_gradient"] > 0.5


def test_full_fine_tuning_is_measured_against_the_start(build_gptoss, tmp_path):
    train(build_gptoss(), ExpertReport(tmp_path, every=1), [0.1, 0.1])
    records = [json.loads(line) for line in (tmp_path / "adapter.jsonl").read_text().splitlines()]
    assert "experts_with_gradient" not in records[0]
    assert records[-1]["router/changed"] > 0


def test_experts_with_gradient_are_those_that_saw_tokens(build_gptoss):
    model = attach_lora(build_gptoss(num_local_experts=8), LoraSettings(rank=2))
    with torch.no_grad():
        for layer in model.get_base_model().model.layers:
            layer.mlp.router.bias[3:] = -1e4
    train(model, ExpertReport(), [0.01, 0.01])
    for counts, total in experts_with_gradient(model).values():
        assert total == 8
        assert counts == {0: 3, 1: 3}


def test_routing_leaves_padding_out_and_the_model_as_it_was(build_gptoss):
    model = build_gptoss()
    model.train()
    routing = routing_of(model, {"input_ids": IDS})
    assert model.training
    assert routing.picks_LNK.shape == (2, 15, 2)
    assert all(p.grad is None for p in model.parameters())


def test_numbers_of_a_routing():
    base = Routing(torch.tensor([[[0, 1], [0, 1]]]), 4)
    other = Routing(torch.tensor([[[0, 2], [0, 2]]]), 4)
    assert base.load.tolist() == [[0.5, 0.5, 0, 0]]
    assert base.entropy.tolist() == [0.5]
    assert base.drift(base) == base.changed(base) == 0
    assert other.drift(base) == 0.5
    assert other.changed(base) == 0.5
    assert Routing(torch.tensor([[[2, 3], [2, 3]]]), 4).drift(base) == 1


def test_the_record_of_a_router_that_always_picks_the_same_experts(build_gptoss, tmp_path):
    model = build_gptoss()
    routers = [layer.mlp.router for layer in model.model.layers]
    for router in routers:
        choose(router, [9.0, 6.0, 0.0, 0.0])
    model = attach_lora(model, LoraSettings(rank=2))
    report = ExpertReport(tmp_path, every=2)
    train(model, report, [0.01, 0.01])
    choose(routers[0], [9.0, 0.0, 6.0, 0.0])
    report.on_train_end(None, SimpleNamespace(global_step=3, is_world_process_zero=True), None, model=model)
    first, second, last = [json.loads(line) for line in (tmp_path / "adapter.jsonl").read_text().splitlines()]
    assert [first["step"], second["step"], last["step"]] == [1, 2, 3]
    half = {"experts.gate_up": {"0": 2, "1": 2}, "experts.down": {"0": 2, "1": 2}}
    assert second == {
        "step": 2,
        "experts_with_gradient": half,
        "adapter/experts_with_gradient": 0.5,
        "load": [[0.5, 0.5, 0.0, 0.0]] * 2,
        "entropy": [0.5, 0.5],
        "router/entropy": 0.5,
        "router/largest_load": 0.5,
        "router/drift": 0.0,
        "router/changed": 0.0,
    }
    assert last["load"] == [[0.5, 0.0, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]]
    assert last["router/drift"] == 0.25
    assert last["router/changed"] == 0.25


def choose(router, bias):
    """Every token takes the two experts with the greatest bias."""
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(torch.tensor(bias))
