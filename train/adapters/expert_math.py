"""Forward and backward of routed experts with low-rank adapters, in two forms: a loop over experts, and grouped GEMMs.

Legend: N tokens, K experts a token, R = N K routed rows sorted by expert, E experts, H hidden, I intermediate,
J = 2 I (gate and up interleaved, as the checkpoint has them), r rank. An adapter adds `scale (x A_e) B_e`.

    h = x W1 + b1 + up(x);  a = (clamp(h_up) + 1) silu(alpha clamp(h_gate)) / alpha;  o = a W2 + b2 + down(a)
    y = sum over the K choices of weight o

The backward needs no output of an expert: `d weight = <dy W2^T + down^T(dy), a> + <dy, b2>`. Where h was not kept, it
is computed again from x and the low-rank x A.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from counterpoint.train.adapters.activation import activation, activation_backward
from counterpoint.train.kernels.registry import chosen
from counterpoint.train.model.precision import compute_dtype, on_cuda


@dataclass(frozen=True)
class ExpertWeights:
    """Frozen base: w1 (E, H, J), b1 (E, J), w2 (E, I, H), b2 (E, H), and the activation's two constants."""

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor
    b2: torch.Tensor
    alpha: float
    limit: float


class Adapter(NamedTuple):
    """Factors a (E, in, r) and b (E, r, out) of one projection, and their scale. merged: the base holds their product
    already, and only their gradients are computed."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    merged: bool = False

    @staticmethod
    def of(a: torch.Tensor | None, b: torch.Tensor | None, scale: float, merged: bool = False) -> Adapter | None:
        return None if a is None or b is None else Adapter(a, b.contiguous(), scale, merged)


class Routing(NamedTuple):
    """row_R: token of each routed row; slot_NK: routed row of each choice; end_E: last row + 1 of each expert."""

    row_R: torch.Tensor
    slot_NK: torch.Tensor
    end_E: torch.Tensor

    @staticmethod
    def of(index_NK: torch.Tensor, experts: int) -> Routing:
        flat_R = index_NK.reshape(-1)
        order_R = torch.argsort(flat_R, stable=True)
        slot_R = torch.empty_like(order_R)
        slot_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
        # A count by comparison has no synchronisation and is deterministic, unlike bincount on CUDA.
        edge_E = torch.arange(1, experts + 1, device=flat_R.device, dtype=flat_R.dtype)
        end_E = torch.searchsorted(flat_R[order_R], edge_E).to(torch.int32)
        return Routing(order_R // index_NK.shape[1], slot_R.view_as(index_NK), end_E)

    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first row, last row + 1) of every expert that has rows; waits for the device."""
        ends = self.end_E.tolist()
        return [(e, a, b) for e, (a, b) in enumerate(zip([0, *ends[:-1]], ends, strict=True)) if b > a]


class Saved(NamedTuple):
    """What backward reads besides its inputs: h before the activation (None: compute it again), x A and a A of the two
    adapters, and what forward waited for (see `_ends`)."""

    hidden_RJ: torch.Tensor | None
    low_up_Rr: torch.Tensor | None
    low_down_Rr: torch.Tensor | None
    ends: list[int] | None = None


class Gradient(NamedTuple):
    hidden_NH: torch.Tensor | None
    weight_NK: torch.Tensor
    a_up: torch.Tensor | None
    b_up: torch.Tensor | None
    a_down: torch.Tensor | None
    b_down: torch.Tensor | None


_NONE = (None, None, 0.0)
ROWS_AT_A_TIME = 4096
"""Routed rows whose activation or bias is computed together where all experts run at once: the steps of the activation
in float32 would take more memory than all else that the backward pass of a layer holds."""

UNPACKED_EXPERTS = 8
"""Experts whose quantised weights are unpacked together there: all of a layer would take 4 GB in gpt-oss-120b."""


