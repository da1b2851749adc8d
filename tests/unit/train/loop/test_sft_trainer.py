from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from counterpoint.configs.errors import RunError
from counterpoint.data.layout.collate import Collator
from counterpoint.train.model.masks import tree_masks


def full_loss(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of weight x nll, logits) with all logits, by hand."""
    masks = tree_masks(batch["position_ids"], batch["subtree_end"], model.config.sliding_window, model.dtype)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=masks).logits
    logp = logits.flatten(0, 1).log_softmax(-1)[batch["target_index"]]
    nll = -logp.gather(1, batch["target_ids"][:, None])[:, 0]
    return (nll * batch["target_weights"]).sum(), logits


def test_loss_is_that_of_full_logits(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(6)
    trainer = tiny_run.make(tmp_path, rows=rows)
    batch = trainer.data_collator([{"row": i} for i in range(len(rows))])
    loss, nll = trainer.nll(trainer.model, batch, 1.0)
    expected, _ = full_loss(trainer.base, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (nll * batch["target_weights"]).sum().item() == pytest.approx(expected.item(), rel=1e-6)
    assert batch["n_tokens"] == sum(len(row.ids) for row in rows)
    assert nll.dtype == torch.float32
    assert not nll.requires_grad


def test_gradients_are_those_of_full_logits(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = tiny_run.make(tmp_path, lora=False)
    batch = trainer.data_collator([{"row": i} for i in range(4)])
    trainer.nll(trainer.model, batch, 3.0)[0].backward()
    ours = {name: p.grad.clone() for name, p in trainer.base.named_parameters()}
    trainer.base.zero_grad()
    (full_loss(trainer.base, batch)[0] / 3.0).backward()
    for name, p in trainer.base.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_last_hidden_state_is_what_the_head_reads(tiny_run: ModuleType) -> None:
    model = tiny_run.tiny_model(lora=False)
    out = model(input_ids=torch.arange(1, 9)[None], output_hidden_states=True)
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)


def test_the_model_makes_no_logits(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = tiny_run.make(tmp_path, steps=1, batch=3, accumulation=1)
    seen = []
    trainer.base.get_output_embeddings().register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape)))
    trainer.train()
    assert seen == [(3, 0, tiny_run.N_VOCAB)]


@pytest.mark.parametrize("lora", [True, False])
def test_micro_batches_do_not_change_the_trajectory(tiny_run: ModuleType, tmp_path: Path, lora: bool) -> None:
    curves, weights = [], []
    for batch, accumulation in ((8, 1), (1, 8), (2, 4)):
        model = tiny_run.tiny_model(3, lora, torch.float64)
        folder = tmp_path / f"{batch}x{accumulation}"
        trainer = tiny_run.make(
            folder, model=model, rows=tiny_run.tiny_rows(25), batch=batch, accumulation=accumulation, steps=6, every=99
        )
        trainer.train()
        curves.append(trainer.curve.logs)
        weights.append(tiny_run.weights_of(trainer))
    # 24 rows: the epoch ends within the run, and its last step has fewer rows.
    for other in curves[1:]:
        for ours, theirs in zip(curves[0], other, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-12) for key in ours)
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-7, msg=name)


def test_weight_decay_is_on_matrices_alone(tiny_run: ModuleType, tmp_path: Path) -> None:
    weights = []
    for decay in (0.0, 0.5):
        trainer = tiny_run.make(tmp_path / str(decay), lora=False, steps=1, warmup_steps=0, weight_decay=decay)
        trainer.train()
        weights.append(tiny_run.weights_of(trainer))
    plain, decayed = weights
    moved = {name for name in plain if (plain[name] != decayed[name]).any()}
    assert moved == {name for name in plain if not name.endswith(("bias", "norm.weight", "layernorm.weight", "sinks"))}
    name = "model.layers.0.self_attn.q_proj.weight"
    before = tiny_run.tiny_model(lora=False).state_dict()[name]
    torch.testing.assert_close(decayed[name], plain[name] - 5e-3 * 0.5 * before)


def test_same_seed_same_bits(tiny_run: ModuleType, tmp_path: Path) -> None:
    runs = []
    for i, seed in enumerate((5, 5, 6)):
        trainer = tiny_run.make(tmp_path / str(i), model=tiny_run.tiny_model(0), seed=seed, steps=8)
        trainer.train()
        runs.append((trainer.curve.logs, tiny_run.weights_of(trainer)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())
    assert runs[0][0] != runs[2][0]


def test_logs_hold_the_loss_by_channel(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(9)
    trainer = tiny_run.make(tmp_path, rows=rows, batch=2, accumulation=4, steps=1)
    batch = Collator()(rows)
    before, nll = trainer.nll(trainer.model, batch, float(batch["target_weights"].double().sum()))
    trainer.train()
    (log,) = trainer.curve.logs
    assert log["loss"] == pytest.approx(before.item(), rel=1e-6)
    for code, name in enumerate(("analysis", "commentary", "final"), start=1):
        here = batch["target_channels"] == code
        weights = batch["target_weights"][here]
        assert log[f"loss_{name}"] == pytest.approx(((nll[here] * weights).sum() / weights.sum()).item(), rel=1e-5)
    assert "loss_context" not in log
    assert log["trained_tokens"] == len(batch["target_ids"])
    assert log["tokens"] == sum(len(row.ids) for row in rows)
    assert log["step"] == 1


def test_auxiliary_loss_of_the_config_is_ignored(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = tiny_run.make(tmp_path, steps=1)
    assert trainer.base.config.router_aux_loss_coef == 0.0
    assert trainer.base.config.output_router_logits is False
    assert trainer.router_loss is None


def test_auxiliary_loss_where_asked_for(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(2)[:1]
    trainer = tiny_run.make(tmp_path, rows=rows, lora=False, loop={"router_aux_loss_coef": 0.5})
    batch = trainer.data_collator([{"row": 0}])
    trainer.current_gradient_accumulation_steps = 2
    total = batch["target_weights"].sum()
    with_aux = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=total)
    plain = trainer.nll(trainer.model, batch, total)[0]
    masks = tree_masks(batch["position_ids"], batch["subtree_end"], 8, torch.float32)
    inner = trainer.base.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=masks,
        output_router_logits=True,
    )
    expected = load_balancing_loss_func(inner.router_logits, 4, 2)
    assert (with_aux - plain).item() == pytest.approx(0.25 * expected.item(), rel=1e-4)
    with_aux.backward()
    assert trainer.base.model.layers[0].mlp.router.weight.grad.abs().sum() > 0


def test_activation_checkpointing_changes_no_number(tiny_run: ModuleType, tmp_path: Path) -> None:
    curves = []
    for on in (False, True):
        trainer = tiny_run.make(tmp_path / str(on), steps=4, model=tiny_run.tiny_model(0))
        trainer.args.activation_checkpointing = trainer.args.gradient_checkpointing = on
        if on:
            trainer.base.enable_input_require_grads()
        trainer.train()
        assert trainer.base.model.is_gradient_checkpointing == on
        curves.append(trainer.curve.logs)
    for ours, theirs in zip(*curves, strict=True):
        assert all(ours[key] == pytest.approx(theirs[key], rel=1e-5) for key in ours)


def test_bfloat16_base_trains_float32_adapters(tiny_run: ModuleType, tmp_path: Path) -> None:
    trainer = tiny_run.make(tmp_path, model=tiny_run.tiny_model(0, dtype=torch.bfloat16), steps=3)
    assert trainer.autocast
    trainer.train()
    assert all(tensor.dtype == torch.float32 for tensor in tiny_run.weights_of(trainer).values())
    assert all(math.isfinite(log["loss"]) for log in trainer.curve.logs)


def test_rows_without_weight_train_nothing(tiny_run: ModuleType, tmp_path: Path) -> None:
    rows = tiny_run.tiny_rows(4)
    silent = [type(row)(*(getattr(row, f) for f in row.__slots__)) for row in rows]
    for row in silent:
        row.target_weight[:] = 0
    trainer = tiny_run.make(tmp_path, rows=silent, steps=1)
    before = tiny_run.weights_of(trainer)
    trainer.train()
    assert trainer.curve.logs[0]["loss"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_run.weights_of(trainer).items())


class Poison(TrainerCallback):
    """Breaks the model in the step after `step`: NaN for one token, or an infinite gradient."""

    def __init__(self, trainer_of: dict[str, Any], step: int, token: int | None) -> None:
        self.trainer_of, self.step, self.token = trainer_of, step, token

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        base = self.trainer_of["trainer"].base
        if state.global_step != self.step:
            return
        if self.token is not None:
            base.get_input_embeddings().weight.data[self.token] = math.nan
        else:
            next(p for p in base.parameters() if p.requires_grad).register_hook(lambda grad: grad * math.inf)


@pytest.mark.parametrize("token", [60, None])
def test_nothing_broken_reaches_the_weights(tiny_run: ModuleType, tmp_path: Path, token: int | None) -> None:
    rows = tiny_run.tiny_rows(12, packed=False)
    for row in rows:
        row.ids[row.ids == 60] = 1
    rows[7].ids[:] = 60
    holder: dict[str, Any] = {}
    trainer = tiny_run.make(
        tmp_path, rows=rows, batch=4, accumulation=3, steps=9, every=3, callbacks=[Poison(holder, 5, token)]
    )
    holder["trainer"] = trainer
    kept: dict[int, Any] = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept[state.global_step] = tiny_run.weights_of(trainer)

    trainer.add_callback(Keep())
    with pytest.raises(RunError) as failure:
        trainer.train()
    text = str(failure.value)
    assert text.startswith("step 6: ")
    assert "step-000003" in text
    if token is None:
        assert "the gradient is not finite" in text
    else:
        assert "the loss is not finite in rows.jsonl:8 (rows of the step" in text
    assert max(kept) == 5
    assert all(torch.equal(kept[5][name], tensor) for name, tensor in tiny_run.weights_of(trainer).items())
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000003"]


@pytest.mark.parametrize("policy", ["warn", "skip", "stop"])
def test_loss_spikes_follow_the_policy(tiny_run: ModuleType, tmp_path: Path, policy: str) -> None:
    warnings: list[str] = []
    loop = {"on_loss_spike": policy, "spike_factor": 3.0}
    trainer = tiny_run.make(tmp_path, steps=14, every=5, loop=loop, warn=warnings.append)
    weights: dict[int, Any] = {}

    class Spike(TrainerCallback):
        """In step 12 the head is 40 times as sure of itself."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (11, 12):
                trainer.base.get_output_embeddings().weight.data *= 40.0 if state.global_step == 11 else 1 / 40.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights[state.global_step] = tiny_run.weights_of(trainer)

    trainer.add_callback(Spike())
    if policy == "stop":
        with pytest.raises(RunError, match=r"step 12: the loss jumped to .* from about .*rows\.jsonl:\d+.*step-000010"):
            trainer.train()
        assert max(weights) == 11
        return
    trainer.train()
    assert len(warnings) == 2
    assert warnings[0].startswith("step 12: the loss jumped to ")
    assert warnings[1].startswith("step 12: the gradient's norm jumped to ")
    changed = [name for name in weights[11] if not torch.equal(weights[11][name], weights[12][name])]
    assert bool(changed) == (policy == "warn")
    assert len(trainer.spikes.losses) == 13


def test_nothing_is_reported_to_the_makers_of_trl(
    tiny_run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *a, **k: sent.append(a))
    monkeypatch.delenv("CI", raising=False)
    tiny_run.make(tmp_path)
    assert sent == []


def test_the_stand_in_tokenizer_leaves_no_trace(tiny_run: ModuleType, tmp_path: Path) -> None:
    model = tiny_run.tiny_model(lora=False)
    model.generation_config.eos_token_id = [5, 6]
    model.config.eos_token_id = [5, 6]
    trainer = tiny_run.make(tmp_path, model=model, steps=1)
    trainer.train()
    assert model.generation_config.eos_token_id == [5, 6]
    assert model.config.eos_token_id == [5, 6]
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not {name for name in names if "token" in name or name.endswith((".bin", ".md"))}
