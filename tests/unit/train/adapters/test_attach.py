"""What LoRA is attached to, that a miss is an error, and that the proof after the first step notices faults."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from counterpoint.configs.errors import ModelError, RunError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import (
    attach_lora,
    attachment_table,
    check_attached_after_step,
    check_attached_before_step,
    load_lora,
    lora_of,
    lora_parts,
)

IDS = torch.tensor([[5, 9, 3, 40, 7, 7, 21, 60, 2, 11]])


def trained(model, steps=1, lr=1e-2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_table_counts_every_trainable_parameter(build_gptoss):
    settings = LoraSettings(rank=4, expert_rank=2, alpha=8, router=True)
    model = attach_lora(build_gptoss(), settings)
    table = attachment_table(model)
    rows = {row.kind: row for row in table.rows}
    hidden, inner, experts, layers = 32, 24, 4, 2
    assert rows["attention"].parameters == layers * 4 * (hidden * 3 + 16 * 2 + hidden * 3)
    assert rows["experts.gate_up"].parameters == layers * experts * 2 * (hidden + 2 * inner)
    assert rows["experts.down"].parameters == layers * experts * 2 * (inner + hidden)
    assert rows["router"].parameters == layers * 4 * (hidden + experts)
    assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {row.kind: (row.rank, row.scale) for row in table.rows} == {
        "attention": (4, 2.0), "experts.gate_up": (2, 2.0), "experts.down": (2, 2.0), "router": (4, 2.0),
    }  # fmt: skip
    assert all(row.layers == (0, 1) for row in table.rows)
    text = table.text()
    assert all(word in text for word in ("experts.gate_up", "0-1"))
    assert f"{table.trainable:,} of {table.total:,}" in text


def test_full_fine_tuning_has_a_table_too(build_gptoss):
    model = build_gptoss()
    table = attachment_table(model)
    assert table.trainable == table.total == sum(p.numel() for p in model.parameters())
    assert {row.kind for row in table.rows} == {
        "embedding", "head", "norms", "attention", "sinks", "router", "experts.gate_up", "experts.down",
    }  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_alphas_and_rslora_reach_every_part(build_gptoss, rslora):
    settings = LoraSettings(rank=4, expert_rank=2, alpha=8, expert_alpha=12, rslora=rslora)
    rows = {row.kind: row for row in attachment_table(attach_lora(build_gptoss(), settings)).rows}
    assert rows["attention"].scale == (8 / 2 if rslora else 8 / 4)
    assert rows["experts.down"].scale == pytest.approx(12 / 2**0.5 if rslora else 12 / 2)


def test_layers_attach_only_there(build_gptoss):
    model = attach_lora(build_gptoss(), LoraSettings(rank=2, layers=(1,), router=True))
    assert {(kind, layer) for kind, layer, _ in lora_parts(model)} == {
        ("attention", 1), ("experts.gate_up", 1), ("experts.down", 1), ("router", 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (LoraSettings(layers=(0, 2)), r"layers 0 to 1, not \[2\]"),
        (LoraSettings(enabled=False, attention=False, experts=False), "nothing to attach"),
    ],
)
def test_wrong_targets_are_errors(build_gptoss, settings, match):
    with pytest.raises(ModelError, match=match):
        attach_lora(build_gptoss(), settings)


def test_a_model_without_experts_is_an_error(build_gptoss):
    model = build_gptoss()
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"not found in the model: experts.gate_up in layers 0-1; experts.down"):
        attach_lora(model, LoraSettings())
    with pytest.raises(ModelError, match="PEFT found nothing"):
        attach_lora(model, LoraSettings(attention=False))


def test_one_missing_projection_is_an_error(build_gptoss):
    model = build_gptoss()
    model.model.layers[1].self_attn.k_proj = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"PEFT found nothing|attention in layers 1"):
        attach_lora(model, LoraSettings())


def test_new_adapter_changes_nothing_and_one_step_moves_every_b(build_gptoss):
    model = build_gptoss()
    with torch.no_grad():
        before = model(IDS).logits
    model = attach_lora(model, LoraSettings(rank=4, router=True))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)
    with pytest.raises(RunError, match=r"still zero after the first step: attention in layers 0-1; experts.gate_up in"):
        check_attached_after_step(model)
    optimizer = trained(model)
    check_attached_before_step(model, optimizer)
    check_attached_after_step(model)


@pytest.mark.parametrize("kind", ["attention", "experts.gate_up", "experts.down", "router"])
def test_frozen_by_accident_is_found_before_and_after_the_step(build_gptoss, kind):
    model = attach_lora(build_gptoss(), LoraSettings(rank=4, router=True))
    for found, layer, module in lora_parts(model):
        if found == kind and layer == 1:
            module.lora_B["default"].weight.requires_grad_(False)
    with pytest.raises(RunError, match=f"frozen or unknown to the optimizer: {kind} in layers 1"):
        check_attached_before_step(model)
    trained(model)
    with pytest.raises(RunError, match=f"still zero after the first step: {kind} in layers 1: "):
        check_attached_after_step(model)


def test_a_weight_that_the_optimizer_does_not_know_is_found(build_gptoss):
    model = attach_lora(build_gptoss(), LoraSettings(rank=4))
    known = [p for name, p in model.named_parameters() if p.requires_grad and "experts" not in name]
    with pytest.raises(RunError, match="unknown to the optimizer: experts"):
        check_attached_before_step(model, torch.optim.AdamW(known))


def test_saved_adapter_loads_in_plain_peft_and_has_the_names_and_shapes_that_servers_read(build_gptoss, tmp_path):
    hidden, inner, experts, rank = 32, 24, 4, 3
    model = attach_lora(build_gptoss(), LoraSettings(rank=rank, alpha=6, router=False))
    trained(model, steps=2)
    model.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0"
    shapes = {name.removeprefix(stem + "."): tuple(t.shape) for name, t in tensors.items() if name.startswith(stem)}
    assert shapes == {
        "self_attn.q_proj.lora_A.weight": (rank, hidden), "self_attn.q_proj.lora_B.weight": (32, rank),
        "self_attn.k_proj.lora_A.weight": (rank, hidden), "self_attn.k_proj.lora_B.weight": (16, rank),
        "self_attn.v_proj.lora_A.weight": (rank, hidden), "self_attn.v_proj.lora_B.weight": (16, rank),
        "self_attn.o_proj.lora_A.weight": (rank, 32), "self_attn.o_proj.lora_B.weight": (hidden, rank),
        "mlp.experts.base_layer.lora_A.weight": (experts * rank, hidden),
        "mlp.experts.base_layer.lora_B.weight": (2 * inner, rank * experts),
        "mlp.experts.lora_A.weight": (experts * rank, inner),
        "mlp.experts.lora_B.weight": (hidden, rank * experts),
    }  # fmt: skip
    with torch.no_grad():
        live = model(IDS).logits
        plain = PeftModel.from_pretrained(build_gptoss(), str(tmp_path))
        assert type(plain.base_model.model.model.layers[0].mlp.experts).__module__.startswith("peft.")
        assert torch.allclose(plain(IDS).logits, live, atol=2e-5, rtol=0)
        ours = load_lora(build_gptoss(), tmp_path)
        assert torch.allclose(ours(IDS).logits, live, atol=2e-5, rtol=0)
    assert not any(p.requires_grad for p in ours.parameters())
    assert attachment_table(load_lora(build_gptoss(), tmp_path, trainable=True)).trainable > 0


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(),
        LoraSettings(rank=4, alpha=8, expert_rank=2, router=True),
        LoraSettings(rank=4, alpha=6, expert_rank=1, expert_alpha=9, rslora=True),
        LoraSettings(rank=4, expert_rank=8, rslora=True, layers=(1,)),
        LoraSettings(attention=False, layers=(0,)),
        LoraSettings(experts=False),
        LoraSettings(attention=False, experts=False, router=True),
    ],
)
def test_a_saved_adapter_says_which_settings_made_it(build_gptoss, tmp_path, settings):
    attach_lora(build_gptoss(), settings).save_pretrained(tmp_path)
    assert lora_of(tmp_path) == settings


def test_a_folder_without_an_adapter_is_an_error(build_gptoss, tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_lora(build_gptoss(), tmp_path)


def test_a_damaged_adapter_and_one_of_another_model_are_errors(build_gptoss, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"xx")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="no adapter of this model"):
        load_lora(build_gptoss(), tmp_path)
    attach_lora(build_gptoss(), LoraSettings(rank=2)).save_pretrained(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"xx")
    with pytest.raises(ModelError, match="no adapter of this model"):
        load_lora(build_gptoss(), tmp_path)
