"""gpt-oss's clamped SwiGLU on interleaved gate and up in one kernel, forward and backward.

Legend: R routed rows, I intermediate, J = 2 I. The plain form is `activation` and `activation_backward` of
train/adapters/expert_math.py; the arithmetic is in float32 and rounded once.
"""

# Triton reads annotations of a kernel's arguments as they are written, so none are put off here.
import torch
import triton
import triton.language as tl

COLUMNS = 512
"""Columns of the activation that a program computes at once. Registers and spills: tests/kernels/test_compiled.py."""


@triton.jit
def swiglu_forward_kernel(h, out, columns, alpha, limit, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * COLUMNS
    both = 2 * first + tl.arange(0, 2 * COLUMNS)
    pairs = tl.load(h + row * 2 * columns + both, mask=both < 2 * columns, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(pairs, (COLUMNS, 2)))
    gate = tl.minimum(gate, limit)
    up = tl.minimum(tl.maximum(up, -limit), limit)
    found = (up + 1.0) * gate * tl.sigmoid(alpha * gate)
    column = first + tl.arange(0, COLUMNS)
    tl.store(out + row * columns + column, found.to(out.dtype.element_ty), mask=column < columns)


@triton.jit
def swiglu_backward_kernel(h, g, weight, d_h, d_weight, columns, alpha, limit, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(weight + row).to(tl.float32)
    total = 0.0
    for first in range(0, columns, COLUMNS):
        both = 2 * first + tl.arange(0, 2 * COLUMNS)
        column = first + tl.arange(0, COLUMNS)
        pairs = tl.load(h + row * 2 * columns + both, mask=both < 2 * columns, other=0.0).to(tl.float32)
        raw_gate, raw_up = tl.split(tl.reshape(pairs, (COLUMNS, 2)))
        gate = tl.minimum(raw_gate, limit)
        up = tl.minimum(tl.maximum(raw_up, -limit), limit) + 1.0
        sigmoid = tl.sigmoid(alpha * gate)
        silu = gate * sigmoid
        upstream = tl.load(g + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        found = up * silu
        total += tl.sum(upstream * found)
        upstream *= share
        d_gate = upstream * up * sigmoid * (1.0 + alpha * gate * (1.0 - sigmoid))
        d_up = upstream * silu
        # At its own edge the clamp passes the gradient, beyond it none.
        d_gate = tl.where(raw_gate > limit, 0.0, d_gate)
        d_up = tl.where((raw_up > limit) | (raw_up < -limit), 0.0, d_up)
        joined = tl.reshape(tl.join(d_gate, d_up), (2 * COLUMNS,))
        tl.store(d_h + row * 2 * columns + both, joined.to(d_h.dtype.element_ty), mask=both < 2 * columns)
        tl.store(g + row * columns + column, found.to(g.dtype.element_ty), mask=column < columns)
    before = tl.load(d_weight + row).to(tl.float32)
    tl.store(d_weight + row, (before + total).to(d_weight.dtype.element_ty))


def swiglu(h_RJ: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """(R, 2 I) -> (R, I)."""
    rows, columns = len(h_RJ), h_RJ.shape[1] // 2
    out_RI = h_RJ.new_empty(rows, columns)
    if rows:
        grid = (rows, triton.cdiv(columns, COLUMNS))
        swiglu_forward_kernel[grid](h_RJ, out_RI, columns, alpha, limit, COLUMNS)
    return out_RI


def swiglu_backward(
    h_RJ: torch.Tensor, g_RI: torch.Tensor, weight_R: torch.Tensor, d_h_RJ: torch.Tensor, d_weight_R: torch.Tensor,
    alpha: float, limit: float,
) -> torch.Tensor:  # fmt: skip
    """The activation (R, I), in the place of its gradient g, which is without the weight of the row; writes the
    gradient of h, which may be h itself, and adds `<g, a>` to that of the weight."""
    if len(h_RJ):
        columns = g_RI.shape[1]
        swiglu_backward_kernel[(len(h_RJ),)](h_RJ, g_RI, weight_R, d_h_RJ, d_weight_R, columns, alpha, limit, COLUMNS)
    return g_RI
