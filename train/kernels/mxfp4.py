"""MXFP4 to bfloat16 in one pass: each byte is read once and each number written once.

Legend: M rows (outputs of all experts), I inputs. The plain form is `unpacked` of train/model/mxfp4.py.
"""

import torch
import triton
import triton.language as tl

BYTES = 1024
"""Bytes that a program decodes."""


@triton.jit
def decode_fp4(nibble):
    """Half of a 4-bit number's value is what it counts in: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives, as float32."""
    magnitude = nibble & 7
    exponent = tl.maximum(magnitude >> 1, 1) - 1
    twice = tl.where(magnitude < 2, magnitude, ((magnitude & 1) | 2) << exponent).to(tl.float32)
    return twice * tl.where(nibble > 7, -1.0, 1.0)  # not by negation, which loses the sign of zero


@triton.jit
def half_power(scale):
    """2^(scale - 128): half of the power of two that a scale stands for, from its bits."""
    wide = scale.to(tl.int32)
    bits = tl.where(wide > 1, (wide - 1) << 23, tl.where(wide == 1, 0x00400000, 0x00200000))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def decode_pair(byte, scale):
    """The two numbers of each byte along a new last dimension; a scale for each byte."""
    wide, power = byte.to(tl.int32), half_power(scale)
    return tl.join(decode_fp4(wide & 15) * power, decode_fp4(wide >> 4) * power)


@triton.jit
def unpack_kernel(blocks, scales, out, total, BYTES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    byte = tl.load(blocks + at, mask=at < total, other=0)
    scale = tl.load(scales + at // 16, mask=at < total, other=128)
    numbers = tl.reshape(decode_pair(byte, scale), (2 * BYTES,))
    place = tl.program_id(0).to(tl.int64) * 2 * BYTES + tl.arange(0, 2 * BYTES)
    tl.store(out + place, numbers.to(out.dtype.element_ty), mask=place < 2 * total)


def unpack(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(..., I / 2) bytes and (..., I / 32) scales, both contiguous, as (..., I) numbers in bfloat16 or float32."""
    out = torch.empty(*blocks.shape[:-1], 2 * blocks.shape[-1], dtype=dtype, device=blocks.device)
    if total := blocks.numel():
        unpack_kernel[(triton.cdiv(total, BYTES),)](blocks.contiguous(), scales.contiguous(), out, total, BYTES)
    return out
