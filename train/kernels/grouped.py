"""Grouped GEMM of routed rows in one kernel: rows gathered in the load, weights plain or in MXFP4, bias and LoRA added.

Legend: R routed rows sorted by expert, E experts, K inputs, O outputs, r rank, T tiles of rows.

`out = x[row] W_e + b_e + scale low B_e`. Which expert a tile of rows belongs to is computed on the device, so that
nothing waits for it; a program whose tile has no rows ends at once, so no expert is read, let alone unpacked, for
tokens that it does not get. The plain form is `F.grouped_mm` with what surrounds it in train/adapters/expert_math.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from counterpoint.train.kernels.mxfp4 import decode_pair


class Tiling(NamedTuple):
    """Rows, outputs and inputs of a tile, and how it is compiled."""

    rows: int = 128
    outputs: int = 128
    inputs: int = 64
    warps: int = 8
    stages: int = 3


TILING = Tiling()
"""Registers, shared memory and spills on compute capability 9.0: tests/kernels/test_compiled.py. Not timed on a GPU."""
SMALL = Tiling(16, 128, 128, 4, 4)
"""For few rows, as in decoding: the weights are what is read."""
FEW_ROWS = 1024


class Tiles(NamedTuple):
    """Of all tiles of R rows: expert_T (E where it has no rows) and first_T, its first row; end_E as of `Routing`."""

    expert_T: torch.Tensor
    first_T: torch.Tensor
    end_E: torch.Tensor
    rows: int
    tiling: Tiling


def tiles_of(end_E: torch.Tensor, rows: int, tiling: Tiling | None = None) -> Tiles:
    """Cut each expert's rows into tiles. How many there are at most is known without waiting."""
    tiling = tiling or (SMALL if rows < FEW_ROWS else TILING)
    size, size_E = tiling.rows, torch.diff(end_E, prepend=end_E.new_zeros(1))
    last_E = torch.cumsum((size_E + size - 1) // size, 0)
    count = min(-(-rows // size) + len(end_E), max(rows, 1))
    index_T = torch.arange(count, device=end_E.device)
    expert_T = torch.searchsorted(last_E, index_T, right=True)
    known_T = expert_T.clamp(max=len(end_E) - 1)
    within_T = index_T - (last_E[known_T] - (size_E[known_T] + size - 1) // size)
    first_T = end_E[known_T] - size_E[known_T] + within_T * size
    return Tiles(expert_T.to(torch.int32), first_T.to(torch.int32), end_E, rows, tiling)


@triton.jit
def grouped_kernel(
    x, row, weight, scales, bias, low, factor, out, expert_T, first_T, end_E, experts, inputs, outputs, scale,
    x_stride, weight_e, weight_k, weight_o, factor_e,
    GATHER: tl.constexpr, PACKED: tl.constexpr, ALONG_INPUTS: tl.constexpr, BIAS: tl.constexpr, RANK: tl.constexpr,
    RANK_WIDTH: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """PACKED: `weight` is bytes, of two numbers along the inputs (ALONG_INPUTS) or along the outputs; strides in bytes.
    COMPUTE: the type of the products, float32 in the interpreter, which computes bfloat16 wrongly."""
    tile = tl.program_id(0)
    expert = tl.load(expert_T + tile)
    if expert < experts:
        first = tl.load(first_T + tile)
        end = tl.load(end_E + expert)
        place = first + tl.arange(0, ROWS)
        there = place < end
        source = tl.load(row + place, mask=there, other=0) if GATHER else place
        output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
        x_rows = x + source.to(tl.int64)[:, None] * x_stride
        base = weight + expert.to(tl.int64) * weight_e
        scale_base = scales + expert.to(tl.int64) * (weight_e // 16)
        total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
        for k in range(0, inputs, INPUTS):
            column = k + tl.arange(0, INPUTS)
            part = tl.load(x_rows + column[None, :], mask=there[:, None] & (column < inputs)[None, :], other=0.0)
            if PACKED:
                if ALONG_INPUTS:
                    half = k // 2 + tl.arange(0, INPUTS // 2)
                    fits = (half < inputs // 2)[:, None] & (output < outputs)[None, :]
                    byte = tl.load(base + half[:, None] * weight_k + output[None, :] * weight_o, mask=fits, other=0)
                    of = output[None, :] * (weight_o // 16) + half[:, None] // 16
                    both = decode_pair(byte, tl.load(scale_base + of, mask=fits, other=128))
                    numbers = tl.reshape(tl.permute(both, (0, 2, 1)), (INPUTS, OUTPUTS))
                else:
                    half = tl.program_id(1) * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
                    fits = (column < inputs)[:, None] & (half < outputs // 2)[None, :]
                    byte = tl.load(base + column[:, None] * weight_k + half[None, :] * weight_o, mask=fits, other=0)
                    of = column[:, None] * (weight_k // 16) + half[None, :] // 16
                    both = decode_pair(byte, tl.load(scale_base + of, mask=fits, other=128))
                    numbers = tl.reshape(both, (INPUTS, OUTPUTS))
            else:
                fits = (column < inputs)[:, None] & (output < outputs)[None, :]
                numbers = tl.load(base + column[:, None] * weight_k + output[None, :] * weight_o, mask=fits, other=0.0)
            total = tl.dot(part.to(COMPUTE), numbers.to(COMPUTE), total, input_precision="ieee")
        if RANK > 0:
            rank = tl.arange(0, RANK_WIDTH)
            held = there[:, None] & (rank < RANK)[None, :]
            left = tl.load(low + place[:, None] * RANK + rank[None, :], mask=held, other=0.0)
            at = factor + expert.to(tl.int64) * factor_e + rank[:, None] * outputs + output[None, :]
            right = tl.load(at, mask=(rank < RANK)[:, None] & (output < outputs)[None, :], other=0.0)
            total += scale * tl.dot(left.to(COMPUTE), right.to(COMPUTE), input_precision="ieee")
        if BIAS:
            total += tl.load(bias + expert * outputs + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
        at = out + place.to(tl.int64)[:, None] * outputs + output[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=there[:, None] & (output < outputs)[None, :])


def grouped(
    x: torch.Tensor, weight: torch.Tensor, tiles: Tiles, *, row_R: torch.Tensor | None = None, transposed: bool = False,
    bias_EO: torch.Tensor | None = None, low_Rr: torch.Tensor | None = None, factor_ErO: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """(R, O) of x (R, K), or of x (N, K) and the token of each row, and a stack of matrices (E, K, O).

    weight: a plain stack, or one in MXFP4 as `Mxfp4Tensor` has it; transposed: of matrices (E, O, K).
    """
    packed = hasattr(weight, "blocks")
    experts = weight.shape[0]
    inputs, outputs = (weight.shape[2], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[2])
    tiling, x = tiles.tiling, x.contiguous()
    out = x.new_empty(tiles.rows, outputs)
    if not tiles.rows:
        return out
    if packed:
        held = weight.blocks.contiguous()  # pyright: ignore[reportAttributeAccessIssue]
        scales = weight.scales.contiguous()  # pyright: ignore[reportAttributeAccessIssue]
        # Bytes are (E, outputs of the stack, inputs / 2).
        strides = (held.stride(0), held.stride(1), 1) if transposed else (held.stride(0), 1, held.stride(1))
    else:
        held = scales = weight
        strides = weight.stride() if not transposed else (weight.stride(0), weight.stride(2), weight.stride(1))
    rank = 0 if low_Rr is None else low_Rr.shape[1]
    grid = (len(tiles.expert_T), triton.cdiv(outputs, tiling.outputs))
    grouped_kernel[grid](
        x, x if row_R is None else row_R, held, scales, x if bias_EO is None else bias_EO.contiguous(),
        x if low_Rr is None else low_Rr.contiguous(), x if factor_ErO is None else factor_ErO.contiguous(), out,
        *tiles[:3], experts, inputs, outputs, scale, x.stride(0), *strides, rank * outputs,
        row_R is not None, packed, not transposed, bias_EO is not None, rank, max(16, triton.next_power_of_2(rank)),
        tl.float32 if x.dtype == torch.float32 else tl.bfloat16, tiling.rows, tiling.outputs, tiling.inputs,
        num_warps=tiling.warps, num_stages=tiling.stages,
    )  # fmt: skip
    return out
