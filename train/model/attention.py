"""Attention with sinks, fused and exact, on kernels that know no sinks: full and sliding, causal and tree rows.

Legend: B rows, S tokens, N = B S, H query heads, G key/value heads, D head size, M, Q, K as in attention_plan.py.

A kernel gives (O, lse) of a softmax over some keys. Parts over disjoint keys, and the sink (a key without a value),
merge by log-sum-exp: `lse' = logaddexp(lse, other)`, `O' = O exp(lse - lse') + ...`. The kernel's own backward, given
(O', lse'), returns the exact gradients of each part; `d sink = -sum exp(sink - lse') <dO, O'>`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from counterpoint.train.model.attention_plan import BLOCKED, AttentionPlan, Block, Sequences, causal_plan
from counterpoint.train.model.cached_attention import Cached, cached_attention
from counterpoint.train.model.kernel_attention import KernelAttention, kernel_serves
from counterpoint.train.model.precision import compute_dtype, on_cuda

LEAN_ATTENTION = "counterpoint_lean"  # "flash" in the name would send transformers looking for a hub kernel
"""Name in transformers' registries of attention functions and of mask functions."""


def use_attention(model: PreTrainedModel, lean: bool) -> None:
    """Choose the attention of a model: the lean function, or transformers' eager one."""
    model.set_attn_implementation(LEAN_ATTENTION if lean else "eager")