def loop_forward(
    x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights, up: Adapter | None,
    down: Adapter | None,
) -> tuple[torch.Tensor, Saved]:  # fmt: skip
    """Expert by expert: best where a small matrix product is not much slower per row than a large one (CPU)."""
    rows, wide = routing.row_R.numel(), compute_dtype(x_NH)
    h_RJ = x_NH.new_empty(rows, base.w1.shape[-1])
    out_RH = x_NH.new_empty(rows, x_NH.shape[-1], dtype=wide)
    low_up_Rr = None if up is None else x_NH.new_empty(rows, up.a.shape[-1], dtype=wide)
    low_down_Rr = None if down is None else x_NH.new_empty(rows, down.a.shape[-1], dtype=wide)
    up, down = _cast(up, wide), _cast(down, wide)
    for e, first, end in routing.spans():
        part = slice(first, end)
        x = x_NH.index_select(0, routing.row_R[part]).to(wide)
        h = h_RJ[part] if wide == x_NH.dtype else x_NH.new_empty(end - first, h_RJ.shape[1], dtype=wide)
        _project(x, _expert(base.w1, e, wide), base.b1[e].to(wide), up, low_up_Rr, e, part, out=h)
        if wide != x_NH.dtype:
            h_RJ[part] = h
        a = activation(h, base.alpha, base.limit)
        _project(a, _expert(base.w2, e, wide), base.b2[e].to(wide), down, low_down_Rr, e, part, out=out_RH[part])
    return combine(out_RH, routing.slot_NK, weight_NK).to(x_NH.dtype), Saved(h_RJ, low_up_Rr, low_down_Rr)


def loop_backward(
    dy_NH: torch.Tensor, x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights,
    up: Adapter | None, down: Adapter | None, saved: Saved, want_x: bool,
) -> Gradient:  # fmt: skip
    row_R, wide = routing.row_R, compute_dtype(x_NH)
    weight_R1 = by_row(weight_NK, routing.slot_NK)[:, None].to(wide)
    dweight_R = torch.zeros_like(weight_R1[:, 0])
    dx_RH = x_NH.new_empty(row_R.numel(), x_NH.shape[-1], dtype=wide) if want_x else None
    up, down = _cast(up, wide), _cast(down, wide)
    d_up, d_down = _zeros_like(up), _zeros_like(down)
    for e, first, end in routing.spans():
        part = slice(first, end)
        dy, weight = dy_NH.index_select(0, row_R[part]).to(wide), weight_R1[part]
        g = dy @ _expert(base.w2, e, wide).T
        low_dy = None
        if down is not None:
            low_dy = dy @ down.b[e].T
            if not down.merged:
                g.addmm_(low_dy, down.a[e].T, alpha=down.scale)
        x = x_NH.index_select(0, row_R[part]).to(wide) if up is not None or saved.hidden_RJ is None else None
        w1 = _expert(base.w1, e, wide)
        if saved.hidden_RJ is not None:
            h = saved.hidden_RJ[part].to(wide)
        else:
            h = torch.addmm(base.b1[e].to(wide), held(x), w1)
            if up is not None and not up.merged:
                h.addmm_(held(saved.low_up_Rr)[part], up.b[e], alpha=up.scale)
            h = h.to(x_NH.dtype).to(wide)  # as it would have been kept
        a, dh = activation_backward(h, g * weight, base.alpha, base.limit)
        dweight_R[part] = g.mul_(a).sum(-1) + dy @ base.b2[e].to(wide)
        if d_down is not None and low_dy is not None:
            scaled = weight * d_down.scale
            torch.mm(a.T, low_dy.mul_(scaled), out=d_down.a[e])
            torch.mm((held(saved.low_down_Rr)[part] * scaled).T, dy, out=d_down.b[e])
        low_dh = None
        if up is not None and d_up is not None:
            low_dh = (dh @ up.b[e].T).mul_(up.scale)
            torch.mm(held(x).T, low_dh, out=d_up.a[e])
            torch.mm((held(saved.low_up_Rr)[part] * up.scale).T, dh, out=d_up.b[e])
        if dx_RH is not None:
            torch.mm(dh, w1.T, out=dx_RH[part])
            if up is not None and low_dh is not None and not up.merged:
                dx_RH[part].addmm_(low_dh, up.a[e].T)
    dx_NH = None if dx_RH is None else combine(dx_RH, routing.slot_NK, None).to(x_NH.dtype)
    dweight_NK = dweight_R[routing.slot_NK].to(weight_NK.dtype)
    d_up, d_down = _cast(d_up, x_NH.dtype), _cast(d_down, x_NH.dtype)
    return Gradient(dx_NH, dweight_NK, *(d_up or _NONE)[:2], *(d_down or _NONE)[:2])


