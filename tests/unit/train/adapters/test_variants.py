"""DoRA and dropout of adapters on attention: what PEFT does with them arrives here, and merges as it trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pydantic import ValidationError

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.train.adapters.attach import attach_lora, attachment_table, is_fresh, load_lora, lora_of, lora_parts
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.merged import merged_state, write_merged
from counterpoint.train.checkpoints.weights import load_weights, save_weights

IDS = torch.tensor([[5, 9, 3, 40, 7, 7, 21, 60, 2, 11]])
DORA = LoraSettings(rank=4, alpha=8, experts=False, dora=True)


def trained(model: Any, steps: int = 3, rate: float = 1e-2) -> Any:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def test_dora_trains_lengths_and_counts_them(build_gptoss: Any) -> None:
    base = logits(build_gptoss())
    model = attach_lora(build_gptoss(), DORA)
    assert is_fresh(model)
    assert torch.allclose(logits(model), base, atol=1e-5)
    (row,) = attachment_table(model).rows
    hidden, outputs = 32, 32 + 16 + 16 + 32
    factors = 4 * (4 * hidden + outputs)
    assert row.parameters == 2 * (factors + outputs) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    lengths = {name: p.detach().clone() for name, p in model.named_parameters() if "magnitude" in name}
    assert len(lengths) == 2 * 4
    trained(model)
    assert all(not torch.equal(p, lengths[name]) for name, p in model.named_parameters() if name in lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_is_on_the_lean_path_what_it_is_on_the_reference(build_gptoss: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = attach_lora(build_gptoss(dtype), DORA)
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for path in ("reference", "lean"):
            use_implementations(model, ModelSettings(attention=path, experts=path, norms=path))
            if not found:
                trained(model)
            model.zero_grad()
            model(IDS, labels=IDS).loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found[path] = logits(model).float(), gradient
    close = 1e-4 if dtype == torch.float32 else 0.05
    for lean, reference in zip(found["lean"], found["reference"], strict=True):
        assert float((lean - reference).norm() / reference.norm()) < close


def test_dora_merges_as_it_trained(build_gptoss: Any, tmp_path: Path) -> None:
    model = trained(attach_lora(build_gptoss(), DORA))
    wanted = logits(model)
    plain = build_gptoss(seed=9)
    plain.load_state_dict(merged_state(model))
    assert torch.allclose(logits(plain), wanted, atol=1e-5)
    assert torch.allclose(logits(model), wanted, atol=1e-6), "the model itself stays as it was"
    write_merged(model, tmp_path / "merged")
    assert torch.allclose(logits(type(plain).from_pretrained(tmp_path / "merged")), wanted, atol=1e-5)
    assert torch.allclose(logits(model.merge_and_unload()), wanted, atol=1e-5)


def test_dora_is_saved_found_and_loaded(build_gptoss: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_gptoss().save_pretrained(base)
    model = trained(attach_lora(build_gptoss(), DORA))
    wanted = logits(model)
    save_weights(model, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"more than LoRA's two matrices \(use_dora\), which is not trained here"):
        lora_of(tmp_path / "adapter")  # as the beginning of another run
    again = attach_lora(build_gptoss(), DORA)
    load_weights(again, tmp_path / "adapter")
    assert torch.allclose(logits(again), wanted, atol=1e-6)
    onward = load_lora(build_gptoss(), tmp_path / "adapter", trainable=True)
    assert torch.allclose(logits(onward), wanted, atol=1e-6)
    assert sum("magnitude" in name and p.requires_grad for name, p in onward.named_parameters()) == 8
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": null', f'"base_model_name_or_path": "{base}"')
    )
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), wanted, atol=1e-5)


def test_dropout_is_in_training_alone_and_of_its_share(build_gptoss: Any) -> None:
    model = attach_lora(build_gptoss(), LoraSettings(rank=4, alpha=8, experts=False, dropout=0.25))
    trained(model)
    use_implementations(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first, second = model(IDS).logits, model(IDS).logits
    assert not torch.equal(first, second)
    shares = []
    for _, _, module in lora_parts(model):
        output = module.lora_dropout["default"](torch.ones(10_000))
        shares.append(float((output == 0).float().mean()))
        assert float(output.max()) == pytest.approx(1 / 0.75)
    assert len(shares) == 8
    assert all(share == pytest.approx(0.25, abs=0.03) for share in shares)


@pytest.mark.parametrize("name", ["dropout", "dora"])
@pytest.mark.parametrize("kind", ["experts", "router"])
def test_what_peft_has_for_attention_alone_is_refused_elsewhere(name: str, kind: str) -> None:
    value = {"dropout": 0.1, "dora": True}[name]
    kinds = {"experts": False, "router": False, kind: True}
    with pytest.raises(ValidationError, match=f"`{name}` is for adapters on attention alone"):
        LoraSettings.model_validate({name: value, **kinds})
    LoraSettings.model_validate({name: value, "experts": False})
    LoraSettings.model_validate({name: value, "enabled": False, **kinds})
