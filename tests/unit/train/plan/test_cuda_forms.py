"""The CUDA forms of the lean path on tensors without data: what they call fits torch's declarations, and `plan` counts
what they take.

The meta device stands in for CUDA: its operators check shapes, types and widths as the kernels do, and allocate nothing.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.schema import DpoRun, GrpoRun, SftRun
from counterpoint.data.layout.collate import Collator
from counterpoint.train.adapters import activation, expert_math
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.adapters.linear import AutocastLinear
from counterpoint.train.kernels.registry import put_in_use
from counterpoint.train.loop import head
from counterpoint.train.loop.activation_offload import PlainCopies, offload_checkpoints
from counterpoint.train.loop.log_probs import target_log_probs, target_log_probs_and_choices
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.loop.policy_loss import PolicyLoss, Targets, policy_loss
from counterpoint.train.loop.policy_rows import PolicyRow, micro_batches
from counterpoint.train.loop.preference_loss import Side, pair_loss, rated_loss
from counterpoint.train.loop.preference_rows import Completion
from counterpoint.train.loop.preference_rows import micro_batches as preference_batches
from counterpoint.train.model import attention, norm
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.attention_plan import AttentionPlan, flash_sequences
from counterpoint.train.model.mxfp4 import frozen_mxfp4
from counterpoint.train.plan.estimate import Estimate
from counterpoint.train.plan.memory import Batch, moments
from counterpoint.train.sampling.rollout import SampledRow

LAYERS, TOKENS = 6, 8192
META = torch.device("meta")
WIDE = {
    "num_hidden_layers": LAYERS, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2880,
    "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 201088, "router_aux_loss_coef": 0.0,
}  # fmt: skip


class Live(TorchDispatchMode):
    """Bytes of all tensors that were made inside it and still live, now and at most, and of the largest."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        parts = [getattr(p.data, part, p.data) for p in model.parameters() for part in ("blocks", "scales")]
        self.known = {part.untyped_storage()._cdata for part in (*parts, *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if type(tensor) is torch.Tensor and tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.largest = max(self.largest, storage.nbytes())
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@pytest.fixture(autouse=True)
def meta_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (activation, attention, expert_math, head, norm):
        monkeypatch.setattr(module, "on_cuda", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (9, 0))
    # Autocast knows no such device. Attention's adapters are in bfloat16 here, as it would have cast them.
    autocast = torch.autocast
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda kind, *args, **kwargs: contextlib.nullcontext() if kind == "meta" else autocast(kind, *args, **kwargs),
    )
    monkeypatch.setattr(AutocastLinear, "_cast_input_dtype", lambda self, x, dtype: x)


@contextlib.contextmanager
def rows_of(position_BS: Any, subtree_end_BS: Any) -> Iterator[None]:
    """What the plan of a batch would read from the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionPlan, "_arrays", property(lambda self: (position_BS, subtree_end_BS)))
        yield


def causal(tokens: int) -> contextlib.AbstractContextManager[None]:
    return rows_of(np.arange(tokens)[None], np.full((1, tokens), tokens))


def adapted(config: GptOssConfig, recompute: bool = False, packed: bool = False) -> Any:
    with META:
        model = GptOssForCausalLM(config).to(torch.bfloat16)
        if packed:
            for layer in model.model.layers:
                for name in ("gate_up_proj", "down_proj"):
                    experts, inputs, outputs = getattr(layer.mlp.experts, name).shape
                    blocks = torch.empty(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
                    scales = torch.empty(experts, outputs, inputs // 32, dtype=torch.uint8)
                    setattr(layer.mlp.experts, name, frozen_mxfp4(blocks, scales, torch.bfloat16))
        model: Any = attach_lora(model, LoraSettings(rank=16))
    for name, parameter in model.named_parameters():
        if "lora_" in name and "self_attn" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    use_implementations(model, ModelSettings(), recompute)
    return model.train()


def step(model: Any, tokens: int, **inputs: Any) -> None:
    base = model.get_base_model()
    ids = torch.zeros(1, tokens, dtype=torch.long, device=META)
    hidden_TH = base.model(input_ids=ids, use_cache=False, **inputs).last_hidden_state[0]
    target, weight = torch.zeros(tokens, dtype=torch.long, device=META), torch.ones(tokens, device=META)
    loss, _ = weighted_nll(hidden_TH, base.lm_head.weight, target, weight, torch.ones((), device=META))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("base", ["bf16", "mxfp4"])
@pytest.mark.parametrize("checkpointing", [False, "experts", True])
def test_the_plan_for_a_gpu_is_what_the_tensors_of_a_step_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str, checkpointing: bool | str
) -> None:
    config = GptOssConfig(**WIDE)
    config.save_pretrained(tmp_path)
    # How many rows each expert gets is data, which a packed base waits for.
    even = [TOKENS * 4 // 32 * n for n in range(33)]
    monkeypatch.setattr(expert_math, "_ends", lambda weights, routing: even if base == "mxfp4" else None)
    model = adapted(config, checkpointing == "experts", base == "mxfp4")
    if checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with causal(TOKENS), Live(model) as live:
        step(model, TOKENS)
    run = SftRun.model_validate(
        {
            "recipe": "sft", "model": {"name": str(tmp_path), "dtype": "bfloat16", "base": base},
            "data": {"train": "x.jsonl"}, "train": {"activation_checkpointing": checkpointing},
        }
    )  # fmt: skip
    memory = Estimate.of(run, Batch(1, TOKENS, TOKENS), "cuda").memory
    assert memory.gradients + memory.activations + memory.loss == pytest.approx(live.peak, rel=0.05)


def as_kernels_allocate() -> dict[str, Any]:
    """In place of the Triton kernels: the tensors that they make, and no others (train/kernels)."""

    def swiglu(h: torch.Tensor, *constants: float) -> torch.Tensor:
        return h.new_empty(len(h), h.shape[1] // 2)

    def swiglu_backward(h: Any, g: torch.Tensor, *rest: Any) -> torch.Tensor:
        return g

    def grouped(x: torch.Tensor, weight: Any, rows: int, transposed: bool = False, **more: Any) -> torch.Tensor:
        return x.new_empty(rows, weight.shape[1 if transposed else 2])

    def attention(q: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads, tokens, size = q.shape
        return q.new_empty(rows, tokens, heads, size), q.new_empty(rows, heads, tokens, dtype=torch.float32)

    def attention_backward(d: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *rest: Any) -> tuple[torch.Tensor, ...]:
        keys = [torch.empty_like(part.transpose(1, 2), memory_format=torch.contiguous_format) for part in (k, v)]
        return torch.empty_like(out), keys[0], keys[1], torch.empty_like(lse)

    return {
        "swiglu": (swiglu, swiglu_backward), "grouped": (grouped, lambda end_E, rows: rows),
        "attention": (attention, attention_backward),
    }  # fmt: skip


@pytest.mark.parametrize("base", ["bf16", "mxfp4"])
@pytest.mark.parametrize("checkpointing", [False, "experts", True])
def test_the_plan_of_kernels_is_what_their_tensors_take(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str, checkpointing: bool | str
) -> None:
    config = GptOssConfig(**{**WIDE, "vocab_size": 8192})
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(expert_math, "_ends", lambda *args: pytest.fail("a kernel waits for nothing"))
    model = adapted(config, checkpointing == "experts", base == "mxfp4")
    if checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    put_in_use(as_kernels_allocate(), "meta")
    try:
        with causal(TOKENS), Live(model) as live:
            step(model, TOKENS)
    finally:
        put_in_use({})
    run = SftRun.model_validate(
        {
            "recipe": "sft", "model": {"name": str(tmp_path), "dtype": "bfloat16", "base": base, "kernels": "triton"},
            "data": {"train": "x.jsonl"}, "train": {"activation_checkpointing": checkpointing},
        }
    )  # fmt: skip
    memory = Estimate.of(run, Batch(1, TOKENS, TOKENS), "cuda").memory
    assert memory.gradients + memory.activations + memory.loss == pytest.approx(live.peak, rel=0.05)


def test_inputs_of_layers_in_host_memory_take_no_device_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`train.activation_offload` at gpt-oss-20b's width: what the device holds falls by all layers' inputs but the
    embeddings' output, which is a leaf, and two more."""
    config = GptOssConfig(**{**WIDE, "vocab_size": 8192})
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(expert_math, "_ends", lambda weights, routing: None)
    monkeypatch.setattr(PlainCopies, "start", lambda *args: None)  # there is no data
    peaks: list[int] = []
    for offloads in (False, True):
        model = adapted(config)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if offloads:
            offload_checkpoints(model)
        for parameter in model.parameters():  # of a micro-batch before, which are not counted
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with causal(TOKENS), Live(model) as live:
            live.known |= {p.grad.untyped_storage()._cdata for p in model.parameters() if p.grad is not None}
            step(model, TOKENS)
        run = SftRun.model_validate(
            {
                "recipe": "sft", "model": {"name": str(tmp_path), "dtype": "bfloat16"}, "data": {"train": "x.jsonl"},
                "train": {"activation_checkpointing": True, "activation_offload": offloads, "accumulation": 2},
            }
        )  # fmt: skip
        estimate = Estimate.of(run, Batch(1, TOKENS, TOKENS), "cuda")
        assert estimate.memory.activations + estimate.memory.loss == pytest.approx(live.peak, rel=0.03)
        peaks.append(live.peak)
        assert estimate.pinned_bytes == offloads * (LAYERS - 1) * 2**26  # 47 MB, and what pinning rounds them up to
    assert peaks[0] - peaks[1] == pytest.approx((LAYERS - 3) * TOKENS * 2880 * 2, rel=0.01)


@pytest.mark.parametrize("branches", [0, 2])
def test_tree_rows_fit_the_declared_operators(branches: int) -> None:
    """Rows with branches gather keys, and add up their gradients."""
    trunk, branch = 256, 128
    end = [trunk + branches * branch] * trunk
    position = [*range(trunk)]
    for n in range(branches):
        end += [trunk + (n + 1) * branch] * branch
        position += range(trunk, trunk + branch)
    tokens = len(end)
    model = adapted(GptOssConfig(**{**WIDE, "num_hidden_layers": 2, "vocab_size": 1024}))
    with rows_of(np.array([position]), np.array([end])):
        place = torch.empty(1, tokens, dtype=torch.long, device=META)
        inputs = attention_inputs(model, place, torch.empty_like(place))
        step(model, tokens, position_ids=place, **inputs)


@pytest.mark.parametrize(("packed", "layers"), [(False, 1), (False, 3), (True, 1), (True, 3)])
def test_how_often_a_micro_batch_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, packed: bool, layers: int
) -> None:
    """Four times for what its rows are, and, where torch's operators unpack MXFP4, once a layer for the rows of each
    expert. Reading anything else from a tensor without data would be an error."""
    tokens, waits = 256, list[str]()
    position_BS, end_BS = np.arange(tokens)[None], np.full((1, tokens), tokens)

    def arrays(self: AttentionPlan) -> Any:
        waits.extend(("positions", "ends"))
        return position_BS, end_BS

    def ends(base: Any, routing: Any) -> list[int] | None:
        if not hasattr(base.w1, "some"):
            return None
        waits.append("rows of experts")
        return [tokens * 4 // 32 * n for n in range(33)]

    found = cached_property(arrays)
    found.__set_name__(AttentionPlan, "_arrays")
    monkeypatch.setattr(AttentionPlan, "_arrays", found)
    monkeypatch.setattr(expert_math, "_ends", ends)
    model = adapted(GptOssConfig(**{**WIDE, "num_hidden_layers": layers, "vocab_size": 1024}), packed=packed)
    place = torch.empty(1, tokens, dtype=torch.long, device=META)
    step(model, tokens, position_ids=place, **attention_inputs(model, place, torch.empty_like(place)))
    kinds = {"sliding_attention", "full_attention"} & set(model.config.layer_types)
    assert len(waits) == 2 * len(kinds) + (layers if packed else 0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_group_of_long_rollouts_holds_neither_scores_nor_logits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpointing: bool
) -> None:
    """Two rollouts of 32k tokens and what they share, at gpt-oss-20b's width: no S x S, no T x V, and what `plan` says."""
    prompt, completion = 2048, 32768
    config = GptOssConfig(**{**WIDE, "num_hidden_layers": 2})
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(expert_math, "_ends", lambda weights, routing: None)
    model = adapted(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = [SampledRow(range(prompt), range(n, n + completion), [1] * completion) for n in (5_000, 100_000)]
    both = [PolicyRow(n, each) for n, each in enumerate(rows)]
    (batch,) = micro_batches(both, [1.0, -1.0], [1.0, 1.0], 2, 100_000, Collator())
    tokens, targets = batch["input_ids"].numel(), len(batch["target_ids"])
    assert (tokens, targets) == (prompt + 2 * completion, 2 * completion)
    on_meta = {name: tensor.to(META) for name, tensor in batch.items()}
    arrays = batch["position_ids"].numpy(), batch["subtree_end"].numpy()
    with rows_of(*arrays), Live(model) as live:
        hidden_TH, weight_VH = head.target_hidden(model, model.get_base_model(), on_meta)
        log_prob_T, entropy_T = target_log_probs(hidden_TH, weight_VH, on_meta["target_ids"])
        known = Targets(on_meta["advantage"], on_meta["weight"], on_meta["row"], 2, log_prob_T.detach())
        loss, _ = policy_loss(PolicyLoss(), log_prob_T, entropy_T, known)
        loss.backward()
    assert live.largest < 2 * tokens**2 / 2
    assert live.largest < 2 * targets * WIDE["vocab_size"] / 8
    run = GrpoRun.model_validate(
        {
            "recipe": "grpo", "model": {"name": str(tmp_path), "dtype": "bfloat16"}, "rewards": [{"type": "channel"}],
            "data": {"train": {"type": "arithmetic"}}, "train": {"activation_checkpointing": checkpointing, "batch_rows": 8},
        }
    )  # fmt: skip
    sequences, keys = flash_sequences(arrays[0][0], arrays[1][0])
    planned = Batch(1, tokens, targets, sequences, keys)
    plan = Estimate.of(run, planned, "cuda")
    found = [m for m in moments(plan.shape, planned, plan._plan()) if m.moment != "the sampling of rollouts"]
    expected = max(m.gradients + m.activations + m.loss for m in found)
    assert expected == pytest.approx(live.peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("losses", ["sigmoid", "kto"])
def test_a_long_pair_holds_neither_scores_nor_logits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, losses: Any
) -> None:
    """A pair with sides of 32k tokens, and a rated completion, at gpt-oss-20b's width; the reference's passes, and the
    one that trains."""
    prompt, completion = 2048, 32768
    config = GptOssConfig(**{**WIDE, "num_hidden_layers": 2})
    config.save_pretrained(tmp_path)
    monkeypatch.setattr(expert_math, "_ends", lambda weights, routing: None)
    model = adapted(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    run = DpoRun.model_validate(
        {
            "recipe": "dpo", "model": {"name": str(tmp_path), "dtype": "bfloat16"}, "data": {"train": "x.jsonl"},
            "dpo": {"losses": losses}, "train": {"activation_checkpointing": True, "batch_rows": 2},
        }
    )  # fmt: skip
    sides = [Completion(range(prompt), range(n, n + completion), [1] * completion) for n in (5_000, 100_000)]
    trained = (0,) if run.dpo.rated else (0, 1)
    (batch,) = preference_batches([(sides[0], sides[1])], trained, 100_000, Collator())
    passes = [batch]
    if run.dpo.rated:
        passes += preference_batches([(sides[0], sides[1])], (1,), 100_000, Collator())
    tokens, targets = batch["input_ids"].numel(), len(batch["target_ids"])
    assert (tokens, targets) == (prompt + len(trained) * completion, len(trained) * completion)

    def sums(batch: Any) -> torch.Tensor:
        on_meta = {name: tensor.to(META) for name, tensor in batch.items()}
        hidden_TH, weight_VH = head.target_hidden(model, model.get_base_model(), on_meta)
        log_prob_T, *_ = target_log_probs_and_choices(hidden_TH, weight_VH, on_meta["target_ids"])
        return torch.zeros(2, device=META).index_add(0, on_meta["side"], log_prob_T)

    with Live(model) as live:
        known = torch.zeros(2, device=META)
        for each in passes:
            with rows_of(each["position_ids"].numpy(), each["subtree_end"].numpy()), torch.no_grad():
                known = known + sums(each)
        with rows_of(batch["position_ids"].numpy(), batch["subtree_end"].numpy()):
            found, count = sums(batch), torch.zeros(1, device=META)
            one, other = (Side(found[n : n + 1], known[n : n + 1], count) for n in (0, 1))
            wanted = torch.ones(1, dtype=torch.bool, device=META)
            kto = run.dpo.rated
            loss = rated_loss(run.dpo, one, wanted, known[1], 1.0) if kto else pair_loss(run.dpo, one, other, 1.0, 1.0)
            loss.backward()
    assert live.largest < 2 * tokens**2
    assert live.largest < 2 * targets * WIDE["vocab_size"] / 8
    sequences, keys = flash_sequences(batch["position_ids"][0].numpy(), batch["subtree_end"][0].numpy())
    memory = Estimate.of(run, Batch(1, tokens, targets, sequences, keys), "cuda").memory
    assert memory.gradients + memory.activations + memory.loss == pytest.approx(live.peak, rel=0.1)
