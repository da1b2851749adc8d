"""Does the lean path give the reference's numbers on this machine: outputs and gradients of each part, within seconds.

Each part runs three times: the reference in float64 on the CPU (exact), the reference on the device in its type, and
the lean path there. The lean one passes where it is about as near to the exact numbers as the reference is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.experts import use_experts
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.model.attention import lean_attention_forward, use_attention
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.attention_plan import AttentionPlan
from counterpoint.train.model.masks import tree_masks
from counterpoint.train.model.mxfp4 import Mxfp4Tensor
from counterpoint.train.model.norm import use_norms

OFF_BY_ONE = "a window off by one is noticed"
WINDOW = 16
HEADS, GROUPS, HEAD_SIZE = 4, 2, 32
Part = Callable[[bool, torch.device, torch.dtype], list[torch.Tensor]]


@dataclass(frozen=True)
class Parity:
    """One part: relative errors (largest over its outputs and gradients) of the lean path and of the reference."""

    name: str
    lean: float
    reference: float
    limit: float

    @property
    def passes(self) -> bool:
        return math.isfinite(self.lean) and self.lean <= self.limit

    @property
    def text(self) -> str:
        if self.name == OFF_BY_ONE:
            return f"{self.name}: its error is {1 / self.lean:.0f} times the limit"
        return f"{self.name}: error {self.lean:.1e}, the reference's {self.reference:.1e}, limit {self.limit:.1e}"


def parity_parts() -> tuple[str, ...]:
    """Names of all parts."""
    return (*_PARTS, OFF_BY_ONE)


def parity(name: str, device: torch.device, dtype: torch.dtype) -> Parity:
    """One part on `device` in `dtype` (float32 or bfloat16). The global random state is as before."""
    floor, cpu = 1e-4 if dtype == torch.float32 else 2e-2, torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        if name == OFF_BY_ONE:
            # The check must be able to fail: a window one too narrow is no rounding error.
            exact = _attention(False, cpu, torch.float64, WINDOW, _CHAIN)
            wrong = _error(_attention(False, cpu, torch.float64, WINDOW - 1, _CHAIN), exact)
            return Parity(name, floor / wrong, 0.0, 0.5)
        part = _PARTS[name]
        exact = part(False, cpu, torch.float64)
        reference = _error(part(False, device, dtype), exact)
        return Parity(name, _error(part(True, device, dtype), exact), reference, max(floor, 1.5 * reference))


_CHAIN = ([*range(80)], [80] * 80)


def _forest() -> tuple[list[int], list[int]]:
    """A trunk, a branch in its middle, the trunk again, then a tree of its own: (position, subtree_end)."""
    trunk, branch, more, other = 20, 24, 44, 20
    first = trunk + branch + more
    position = [*range(trunk), *range(trunk, trunk + branch), *range(trunk, trunk + more), *range(other)]
    return position, [first] * trunk + [trunk + branch] * branch + [first] * more + [first + other] * other


def _attention(
    lean: bool, device: torch.device, dtype: torch.dtype, window: int | None, forest: tuple[list[int], list[int]]
) -> list[torch.Tensor]:
    position, end = (torch.tensor([values], device=device) for values in forest)
    tokens = end.shape[1]
    random = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, tokens, HEAD_SIZE), *[(1, GROUPS, tokens, HEAD_SIZE)] * 2, (HEADS,)]
    parts = _drawn(random, shapes, device, dtype)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, sinks=parts[3], training=True)
    if lean:
        mask: Any = AttentionPlan(position, end, window)
    else:
        mask = tree_masks(position, end, window or tokens, dtype)["sliding_attention"]
    query, key, value, _ = parts
    out = _eager_or_lean(lean)(module, query, key, value, mask, HEAD_SIZE**-0.5, s_aux=parts[3])[0]
    return _with_gradients(out, parts)


def _eager_or_lean(lean: bool) -> Callable[..., Any]:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    return lean_attention_forward if lean else eager_attention_forward


def _experts(lean: bool, device: torch.device, dtype: torch.dtype, recompute: bool = False) -> list[torch.Tensor]:
    model = _small_model(torch.float64)
    peft = attach_lora(model, LoraSettings(rank=4))
    random = torch.Generator().manual_seed(0)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    module: Any = cast(Any, model).model.layers[0].mlp.experts.to(device, dtype)
    use_experts(model, lean, lean and recompute)
    x_NH, scores_NE = _drawn(random, [(40, 64), (40, 8)], torch.device("cpu"), torch.float64)
    weight_NK, index_NK = torch.topk(scores_NE.detach(), 2)
    inputs = [part.detach().to(device, dtype).requires_grad_() for part in (x_NH, weight_NK.softmax(-1))]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return _with_gradients(module(inputs[0], index_NK.to(device), inputs[1]), [*inputs, *trained])


def _norm(lean: bool, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    model = _small_model(torch.float64)
    use_norms(model, lean)
    random = torch.Generator().manual_seed(0)
    norm: Any = cast(Any, model).model.norm
    norm.weight.data.copy_(1 + 0.2 * torch.randn(norm.weight.shape, generator=random))
    norm.to(device, dtype)
    inputs = _drawn(random, [(40, 64)], device, dtype)
    return _with_gradients(norm(inputs[0]), [*inputs, norm.weight])


def _loss(lean: bool, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden_TH, weight_VH = _drawn(random, [(70, 64), (1000, 64)], device, dtype)
    ids, weights = torch.randint(0, 1000, (70,), generator=random), torch.rand(70, generator=random)
    loss, nll_T = weighted_nll(hidden_TH, weight_VH, ids.to(device), weights.to(device), 35.0, lean=lean)
    return [nll_T, *_with_gradients(loss, [hidden_TH, weight_VH])]


def _step(lean: bool, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """A forward and backward pass of a small model on a tree row: the gradients of its attention."""
    model: Any = _small_model(torch.float64)
    model = model.to(device, dtype)
    use_attention(model, lean)
    use_experts(model, lean)
    use_norms(model, lean)
    position, end = (torch.tensor([values], device=device) for values in _forest())
    ids = torch.randint(0, 100, end.shape, generator=torch.Generator().manual_seed(0)).to(device)
    out = model(ids, position_ids=position, **attention_inputs(model, position, end)).logits
    return _with_gradients(out, [layer.self_attn.q_proj.weight for layer in model.model.layers])


def _mxfp4(lean: bool, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 48, 2, 16), dtype=torch.uint8, generator=random).to(device)
    scales = torch.randint(100, 140, (2, 48, 2), dtype=torch.uint8, generator=random).to(device)
    if lean:
        return [Mxfp4Tensor(blocks.flatten(-2), scales, dtype).dense()]
    return [convert_moe_packed_tensors(blocks, scales, dtype=dtype)]


_PARTS: dict[str, Part] = {
    "attention with sinks": partial(_attention, window=None, forest=_CHAIN),
    "sliding attention": partial(_attention, window=WINDOW, forest=_CHAIN),
    "tree rows": partial(_attention, window=None, forest=_forest()),
    "tree rows, sliding": partial(_attention, window=WINDOW, forest=_forest()),
    "experts with LoRA": _experts,
    "experts, computed again": partial(_experts, recompute=True),
    "norm": _norm,
    "loss": _loss,
    "MXFP4 unpacking": _mxfp4,
    "a model on tree rows": _step,
}


def _small_model(dtype: torch.dtype) -> GptOssForCausalLM:
    config = GptOssConfig(
        vocab_size=100, num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2, hidden_size=64,
        intermediate_size=32, head_dim=HEAD_SIZE, num_attention_heads=HEADS, num_key_value_heads=GROUPS,
        sliding_window=WINDOW, initializer_range=0.1, router_aux_loss_coef=0.0,
    )  # fmt: skip
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model: Any = GptOssForCausalLM(config)
    return model.to(dtype)


def _drawn(
    random: torch.Generator, shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The same numbers on every device: drawn in float32 on the CPU."""
    return [torch.randn(shape, generator=random).to(device, dtype).requires_grad_() for shape in shapes]


def _with_gradients(out: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.cos(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def _error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    errors = [
        float((mine.detach().double().cpu() - true.detach().double()).norm() / true.detach().double().norm())
        for mine, true in zip(found, exact, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)