def grouped_serves(x_NH: torch.Tensor, w1_EHJ: torch.Tensor, w2_EIH: torch.Tensor) -> bool:
    """Whether `F.grouped_mm` takes these: CUDA from compute capability 8.0, bfloat16, widths of whole 16 bytes."""
    if not on_cuda(x_NH) or x_NH.dtype != torch.bfloat16:
        return False
    aligned = all(width % 8 == 0 for width in (*w1_EHJ.shape[1:], *w2_EIH.shape[1:]))
    return aligned and torch.cuda.get_device_capability(x_NH.device) >= (8, 0)


def grouped_forward(
    x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights, up: Adapter | None,
    down: Adapter | None,
) -> tuple[torch.Tensor, Saved]:  # fmt: skip
    """All experts in a few grouped GEMMs, without waiting for the device unless weights are packed. Equal to the loop;
    not yet run on a GPU."""
    x_RH = x_NH[routing.row_R]
    low_up_Rr, ends = _low_rank(x_RH, up, routing.end_E), _ends(base, routing)
    h_RJ = _project_all(x_RH, base.w1, base.b1, up, low_up_Rr, routing, ends)
    del x_RH
    a_RI = activated(h_RJ, base)
    low_down_Rr = _low_rank(a_RI, down, routing.end_E)
    out_RH = _project_all(a_RI, base.w2, base.b2, down, low_down_Rr, routing, ends)
    return combine(out_RH, routing.slot_NK, weight_NK), Saved(h_RJ, low_up_Rr, low_down_Rr, ends)


def grouped_backward(
    dy_NH: torch.Tensor, x_NH: torch.Tensor, weight_NK: torch.Tensor, routing: Routing, base: ExpertWeights,
    up: Adapter | None, down: Adapter | None, saved: Saved, want_x: bool,
) -> Gradient:  # fmt: skip
    end_E, row_R, ends = routing.end_E, routing.row_R, saved.ends
    weight_R1 = by_row(weight_NK, routing.slot_NK)[:, None].to(x_NH.dtype)
    dy_RH = dy_NH[row_R]
    g_RI = _times_base(dy_RH, base.w2, routing, ends, transposed=True)
    da_up = db_up = da_down = db_down = scaled_dy_Rr = None
    dweight_R = (dy_RH * base.b2[expert_of_rows(routing)]).sum(-1)
    if down is not None:
        scaled_R1 = weight_R1 * down.scale
        low_dy_Rr = F.grouped_mm(dy_RH, padded_b(down).transpose(-2, -1), offs=end_E)
        if not down.merged:
            g_RI.add_(F.grouped_mm(low_dy_Rr, padded_a(down).transpose(-2, -1), offs=end_E), alpha=down.scale)
        scaled_dy_Rr, low_Rr = low_dy_Rr.mul_(scaled_R1), held(saved.low_down_Rr) * scaled_R1
        db_down = by_expert(low_Rr, dy_RH, end_E)[:, : down.a.shape[-1]]
    del dy_RH
    h_RJ = saved.hidden_RJ
    if h_RJ is None:
        h_RJ = _project_all(x_NH[row_R], base.w1, base.b1, up, saved.low_up_Rr, routing, ends)
    # What was recomputed has no other user, so its gradient may overwrite it.
    dh_RJ = torch.empty_like(h_RJ) if h_RJ is saved.hidden_RJ else h_RJ
    a_RI = through_activation(h_RJ, g_RI, weight_R1, base, dh_RJ, dweight_R)
    if down is not None and scaled_dy_Rr is not None:
        da_down = by_expert(a_RI, scaled_dy_Rr, end_E)[..., : down.a.shape[-1]]
    del a_RI, g_RI
    dx_RH = _times_base(dh_RJ, base.w1, routing, ends, transposed=True) if want_x else None
    if up is not None:
        rank = up.a.shape[-1]
        low_dh_Rr = F.grouped_mm(dh_RJ, padded_b(up).transpose(-2, -1), offs=end_E).mul_(up.scale)
        da_up = by_expert(x_NH[row_R], low_dh_Rr, end_E)[..., :rank]
        db_up = by_expert(held(saved.low_up_Rr) * up.scale, dh_RJ, end_E)[:, :rank]
        if dx_RH is not None and not up.merged:
            dx_RH.add_(F.grouped_mm(low_dh_Rr, padded_a(up).transpose(-2, -1), offs=end_E))
    dx_NH = None if dx_RH is None else combine(dx_RH, routing.slot_NK, None)
    dweight_NK = dweight_R[routing.slot_NK].to(weight_NK.dtype)
    return Gradient(dx_NH, dweight_NK, da_up, db_up, da_down, db_down)


