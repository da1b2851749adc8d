"""Experts with LoRA, lean: `(x A_e) B_e` on the routed tokens, never a weight-sized delta.

Legend: N tokens, K experts a token, R = N K routed rows sorted by expert, E experts, H hidden, I intermediate, r rank.

Two seams, no patch: `counterpoint_lean` in transformers' registry of experts functions, and a wrapper class registered
with PEFT that hands the two factors of each adapter to that function in place of the weight-sized sum. Modules,
parameters and files stay PEFT's; disabled, merged and several adapters are PEFT's own logic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora.layer import ParamWrapper as PeftParamWrapper
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from counterpoint.train.adapters.expert_math import (
    Adapter,
    ExpertWeights,
    Routing,
    Saved,
    grouped_backward,
    grouped_forward,
    grouped_serves,
    loop_backward,
    loop_forward,
)
from counterpoint.train.adapters.kernel_experts import kernel_backward, kernel_forward, kernels_serve
from counterpoint.train.model.library_versions import is_expert_parallel

LEAN_EXPERTS, RECOMPUTED_EXPERTS = "counterpoint_lean", "counterpoint_lean_recomputed"
"""Names in transformers' registry. The second computes the first projection again in the backward pass, which is half
of what a layer keeps, and costs two thirds of the experts' forward pass."""
_FACTORS = "_counterpoint_factors"


class ParamWrapper(PeftParamWrapper):
    """PEFT's wrapper of one expert parameter; while it runs, the lean function finds its factors on the base layer.

    rounded: base and adapter "default" merged and rounded to MXFP4, which the pass then uses in place of their sum; the
    gradients of the factors are those of the sum. The class keeps PEFT's name, by which PEFT distinguishes nested
    wrappers.
    """

    rounded: torch.Tensor | None = None

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        adapters = [adapter for adapter in active_adapters if adapter in self.lora_A]
        base = self.get_base_layer()
        if not adapters or not _is_lean(base) or self.get_param().requires_grad:
            with super()._activate_lora(active_adapters):
                yield
            return
        held = base.__dict__.setdefault(_FACTORS, {})
        # Without a scale the adapter is switched off, and what is rounded holds it.
        rounded = self.rounded if adapters == ["default"] and self.scaling["default"] else None
        held[self.parameter_name] = [self.get_delta_factors(adapter) for adapter in adapters], rounded
        try:
            yield
        finally:
            del held[self.parameter_name]


def use_experts(model: PreTrainedModel, lean: bool, recompute: bool = False) -> None:
    """Choose the experts of a model: the lean function, or transformers' own loop under PEFT's own wrappers.

    recompute: the lean function keeps less for the backward pass, and computes that again there.
    """
    assert lean or not recompute
    model.set_experts_implementation((RECOMPUTED_EXPERTS if recompute else LEAN_EXPERTS) if lean else "eager")


def lean_experts_forward(
    self: Any, hidden_NH: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor, recompute: bool = False
) -> torch.Tensor:
    """The experts' part of a layer: float (N, H) from router indices and weights (N, K).

    The base must be frozen for the lean path; where it trains (full fine-tuning), transformers' grouped form runs.
    """
    held = cast(dict[str, Any], self.__dict__.get(_FACTORS, {}))
    up, rounded_up = held.get("gate_up_proj", (None, None))
    down, rounded_down = held.get("down_proj", (None, None))
    base = (
        self.gate_up_proj if rounded_up is None else rounded_up,
        self.gate_up_proj_bias,
        self.down_proj if rounded_down is None else rounded_down,
        self.down_proj_bias,
    )
    if is_expert_parallel(self) or (torch.is_grad_enabled() and any(part.requires_grad for part in base)):
        assert not held, "the adapter would be left out"
        return grouped_mm_experts_forward(self, hidden_NH, index_NK, weight_NK)
    # The reference computes in the weights' type under autocast too, since grouped_mm is not cast.
    with torch.autocast(hidden_NH.device.type, enabled=False):
        out_NH = _LeanExperts.apply(
            hidden_NH.to(self.gate_up_proj.dtype),
            weight_NK,
            index_NK,
            *base,
            *_joined(up),
            *_joined(down),
            (float(self.alpha), float(self.limit)),
            (rounded_up is not None, rounded_down is not None),
            recompute,
        )
    return cast(torch.Tensor, out_NH).to(hidden_NH.dtype)