def lean_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionPlan | Cached | torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, S, H, D) from query (B, H, S, D), key and value (B, G, S, D).

    `attention_mask` is a plan (tree rows), None (plain causal rows), our cache (one new token a row), or an additive
    mask (another cache, padding), which goes to transformers' eager attention, as do types and devices without a fused
    kernel.
    """
    sinks = s_aux if s_aux is not None else cast(torch.Tensor, module.sinks)
    if hasattr(attention_mask, "kept"):
        return cached_attention(query, sinks, cast(Any, attention_mask), cast(Any, module).layer_idx, scaling), None
    plan = attention_mask
    if plan is None:
        plan = causal_plan(query.shape[0], query.shape[2], sliding_window, query.device)
    fused = isinstance(plan, AttentionPlan) and dropout == 0.0 and (_cpu_serves(query) or _cuda_serves(query))
    if not fused:
        mask = plan.dense(query.dtype) if isinstance(plan, AttentionPlan) else plan
        return eager_attention_forward(module, query, key, value, cast(Any, mask), scaling, dropout, **kwargs)
    function: Any = _CpuAttention if _cpu_serves(query) else _CudaAttention
    if kernel_serves(query):
        function = KernelAttention
    return cast(torch.Tensor, function.apply(query, key, value, sinks, plan, scaling)), None


def lean_mask(*, q_length: int, kv_length: int, allow_is_causal_skip: bool = True, **kwargs: Any) -> Any:
    """None where rows are plain causal ones without padding or cache, else transformers' additive mask."""
    padding = kwargs.get("attention_mask")
    plain = q_length == kv_length and int(kwargs.get("q_offset", 0)) == int(kwargs.get("kv_offset", 0)) == 0
    if allow_is_causal_skip and plain and q_length > 1 and (padding is None or bool(padding.all())):
        return None
    return eager_mask(q_length=q_length, kv_length=kv_length, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(LEAN_ATTENTION, lean_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(LEAN_ATTENTION, lean_mask)


class _CpuAttention(torch.autograd.Function):
    """torch's fused CPU kernel over a plan's blocks."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> torch.Tensor:
        query_BHSD, key_BGSD, value_BGSD, sink_H, plan, scale = inputs
        rows, heads, tokens, size = query_BHSD.shape
        wide = compute_dtype(query_BHSD)
        query_NHD, key_NHD, value_NHD = _flat(query_BHSD, wide), _flat(key_BGSD, wide), _flat(value_BGSD, wide)
        # Parts are merged in float32 or wider: with bfloat16 products (AMX) the kernel's log-sum-exp is float32.
        merged = torch.promote_types(wide, torch.float32)
        out_BSHD = query_NHD.new_zeros(rows, tokens, heads, size, dtype=merged)
        out_NHD = out_BSHD.view(-1, heads, size)
        lse_NH = sink_H.to(merged).repeat(rows * tokens, 1)
        for block in plan.blocks:
            out, lse = _forward_block(block, rows, query_NHD, key_NHD, value_NHD, scale)
            _merge(block, rows, out, lse, out_NHD, lse_NH)
        out_BSHD = out_BSHD.to(query_BHSD.dtype)
        context = cast(Any, ctx)
        context.save_for_backward(query_BHSD, key_BGSD, value_BGSD, sink_H, out_BSHD, lse_NH)
        context.plan, context.scale = plan, scale
        return out_BSHD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        query_BHSD, key_BGSD, value_BGSD, sink_H, out_BSHD, lse_NH = context.saved_tensors
        rows, wide, merged = query_BHSD.shape[0], compute_dtype(query_BHSD), lse_NH.dtype
        query, key, value = (_flat(part, wide) for part in (query_BHSD, key_BGSD, value_BGSD))
        grad_NHD, out_NHD = (part.flatten(0, 1).to(wide) for part in (grads[0], out_BSHD))
        d_query, d_key, d_value = (torch.zeros_like(part, dtype=merged) for part in (query, key, value))
        for block in context.plan.blocks:
            parts = _backward_block(block, rows, grad_NHD, query, key, value, out_NHD, lse_NH, context.scale)
            _add(d_query, block.query, block.valid, parts[0])
            _add(d_key, block.key, None, parts[1])
            _add(d_value, block.key, None, parts[2])
        d_sink = None
        if context.needs_input_grad[3]:
            d_sink = _sink_gradient(grad_NHD.to(merged), out_NHD.to(merged), lse_NH, sink_H)
        like = [(d_query, query_BHSD), (d_key, key_BGSD), (d_value, value_BGSD)]
        return (*(_unflat(grad, as_) for grad, as_ in like), d_sink, None, None)


class _CudaAttention(torch.autograd.Function):
    """The same on torch's CUDA flash kernel, all segments in one call or two. Written to its schema, not yet run on a
    GPU."""

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Any) -> torch.Tensor:
        query_BHSD, key_BGSD, value_BGSD, sink_H, plan, scale = inputs
        rows, heads, tokens, size = query_BHSD.shape
        query, key, value = (_flat(part, part.dtype) for part in (query_BHSD, key_BGSD, value_BGSD))
        first, *others = plan.sequences
        out_NHD, lse_HN, state = _flash(first, query, key, value, plan.window, scale)
        total_HN = torch.logaddexp(lse_HN, sink_H.float()[:, None])
        share_NH1 = torch.exp(lse_HN - total_HN).T[..., None].to(out_NHD.dtype)
        # The kernel's output has the query's layout, head by head: what follows would keep a copy in this order.
        out_BSHD = out_NHD.new_empty(rows, tokens, heads, size)
        torch.mul(out_NHD, share_NH1, out=out_BSHD.view(-1, heads, size))
        for seq in others:
            part_QHD, lse_HQ, _ = _flash(seq, query, key, value, plan.window, scale)
            before_HQ = total_HN[:, seq.query]
            after_HQ = torch.logaddexp(before_HQ, lse_HQ)
            flat_NHD = out_BSHD.view(-1, heads, size)
            merged_QHD = flat_NHD[seq.query] * torch.exp(before_HQ - after_HQ).T[..., None]
            merged_QHD += part_QHD * torch.exp(lse_HQ - after_HQ).T[..., None]
            flat_NHD[seq.query], total_HN[:, seq.query] = merged_QHD.to(flat_NHD.dtype), after_HQ
        context = cast(Any, ctx)
        context.save_for_backward(query_BHSD, key_BGSD, value_BGSD, sink_H, out_BSHD, total_HN, *state)
        context.plan, context.scale = plan, scale
        return out_BSHD

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        context = cast(Any, ctx)
        query_BHSD, key_BGSD, value_BGSD, sink_H, out_BSHD, lse_HN, *state = context.saved_tensors
        query, key, value = (_flat(part, part.dtype) for part in (query_BHSD, key_BGSD, value_BGSD))
        grad_NHD, out_NHD = grads[0].flatten(0, 1).contiguous(), out_BSHD.flatten(0, 1)
        window, single = _window(context.plan.window), len(context.plan.sequences) == 1
        found: list[torch.Tensor | None] = [None, None, None]
        for seq in context.plan.sequences:
            queries = grad_NHD, query, out_NHD, lse_HN
            if seq.query is not None:
                queries = grad_NHD[seq.query], query[seq.query], out_NHD[seq.query], lse_HN[:, seq.query].contiguous()
            keys, values = (key, value) if seq.key is None else (key[seq.key], value[seq.key])
            parts = torch.ops.aten._flash_attention_backward(
                queries[0], queries[1], keys, values, *queries[2:], seq.query_starts, seq.key_starts, seq.longest_query,
                seq.longest_key, 0.0, seq.causal, *state, scale=context.scale, **window,
            )  # fmt: skip
            del keys, values
            # Gradients add up in float32: of keys that several sequences have, and of the parts.
            for n, (index, part) in enumerate(zip((seq.query, seq.key, seq.key), parts, strict=True)):
                if index is None:
                    found[n] = part if single else part.float()
                else:
                    like = (query, key, value)[n]
                    whole = torch.zeros_like(like, dtype=torch.float32) if (held := found[n]) is None else held
                    found[n] = whole.index_add_(0, index, part.float())
        d_sink = None
        if context.needs_input_grad[3]:
            d_sink = _sink_gradient(grad_NHD.float(), out_NHD.float(), lse_HN.T, sink_H)
        pairs = zip(found, (query_BHSD, key_BGSD, value_BGSD), strict=True)
        return (*(_unflat(cast(torch.Tensor, grad), like) for grad, like in pairs), d_sink, None, None)


def _flash(
    seq: Sequences, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Output (Q, H, D) and log-sum-exp (H, Q) of a part, and the state of a dropout that there is not."""
    query = query if seq.query is None else query[seq.query]
    key, value = (key, value) if seq.key is None else (key[seq.key], value[seq.key])
    out, lse, *state, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, seq.query_starts, seq.key_starts, seq.longest_query, seq.longest_key, 0.0, seq.causal, False,
        scale=scale, **_window(window),
    )  # fmt: skip
    return out, lse, (state[0], state[1])


def _forward_block(
    block: Block, rows: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (M, H, Q, D) and lse (M, H, Q) of one call."""
    folds, repeats = _grouping(block, query, key)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _fold(_take(query, block.query, rows), folds), _take(key, block.key, rows, repeats),
        _take(value, block.key, rows, repeats), 0.0, block.causal, attn_mask=_mask(block, query.dtype), scale=scale,
    )  # fmt: skip
    return _unfold(out, folds), _unfold(lse, folds)


def _backward_block(
    block: Block, rows: int, grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    out: torch.Tensor, lse_NH: torch.Tensor, scale: float,
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients of one call's queries (M, H, Q, D), keys and values (M, G, K, D)."""
    folds, repeats = _grouping(block, query, key)
    grad_MHQD = _take(grad, block.query, rows)
    lse_MHQ = _take(lse_NH[..., None], block.query, rows).squeeze(-1)
    if block.valid is not None:
        # Filling queries: no gradient in, and a log-sum-exp that makes every probability zero.
        filling_M1Q = ~block.valid[:, None]
        grad_MHQD = grad_MHQD.masked_fill(filling_M1Q[..., None], 0)
        lse_MHQ = lse_MHQ.masked_fill(filling_M1Q, -BLOCKED)
    d_query, d_key, d_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _fold(grad_MHQD, folds), _fold(_take(query, block.query, rows), folds), _take(key, block.key, rows, repeats),
        _take(value, block.key, rows, repeats), _fold(_take(out, block.query, rows), folds),
        _fold(lse_MHQ, folds).contiguous(), 0.0, block.causal, attn_mask=_mask(block, query.dtype), scale=scale,
    )  # fmt: skip
    if repeats > 1:
        d_key, d_value = (part.unflatten(1, (-1, repeats)).sum(2) for part in (d_key, d_value))
    return [_unfold(d_query, folds), d_key, d_value]


def _grouping(block: Block, query: torch.Tensor, key: torch.Tensor) -> tuple[int, int]:
    """(folds, repeats): query heads that share a key head become more queries of it, or the keys are repeated.

    Folding spares the copies of long pasts, and needs keys that every query sees.
    """
    groups = query.shape[1] // key.shape[1]
    return (groups, 1) if block.mask is None and not block.causal else (1, groups)


def _fold(part: torch.Tensor, folds: int) -> torch.Tensor:
    """(M, H, Q, ...) -> (M, H / folds, folds Q, ...)."""
    return part if folds == 1 else part.unflatten(1, (-1, folds)).flatten(2, 3)


def _unfold(part: torch.Tensor, folds: int) -> torch.Tensor:
    return part if folds == 1 else part.unflatten(2, (folds, -1)).flatten(1, 2)


def _merge(
    block: Block, rows: int, out: torch.Tensor, lse: torch.Tensor, out_NHD: torch.Tensor, lse_NH: torch.Tensor
) -> None:
    """Fold one call's output into the running output and log-sum-exp (which start with the sink)."""
    out, lse = out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1).to(lse_NH.dtype)
    index = None if block.query is None else block.query.flatten()
    if index is not None and block.valid is not None:
        kept = block.valid.flatten()
        out, lse, index = out[kept], lse[kept], index[kept]
    before = lse_NH if index is None else lse_NH[index]
    after = torch.logaddexp(before, lse)
    part = out * torch.exp(lse - after)[..., None]
    if not block.fresh:
        assert index is not None
        part += out_NHD[index] * torch.exp(before - after)[..., None]
    if index is None:
        out_NHD.copy_(part)
        lse_NH.copy_(after)
    else:
        out_NHD[index] = part
        lse_NH[index] = after


