"""The CUDA forms on a CPU: kernels that only CUDA has, stood in for by their definitions.

The two of FlashAttention are written to the schema of torch's operators; tests/unit/train/model/test_attention.py uses
them too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from counterpoint.train.adapters import activation, expert_math
from counterpoint.train.loop import loss
from counterpoint.train.model import attention, norm

_LIBRARY = torch.library.Library("aten", "IMPL")
"""What is registered through it lasts as long as it does."""


def emulate() -> None:
    """From here on this process computes bfloat16 with the CUDA forms; there is no way back."""
    modules: tuple[Any, ...] = (activation, attention, expert_math, loss, norm)
    for module in modules:
        module.on_cuda = lambda tensor: True
    attention._cuda_serves = lambda query: query.dtype == torch.bfloat16
    attention._cpu_serves = lambda query: False
    norm._fused_backward = norm._plain_backward
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch.mm = wide_mm
    _LIBRARY.impl("_flash_attention_forward", flash_forward, "CPU")
    _LIBRARY.impl("_flash_attention_backward", flash_backward, "CPU")


def flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_starts: torch.Tensor, k_starts: torch.Tensor, q_max: int,
    k_max: int, dropout: float, causal: bool, debug: bool, *, scale: float, **window: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_forward` by plain sums, in float32 at least."""
    assert not dropout
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=wide)
    for rows, keys, logits in _flash_sequences(q.to(wide), k.to(wide), q_starts, k_starts, causal, scale, **window):
        lse[:, rows] = logits.logsumexp(-1)
        values = v[keys].to(wide).repeat_interleave(q.shape[1] // k.shape[1], 1)
        out[rows] = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values).to(q.dtype)
    return out, lse, torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), torch.empty(0)


def flash_backward(
    dy: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    q_starts: torch.Tensor, k_starts: torch.Tensor, q_max: int, k_max: int, dropout: float, causal: bool,
    state: torch.Tensor, unused: torch.Tensor, *, scale: float, **window: Any,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """`aten._flash_attention_backward`, from the output and log-sum-exp that it is given."""
    assert not dropout
    wide, groups = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    like, (dy, q, k, v, out) = (q, k, v), (part.to(wide) for part in (dy, q, k, v, out))
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    delta = (dy * out).sum(-1).T
    for rows, keys, logits in _flash_sequences(q, k, q_starts, k_starts, causal, scale, **window):
        share = torch.exp(logits - lse[:, rows, None])
        d_share = torch.einsum("qhd,khd->hqk", dy[rows], v[keys].repeat_interleave(groups, 1))
        d_logits = share * (d_share - delta[:, rows, None]) * scale
        dq[rows] = torch.einsum("hqk,khd->qhd", d_logits, k[keys].repeat_interleave(groups, 1))
        dk[keys] = torch.einsum("hqk,qhd->khd", d_logits, q[rows]).unflatten(1, (-1, groups)).sum(2)
        dv[keys] = torch.einsum("hqk,qhd->khd", share, dy[rows]).unflatten(1, (-1, groups)).sum(2)
    return tuple(part.to(as_.dtype) for part, as_ in zip((dq, dk, dv), like, strict=True))


def _flash_sequences(
    query: torch.Tensor, key: torch.Tensor, query_starts: torch.Tensor, key_starts: torch.Tensor, causal: bool,
    scale: float, window_size_left: int | None = None, window_size_right: int | None = None, **others: None,
) -> Iterator[tuple[slice, slice, torch.Tensor]]:  # fmt: skip
    """(rows of queries, rows of keys, logits (H, Q, K)) of each sequence, as FlashAttention 2 sees them: causal from
    the bottom right or not, `window_size_left` keys before a query's own."""
    assert not any(value is not None for value in others.values())
    groups = query.shape[1] // key.shape[1]
    for (q0, k0), (q1, k1) in itertools.pairwise(zip(query_starts.tolist(), key_starts.tolist(), strict=True)):
        distance = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        seen = distance >= (0 if causal else k0 - k1)
        if window_size_left is not None:
            assert window_size_right == 0
            seen &= distance <= window_size_left
        logits = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1].repeat_interleave(groups, 1)) * scale
        yield slice(q0, q1), slice(k0, k1), logits.masked_fill(~seen, -torch.inf)


_narrow_mm = torch.mm


def wide_mm(
    a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`torch.mm` with CUDA's out_dtype: products of narrow numbers, summed in a wider type."""
    if out_dtype is None:
        return _narrow_mm(a, b) if out is None else _narrow_mm(a, b, out=out)
    wide = _narrow_mm(a.to(out_dtype), b.to(out_dtype))
    return wide if out is None else out.copy_(wide)