ALL_EXPERTS_FUNCTIONS.register(LEAN_EXPERTS, lean_experts_forward)
ALL_EXPERTS_FUNCTIONS.register(RECOMPUTED_EXPERTS, partial(lean_experts_forward, recompute=True))


class _LeanExperts(torch.autograd.Function):
    """Saves the input, two tensors of rank width and, unless it is to be computed again, the first projection; the
    experts' output is never kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> torch.Tensor:
        hidden_NH, weight_NK, index_NK, *tensors, scale_up, shape = _reordered(inputs[:-2])
        w1, b1, w2, b2, a_up, b_up, a_down, b_down, scale_down = tensors
        weights = ExpertWeights(w1, b1, w2, b2, *shape)
        merged_up, merged_down = inputs[-2]
        up = Adapter.of(a_up, b_up, scale_up, merged_up)
        down = Adapter.of(a_down, b_down, scale_down, merged_down)
        routing = Routing.of(index_NK, w1.shape[0])
        run = loop_forward
        if grouped_serves(hidden_NH, w1, w2):
            run = kernel_forward if kernels_serve(hidden_NH) else grouped_forward
        out_NH, saved = run(hidden_NH, weight_NK, routing, weights, up, down)
        if inputs[-1]:
            saved = saved._replace(hidden_RJ=None)
        context = cast(Any, ctx)
        context.save_for_backward(
            hidden_NH, weight_NK, *routing, w1, b1, w2, b2, a_up, b_up, a_down, b_down, *saved[:-1]
        )  # fmt: skip
        context.constants = ((scale_up, merged_up), (scale_down, merged_down), shape)
        context.ends = saved.ends
        return out_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        hidden_NH, weight_NK, row_R, slot_NK, end_E, w1, b1, w2, b2, a_up, b_up, a_down, b_down, *saved = (
            context.saved_tensors
        )
        constants_up, constants_down, shape = context.constants
        weights = ExpertWeights(w1, b1, w2, b2, *shape)
        up, down = Adapter.of(a_up, b_up, *constants_up), Adapter.of(a_down, b_down, *constants_down)
        run = loop_backward
        if grouped_serves(hidden_NH, w1, w2):
            run = kernel_backward if kernels_serve(hidden_NH) else grouped_backward
        with torch.autocast(hidden_NH.device.type, enabled=False):
            gradient = run(
                grads[0].contiguous(), hidden_NH, weight_NK, Routing(row_R, slot_NK, end_E), weights, up, down,
                Saved(saved[0], saved[1], saved[2], context.ends), context.needs_input_grad[0],
            )  # fmt: skip
        return (
            gradient.hidden_NH, gradient.weight_NK, None, None, None, None, None,
            gradient.a_up, gradient.b_up, None, gradient.a_down, gradient.b_down, None, None, None,
            None,
        )  # fmt: skip


def _reordered(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, weight, index, w1, b1, w2, b2, a_up, b_up, scale_up, a_down, b_down, scale_down, shape = inputs
    return (hidden, weight, index, w1, b1, w2, b2, a_up, b_up, a_down, b_down, scale_down, scale_up, shape)


def _joined(factors: list[tuple[torch.Tensor, torch.Tensor, float]] | None) -> tuple[Any, Any, float]:
    """One pair of factors for all active adapters: (E, in, r), (E, r, out), scale."""
    if not factors:
        return None, None, 0.0
    if len(factors) == 1:
        return factors[0]
    return (
        torch.cat([left * scale for left, _, scale in factors], dim=-1),
        torch.cat([right for _, right, _ in factors], dim=-2),
        1.0,
    )


def _is_lean(module: torch.nn.Module) -> bool:
    config = getattr(module, "config", None)
    return isinstance(module, cast(type, GptOssExperts)) and getattr(config, "_experts_implementation", None) in (
        LEAN_EXPERTS,
        RECOMPUTED_EXPERTS,
    )