def _take(flat: torch.Tensor, index: torch.Tensor | None, rows: int, groups: int = 1) -> torch.Tensor:
    """(M, H, Q, D) of flat tokens (N, H, D), each head `groups` times over."""
    part = flat.unflatten(0, (rows, -1))
    if index is not None:
        part = flat.index_select(0, index.flatten()).unflatten(0, index.shape)
    if groups > 1:
        part = part.unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3)
    return part.transpose(1, 2)


def _add(flat: torch.Tensor, index: torch.Tensor | None, valid: torch.Tensor | None, part_MHQD: torch.Tensor) -> None:
    part = part_MHQD.transpose(1, 2).flatten(0, 1).to(flat.dtype)
    if index is None:
        flat += part
    elif valid is None:
        flat.index_add_(0, index.flatten(), part)
    else:
        kept = valid.flatten()
        flat.index_add_(0, index.flatten()[kept], part[kept])


def _mask(block: Block, dtype: torch.dtype) -> torch.Tensor | None:
    return None if block.mask is None else block.mask.to(dtype)


def _sink_gradient(
    grad_NHD: torch.Tensor, out_NHD: torch.Tensor, lse_NH: torch.Tensor, sink_H: torch.Tensor
) -> torch.Tensor:
    share_NH = torch.exp(sink_H.to(lse_NH.dtype) - lse_NH)
    return -(share_NH * (grad_NHD * out_NHD).sum(-1)).sum(0).to(sink_H.dtype)


def _flat(part_BHSD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return part_BHSD.transpose(1, 2).flatten(0, 1).to(dtype)


def _unflat(grad_NHD: torch.Tensor, like_BHSD: torch.Tensor) -> torch.Tensor:
    return grad_NHD.unflatten(0, (like_BHSD.shape[0], -1)).transpose(1, 2).to(like_BHSD.dtype)


def _window(window: int | None) -> dict[str, int]:
    """A window of w positions sees w - 1 to the left."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


def _cpu_serves(query: torch.Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64, torch.bfloat16)


def _cuda_serves(query: torch.Tensor) -> bool:
    return on_cuda(query) and query.dtype in (torch.bfloat16, torch.float16)
