"""Attention with sinks on tree rows in one kernel forward and two backward: nothing gathered, expanded or rescaled, no
atomic addition.

Legend: B rows, S tokens, H query heads, G key heads, D head size, M and N blocks of queries and keys.

Token i sees token j where `j <= i < end[j]` and `position[i] - position[j] < window`. The sink is where the running
maximum and sum begin. A pair of blocks is skipped where the largest end and position of its keys show that no query
sees any of them. The plain form is `_CpuAttention` of train/model/attention.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tiling(NamedTuple):
    """Queries and keys of a block, and how it is compiled."""

    queries: int = 128
    keys: int = 64
    warps: int = 8
    stages: int = 2


FORWARD, TO_QUERIES, TO_KEYS = Tiling(128, 64, 8, 2), Tiling(128, 64, 8, 2), Tiling(64, 64, 4, 2)
"""Registers, shared memory and spills on compute capability 9.0: tests/kernels/test_compiled.py. Not timed on a GPU."""
NO_WINDOW = 1 << 30


class Blocks(NamedTuple):
    """int32 of each block: the smallest position of its queries; the largest position and end of its keys; and which
    blocks of the other kind come first and last."""

    position_BM: torch.Tensor
    position_BN: torch.Tensor
    end_BN: torch.Tensor
    first_BM: torch.Tensor
    last_BN: torch.Tensor


def blocks_of(position_BS: torch.Tensor, end_BS: torch.Tensor, window: int, queries: int, keys: int) -> Blocks:
    """Computed where the tensors are, without waiting."""
    tokens = end_BS.shape[1]

    def reduced(values: torch.Tensor, size: int, fill: int, how: str) -> torch.Tensor:
        short = -tokens % size
        return getattr(torch.nn.functional.pad(values, (0, short), value=fill).unflatten(1, (-1, size)), how)(-1)

    low_BM = reduced(position_BS, queries, NO_WINDOW, "amin")
    high_BN, end_BN = reduced(position_BS, keys, -1, "amax"), reduced(end_BS, keys, 0, "amax")
    start_M = torch.arange(low_BM.shape[1], device=end_BS.device) * queries
    start_N = torch.arange(high_BN.shape[1], device=end_BS.device) * keys
    needed_BMN = (end_BN[:, None] > start_M[:, None]) & (start_N < start_M[:, None] + queries)
    needed_BMN &= low_BM[:, :, None] - high_BN[:, None] < window
    first_BM = needed_BMN.int().argmax(2)
    last_BN = needed_BMN.shape[1] - 1 - needed_BMN.flip(1).int().argmax(1)
    return Blocks(*(part.to(torch.int32).contiguous() for part in (low_BM, high_BN, end_BN, first_BM, last_BN)))


@triton.jit
def visible(rows, columns, row_position, positions, ends, at, tokens, window):
    """Which of the queries see which of the keys; `at` is where the row of the batch begins in positions and ends."""
    inside = columns < tokens
    end = tl.load(ends + at + columns, mask=inside, other=0)
    position = tl.load(positions + at + columns, mask=inside, other=0)
    seen = (columns[None, :] <= rows[:, None]) & (rows[:, None] < end[None, :]) & (rows < tokens)[:, None]
    return seen & (row_position[:, None] - position[None, :] < window)


@triton.jit
def forward_kernel(
    q, k, v, sink, out, lse, positions, ends, low_m, high_n, end_n, first_m, tokens, blocks_m, blocks_n, window, scale,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, COMPUTE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """out (B, S, H, D); lse (B, H, S), natural. SHARE: query heads of one key head."""
    m = tl.program_id(0)
    b, h = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    at = b.to(tl.int64) * tokens
    rows, size = m * QUERIES + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    inside = (rows < tokens)[:, None]
    base = q + b.to(tl.int64) * q_b + h * q_h
    query = tl.load(base + rows[:, None] * q_s + size[None, :], mask=inside, other=0.0).to(COMPUTE)
    k_base = k + b.to(tl.int64) * k_b + (h // SHARE) * k_h
    v_base = v + b.to(tl.int64) * v_b + (h // SHARE) * v_h
    row_position = tl.load(positions + at + rows, mask=rows < tokens, other=0)
    low = tl.load(low_m + b * blocks_m + m)
    top = tl.zeros((QUERIES,), dtype=tl.float32) + tl.load(sink + h).to(tl.float32) * 1.4426950408889634
    total = tl.zeros((QUERIES,), dtype=tl.float32) + 1.0
    found = tl.zeros((QUERIES, SIZE), dtype=tl.float32)
    for n in range(tl.load(first_m + b * blocks_m + m), tl.minimum((m * QUERIES + QUERIES - 1) // KEYS + 1, blocks_n)):
        seen_by_some = tl.load(end_n + b * blocks_n + n) > m * QUERIES
        if seen_by_some & (low - tl.load(high_n + b * blocks_n + n) < window):
            columns = n * KEYS + tl.arange(0, KEYS)
            there = (columns < tokens)[:, None]
            key = tl.load(k_base + columns[:, None] * k_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
            value = tl.load(v_base + columns[:, None] * v_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
            logits = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * 1.4426950408889634)
            seen = visible(rows, columns, row_position, positions, ends, at, tokens, window)
            logits = tl.where(seen, logits, float("-inf"))
            higher = tl.maximum(top, tl.max(logits, 1))
            share = tl.exp2(logits - higher[:, None])
            kept = tl.exp2(top - higher)
            total = total * kept + tl.sum(share, 1)
            found = found * kept[:, None] + tl.dot(share.to(COMPUTE), value, input_precision="ieee")
            top = higher
    place = (at + rows).to(tl.int64)[:, None] * (HEADS * SIZE) + h * SIZE + size[None, :]
    tl.store(out + place, (found / total[:, None]).to(out.dtype.element_ty), mask=inside)
    natural = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + (b.to(tl.int64) * HEADS + h) * tokens + rows, natural, mask=rows < tokens)


@triton.jit
def to_queries_kernel(
    q, k, v, out, d_out, lse, delta, d_q, positions, ends, low_m, high_n, end_n, first_m, tokens, blocks_m, blocks_n,
    window, scale, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, COMPUTE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """d_q (B, S, H, D), and delta (B, H, S), the product of the output and its gradient."""
    m = tl.program_id(0)
    b, h = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    at = b.to(tl.int64) * tokens
    rows, size = m * QUERIES + tl.arange(0, QUERIES), tl.arange(0, SIZE)
    inside = (rows < tokens)[:, None]
    base = q + b.to(tl.int64) * q_b + h * q_h
    query = tl.load(base + rows[:, None] * q_s + size[None, :], mask=inside, other=0.0).to(COMPUTE)
    place = (at + rows).to(tl.int64)[:, None] * (HEADS * SIZE) + h * SIZE + size[None, :]
    upstream = tl.load(d_out + place, mask=inside, other=0.0)
    product = tl.sum(upstream.to(tl.float32) * tl.load(out + place, mask=inside, other=0.0).to(tl.float32), 1)
    each = (b.to(tl.int64) * HEADS + h) * tokens + rows
    tl.store(delta + each, product, mask=rows < tokens)
    sum_log = tl.load(lse + each, mask=rows < tokens, other=0.0) * 1.4426950408889634
    k_base = k + b.to(tl.int64) * k_b + (h // SHARE) * k_h
    v_base = v + b.to(tl.int64) * v_b + (h // SHARE) * v_h
    row_position = tl.load(positions + at + rows, mask=rows < tokens, other=0)
    low = tl.load(low_m + b * blocks_m + m)
    found = tl.zeros((QUERIES, SIZE), dtype=tl.float32)
    for n in range(tl.load(first_m + b * blocks_m + m), tl.minimum((m * QUERIES + QUERIES - 1) // KEYS + 1, blocks_n)):
        seen_by_some = tl.load(end_n + b * blocks_n + n) > m * QUERIES
        if seen_by_some & (low - tl.load(high_n + b * blocks_n + n) < window):
            columns = n * KEYS + tl.arange(0, KEYS)
            there = (columns < tokens)[:, None]
            key = tl.load(k_base + columns[:, None] * k_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
            value = tl.load(v_base + columns[:, None] * v_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
            logits = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * 1.4426950408889634)
            seen = visible(rows, columns, row_position, positions, ends, at, tokens, window)
            share = tl.where(seen, tl.exp2(logits - sum_log[:, None]), 0.0)
            d_share = tl.dot(upstream.to(COMPUTE), tl.trans(value), input_precision="ieee")
            d_logits = share * (d_share - product[:, None]) * scale
            found += tl.dot(d_logits.to(COMPUTE), key, input_precision="ieee")
    tl.store(d_q + place, found.to(d_q.dtype.element_ty), mask=inside)


@triton.jit
def to_keys_kernel(
    q, k, v, d_out, lse, delta, d_k, d_v, positions, ends, low_m, high_n, end_n, last_n, tokens, blocks_m, blocks_n,
    window, scale, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s,
    HEADS: tl.constexpr, SHARE: tl.constexpr, SIZE: tl.constexpr, COMPUTE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """d_k and d_v (B, S, G, D), summed over the query heads of each key head."""
    n = tl.program_id(0)
    GROUPS: tl.constexpr = HEADS // SHARE
    b, g = tl.program_id(1) // GROUPS, tl.program_id(1) % GROUPS
    at = b.to(tl.int64) * tokens
    columns, size = n * KEYS + tl.arange(0, KEYS), tl.arange(0, SIZE)
    there = (columns < tokens)[:, None]
    k_base = k + b.to(tl.int64) * k_b + g * k_h
    v_base = v + b.to(tl.int64) * v_b + g * v_h
    key = tl.load(k_base + columns[:, None] * k_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
    value = tl.load(v_base + columns[:, None] * v_s + size[None, :], mask=there, other=0.0).to(COMPUTE)
    end, high = tl.load(end_n + b * blocks_n + n), tl.load(high_n + b * blocks_n + n)
    to_key = tl.zeros((KEYS, SIZE), dtype=tl.float32)
    to_value = tl.zeros((KEYS, SIZE), dtype=tl.float32)
    last = tl.load(last_n + b * blocks_n + n) + 1
    for one in range(0, SHARE):
        h = g * SHARE + one
        q_base = q + b.to(tl.int64) * q_b + h * q_h
        for m in range(n * KEYS // QUERIES, last):
            if (end > m * QUERIES) & (tl.load(low_m + b * blocks_m + m) - high < window):
                rows = m * QUERIES + tl.arange(0, QUERIES)
                inside = (rows < tokens)[:, None]
                query = tl.load(q_base + rows[:, None] * q_s + size[None, :], mask=inside, other=0.0).to(COMPUTE)
                place = (at + rows).to(tl.int64)[:, None] * (HEADS * SIZE) + h * SIZE + size[None, :]
                upstream = tl.load(d_out + place, mask=inside, other=0.0).to(COMPUTE)
                each = (b.to(tl.int64) * HEADS + h) * tokens + rows
                sum_log = tl.load(lse + each, mask=rows < tokens, other=0.0) * 1.4426950408889634
                product = tl.load(delta + each, mask=rows < tokens, other=0.0)
                row_position = tl.load(positions + at + rows, mask=rows < tokens, other=0)
                logits = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * 1.4426950408889634)
                seen = visible(rows, columns, row_position, positions, ends, at, tokens, window)
                share = tl.where(seen, tl.exp2(logits - sum_log[:, None]), 0.0)
                to_value += tl.dot(tl.trans(share.to(COMPUTE)), upstream, input_precision="ieee")
                d_share = tl.dot(upstream, tl.trans(value), input_precision="ieee")
                d_logits = share * (d_share - product[:, None]) * scale
                to_key += tl.dot(tl.trans(d_logits.to(COMPUTE)), query, input_precision="ieee")
    place = (at + columns).to(tl.int64)[:, None] * (GROUPS * SIZE) + g * SIZE + size[None, :]
    tl.store(d_k + place, to_key.to(d_k.dtype.element_ty), mask=there)
    tl.store(d_v + place, to_value.to(d_v.dtype.element_ty), mask=there)


def _blocks(
    memo: dict[tuple[int, int], Blocks], position_BS: torch.Tensor, end_BS: torch.Tensor, window: int, tiling: Tiling
) -> Blocks:
    size = tiling.queries, tiling.keys
    if size not in memo:
        memo[size] = blocks_of(position_BS, end_BS, window, *size)
    return memo[size]


def _shared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[list[int], list[object]]:
    strides = [stride for part in (q, k, v) for stride in part.stride()[:3]]
    assert all(part.stride(3) == 1 for part in (q, k, v))
    heads, size = q.shape[1], q.shape[3]
    return strides, [heads, heads // k.shape[1], size, tl.float32 if q.dtype == torch.float32 else tl.bfloat16]


def tree_attention(
    q_BHSD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, sink_H: torch.Tensor, position_BS: torch.Tensor,
    end_BS: torch.Tensor, window: int | None, memo: dict[tuple[int, int], Blocks], scale: float,
    tiling: Tiling = FORWARD,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(output (B, S, H, D), log-sum-exp (B, H, S) with the sink); positions and ends are int32.

    memo: keeps what depends on positions, ends and window alone.
    """
    rows, heads, tokens, size = q_BHSD.shape
    width = NO_WINDOW if window is None else window
    out, lse = q_BHSD.new_empty(rows, tokens, heads, size), q_BHSD.new_empty(rows, heads, tokens, dtype=torch.float32)
    blocks = _blocks(memo, position_BS, end_BS, width, tiling)
    strides, constants = _shared(q_BHSD, k_BGSD, v_BGSD)
    count_m, count_n = blocks.position_BM.shape[1], blocks.position_BN.shape[1]
    forward_kernel[(count_m, rows * heads)](
        q_BHSD, k_BGSD, v_BGSD, sink_H, out, lse, position_BS, end_BS, *blocks[:4], tokens, count_m, count_n, width,
        scale, *strides, *constants, tiling.queries, tiling.keys, num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out, lse


def tree_attention_backward(
    d_out: torch.Tensor, q_BHSD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, out: torch.Tensor,
    lse_BHS: torch.Tensor, position_BS: torch.Tensor, end_BS: torch.Tensor, window: int | None,
    memo: dict[tuple[int, int], Blocks], scale: float, to_queries: Tiling = TO_QUERIES, to_keys: Tiling = TO_KEYS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients (B, S, H, D) of queries and (B, S, G, D) of keys and values, and delta (B, H, S), `<d_out, out>`."""
    rows, heads, tokens, size = q_BHSD.shape
    width, groups = NO_WINDOW if window is None else window, k_BGSD.shape[1]
    strides, constants = _shared(q_BHSD, k_BGSD, v_BGSD)
    delta, d_q = torch.empty_like(lse_BHS), torch.empty_like(out)
    d_k, d_v = (q_BHSD.new_empty(rows, tokens, groups, size) for _ in range(2))
    blocks = _blocks(memo, position_BS, end_BS, width, to_queries)
    count_m, count_n = blocks.position_BM.shape[1], blocks.position_BN.shape[1]
    to_queries_kernel[(count_m, rows * heads)](
        q_BHSD, k_BGSD, v_BGSD, out, d_out, lse_BHS, delta, d_q, position_BS, end_BS, *blocks[:4], tokens, count_m,
        count_n, width, scale, *strides, *constants, to_queries.queries, to_queries.keys,
        num_warps=to_queries.warps, num_stages=to_queries.stages,
    )  # fmt: skip
    blocks = _blocks(memo, position_BS, end_BS, width, to_keys)
    count_m, count_n = blocks.position_BM.shape[1], blocks.position_BN.shape[1]
    to_keys_kernel[(count_n, rows * groups)](
        q_BHSD, k_BGSD, v_BGSD, d_out, lse_BHS, delta, d_k, d_v, position_BS, end_BS, *blocks[:3], blocks.last_BN,
        tokens, count_m, count_n, width, scale, *strides, *constants, to_keys.queries, to_keys.keys,
        num_warps=to_keys.warps, num_stages=to_keys.stages,
    )  # fmt: skip
    return d_q, d_k, d_v, delta