def activated(h_RJ: torch.Tensor, base: ExpertWeights) -> torch.Tensor:
    """The activation of all rows (R, I), a few at a time."""
    if kernel := chosen("swiglu", h_RJ):
        return kernel[0](h_RJ, base.alpha, base.limit)
    a_RI = h_RJ.new_empty(len(h_RJ), h_RJ.shape[1] // 2)
    for part in _parts(len(h_RJ)):
        a_RI[part] = activation(h_RJ[part], base.alpha, base.limit)
    return a_RI


def through_activation(
    h_RJ: torch.Tensor, g_RI: torch.Tensor, weight_R1: torch.Tensor, base: ExpertWeights, dh_RJ: torch.Tensor,
    dweight_R: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The activation, in the place of its gradient g; writes dh and adds `<g, a>` to dweight."""
    if kernel := chosen("swiglu", h_RJ):
        return kernel[1](h_RJ, g_RI, weight_R1, dh_RJ, dweight_R, base.alpha, base.limit)
    for part in _parts(len(g_RI)):
        g = g_RI[part]
        a, dh_RJ[part] = activation_backward(h_RJ[part], g * weight_R1[part], base.alpha, base.limit)
        dweight_R[part] += (g * a).sum(-1)
        g_RI[part] = a
    return g_RI


def _parts(rows: int) -> list[slice]:
    return [slice(first, first + ROWS_AT_A_TIME) for first in range(0, rows, ROWS_AT_A_TIME)]


def _cast(adapter: Adapter | None, dtype: torch.dtype) -> Adapter | None:
    return None if adapter is None else adapter._replace(a=adapter.a.to(dtype), b=adapter.b.to(dtype))


def _zeros_like(adapter: Adapter | None) -> Adapter | None:
    if adapter is None:
        return None
    contiguous = torch.contiguous_format
    a, b = (torch.zeros_like(part, memory_format=contiguous) for part in adapter[:2])
    return adapter._replace(a=a, b=b)


def _project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, adapter: Adapter | None, low_Rr: torch.Tensor | None,
    e: int, rows: slice, out: torch.Tensor,
) -> None:  # fmt: skip
    torch.addmm(bias, x, weight, out=out)
    if adapter is not None and low_Rr is not None:
        low = torch.mm(x, adapter.a[e], out=low_Rr[rows])
        if not adapter.merged:
            out.addmm_(low, adapter.b[e], alpha=adapter.scale)


def _low_rank(x_Ri: torch.Tensor, adapter: Adapter | None, end_E: torch.Tensor) -> torch.Tensor | None:
    return None if adapter is None else F.grouped_mm(x_Ri, padded_a(adapter), offs=end_E)


def _project_all(
    x_Ri: torch.Tensor, weight_Eio: torch.Tensor, bias_Eo: torch.Tensor, adapter: Adapter | None,
    low_Rr: torch.Tensor | None, routing: Routing, ends: list[int] | None,
) -> torch.Tensor:  # fmt: skip
    """x W + b + s (x A) B of every row, from x and x A."""
    out_Ro = _times_base(x_Ri, weight_Eio, routing, ends)
    expert_R = expert_of_rows(routing)
    for part in _parts(len(out_Ro)):
        out_Ro[part] += bias_Eo[expert_R[part]]
    if adapter is not None and not adapter.merged:
        out_Ro.add_(F.grouped_mm(held(low_Rr), padded_b(adapter), offs=routing.end_E), alpha=adapter.scale)
    return out_Ro


def by_expert(left_Ri: torch.Tensor, right_Rj: torch.Tensor, end_E: torch.Tensor) -> torch.Tensor:
    """The sum of each expert's rows of left^T right (E, i, j), zero where it has none.

    Compute capability 10 leaves what was in memory there (pytorch issue 172439). It is zeroed without waiting.
    """
    out_Eij = F.grouped_mm(left_Ri.T, right_Rj, offs=end_E)
    empty_E = torch.diff(end_E, prepend=end_E.new_zeros(1)) == 0
    return out_Eij.masked_fill_(empty_E[:, None, None], 0)


def _ends(base: ExpertWeights, routing: Routing) -> list[int] | None:
    """First row of each expert, and their number, where weights are packed: waits for the device. Else None."""
    return [0, *routing.end_E.tolist()] if hasattr(base.w1, "some") else None


def _times_base(
    x_Ri: torch.Tensor, weight_Eio: torch.Tensor, routing: Routing, ends: list[int] | None, transposed: bool = False
) -> torch.Tensor:
    """x W, or x W^T, of every row; quantised weights are unpacked a few experts at a time, and only those that have
    rows (ends: see `_ends`)."""
    if ends is None:
        weight_Eio = weight_Eio.transpose(-2, -1) if transposed else weight_Eio
        return F.grouped_mm(x_Ri, weight_Eio, offs=routing.end_E)
    out_Ro = x_Ri.new_empty(len(x_Ri), weight_Eio.shape[-2 if transposed else -1])
    busy = [e for e, (first, end) in enumerate(itertools.pairwise(ends)) if end > first]
    for some in (busy[at : at + UNPACKED_EXPERTS] for at in range(0, len(busy), UNPACKED_EXPERTS)):
        rows = slice(ends[some[0]], ends[some[-1] + 1])
        part_Eio = weight_Eio.some(some)  # pyright: ignore[reportAttributeAccessIssue]
        part_Eio = part_Eio.transpose(-2, -1) if transposed else part_Eio
        end = torch.tensor([ends[e + 1] - rows.start for e in some], dtype=torch.int32).to(x_Ri.device)
        out_Ro[rows] = F.grouped_mm(x_Ri[rows], part_Eio, offs=end)
        del part_Eio  # before the next ones are unpacked
    return out_Ro


def padded_a(adapter: Adapter) -> torch.Tensor:
    """A with its rank filled up by zeros to a multiple of 8: grouped GEMMs want rows of whole 16 bytes."""
    short = -adapter.a.shape[-1] % 8
    return (F.pad(adapter.a, (0, short)) if short else adapter.a).contiguous()


def padded_b(adapter: Adapter) -> torch.Tensor:
    """B, filled up likewise."""
    short = -adapter.b.shape[-2] % 8
    return F.pad(adapter.b, (0, 0, 0, short)) if short else adapter.b


def combine(out_RH: torch.Tensor, slot_NK: torch.Tensor, weight_NK: torch.Tensor | None) -> torch.Tensor:
    """Sum of each token's rows, weighted or not: one gather without a (N, K, H) copy, and no atomic addition."""
    weight = None if weight_NK is None else weight_NK.to(out_RH.dtype)
    return F.embedding_bag(slot_NK, out_RH, mode="sum", per_sample_weights=weight)


def by_row(value_NK: torch.Tensor, slot_NK: torch.Tensor) -> torch.Tensor:
    value_R = torch.empty_like(value_NK.reshape(-1))
    value_R[slot_NK.reshape(-1)] = value_NK.reshape(-1)
    return value_R


def expert_of_rows(routing: Routing) -> torch.Tensor:
    index_R = torch.arange(routing.row_R.numel(), device=routing.end_E.device, dtype=routing.end_E.dtype)
    return torch.searchsorted(routing.end_E, index_R, right=True)


def _expert(weight: torch.Tensor, e: int, dtype: torch.dtype) -> torch.Tensor:
    """One expert's matrix; a quantised one is unpacked straight to `dtype`."""
    unpack = getattr(weight, "expert", None)
    return weight[e].to(dtype) if unpack is None else unpack(e, dtype)


def held(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
