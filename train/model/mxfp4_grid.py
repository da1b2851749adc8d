"""Rounding to the MXFP4 grid: to the nearest number, or to one of the two neighbours by a hash of its place (dither).

Legend: O outputs, I inputs, G = I / 32 runs of one scale. Codes are one number a byte (uint8), scales hold the power of
two plus 127 (uint8). Leading dimensions (experts) are free.

A base from MXFP4 lies on the grid, and to the nearest a change below half a step is lost whole. Dithering rounds
t = base + change up with the probability (t - low) / (high - low): each number is wrong, and their mean is right.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch

from counterpoint.configs.errors import ModelError
from counterpoint.train.model.mxfp4 import FP4_VALUES, RUN

_BETWEEN = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_ASCENDING = (15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7)
"""Codes by rising value, of the two zeros the positive one."""
_LARGEST, _HALF_STEP = 6.0, 1.0
_POWERS = (0, 1)
_MASK = 0xFFFFFFFF
_HASH_BITS = 23
"""(n + 1/2) / 2^23 is exact in float32, and neither 0 nor 1."""
_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Numbers that are hashed and rounded together: on a CPU, what its caches hold."""


def quantised(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (..., O, I) and scales (..., O, G) nearest to a weight.

    Of the two powers of two that can fit a run of 32, the one with the smaller squared error. What is on the grid
    stays bit for bit. ModelError where I is no multiple of 32.
    """
    check_width(weight_OI.shape[-1])
    runs = weight_OI.float().unflatten(-1, (-1, RUN))
    largest = runs.abs().amax(-1, keepdim=True)
    # frexp is exact where log2 may round: the largest number is in [2^(exponent - 1), 2^exponent).
    lowest = torch.where(largest > 0, torch.frexp(largest).exponent - 3, -127)
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for power in _POWERS:
        scale = (lowest + power).clamp(-127, 127)
        codes = _nearest(torch.ldexp(runs, -scale))
        error = (torch.ldexp(_values(codes), scale) - runs).square().sum(-1, keepdim=True)
        if best is None:
            best = codes, scale, error
            continue
        better = error < best[2]
        best = (
            torch.where(better, codes, best[0]),
            torch.where(better, scale, best[1]),
            torch.minimum(error, best[2]),
        )
    assert best is not None
    codes, scale, _ = best
    return codes.flatten(-2), (scale.squeeze(-1) + 127).to(torch.uint8)


def check_width(inputs: int) -> None:
    """ModelError where a row of so many inputs does not divide into runs."""
    if inputs % RUN:
        raise ModelError(f"MXFP4 packs runs of {RUN}, and {inputs} inputs are none: use --to bf16")


def packed(codes_OI: torch.Tensor) -> torch.Tensor:
    """Codes (..., O, I) as the file's blocks (..., O, G, 16)."""
    return (codes_OI[..., 0::2] | (codes_OI[..., 1::2] << 4)).unflatten(-1, (-1, RUN // 2))


def codes_of(bytes_OI: torch.Tensor) -> torch.Tensor:
    """Bytes (..., O, I / 2) as codes (..., O, I)."""
    return torch.stack([bytes_OI & 15, bytes_OI >> 4], dim=-1).flatten(-2)


def values_of(codes_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
    """Codes and their scales as float32 numbers."""
    return torch.ldexp(_values(codes_OI), _power(scales_OG))


def steps_of(scales_OG: torch.Tensor) -> torch.Tensor:
    """The unit of each number's grid, float32 (..., O, I)."""
    return torch.exp2(_power(scales_OG).float())


def raised(scales_OG: torch.Tensor, target_OI: torch.Tensor) -> torch.Tensor:
    """Scales that reach the target: raised only where it passes 6 steps by more than half a step between 6 and 8."""
    largest = target_OI.unflatten(-1, (-1, RUN)).abs().amax(-1)
    scales = scales_OG.int()
    limit = _LARGEST + _HALF_STEP
    # largest <= limit x 2^power, by the exact exponent of largest / limit.
    mantissa, exponent = torch.frexp(largest / limit)
    needed = torch.where(mantissa == 0.5, exponent - 1, exponent) + 127
    return torch.maximum(scales, torch.where(largest > 0, needed, 0)).clamp_max(254).to(torch.uint8)


def nearest(target_OI: torch.Tensor, scales_OG: torch.Tensor) -> torch.Tensor:
    """Codes nearest to the target on the grid of the scales."""
    return _nearest(torch.ldexp(target_OI, -_power(scales_OG)))


def nearest_value(target: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The number nearest to `target` on a grid of `step` (a power of two), as a number; shapes are equal."""
    scaled = target / step
    limits, sizes = _tables(target.device)
    return torch.copysign(sizes[torch.bucketize(scaled.abs(), limits)], scaled).mul_(step)


def dithered(target_OI: torch.Tensor, scales_OG: torch.Tensor, key: tuple[int, int]) -> torch.Tensor:
    """Codes of one expert's target (O, I): the upper neighbour where its share of the gap passes `uniform(key)`."""
    outputs, inputs = target_OI.shape
    found = torch.empty(target_OI.shape, dtype=torch.uint8, device=target_OI.device)
    rows = max(1, _AT_ONCE[target_OI.device.type] // inputs)
    for first in range(0, outputs, rows):
        part = slice(first, min(first + rows, outputs))
        threshold = uniform(key, target_OI[part].shape, target_OI.device, first * inputs)
        found[part] = between(target_OI[part], scales_OG[part], threshold)
    return found


def between(target_OI: torch.Tensor, scales_OG: torch.Tensor, threshold_OI: torch.Tensor) -> torch.Tensor:
    """Codes of the upper neighbour where (target - low) / (high - low) > threshold, of the lower one elsewhere."""
    grid = torch.tensor([FP4_VALUES[code] for code in _ASCENDING], device=target_OI.device)
    codes = torch.tensor(_ASCENDING, dtype=torch.uint8, device=target_OI.device)
    scaled = torch.ldexp(target_OI, -_power(scales_OG)).clamp(-_LARGEST, _LARGEST)
    low = (torch.searchsorted(grid, scaled.contiguous(), right=True) - 1).clamp_max(len(grid) - 2)
    below, above = grid[low], grid[low + 1]
    # At the largest number itself the share is 1, above any threshold.
    return codes[low + ((scaled - below) / (above - below) > threshold_OI)]


def dither_key(seed: int, tensor: str, expert: int) -> tuple[int, int]:
    """What the thresholds of one expert depend on, besides output and input."""
    digest = hashlib.sha256(f"{seed}\n{tensor}\n{expert}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def uniform(key: tuple[int, int], shape: tuple[int, ...], device: torch.device, first: int = 0) -> torch.Tensor:
    """Thresholds in (0, 1), float32, by a hash of the key and each number's index, from `first` on: equal on every
    device."""
    last = first + math.prod(shape)
    assert last <= _MASK
    index = torch.arange(first, last, device=device)
    number = _mix(_mix(index.bitwise_xor_(key[0])).bitwise_xor_(key[1])).bitwise_right_shift_(32 - _HASH_BITS)
    return number.float().add_(0.5).div_(1 << _HASH_BITS).view(shape)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A permutation of 32-bit numbers held in int64, in place. Its factors are below 2^31, so no product overflows.
    Constants: https://github.com/skeeto/hash-prospector (public domain)."""
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(_MASK)
    x.bitwise_xor_(x >> 15).mul_(0x735A2D97).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 15)


def _power(scales_OG: torch.Tensor) -> torch.Tensor:
    return (scales_OG.int() - 127).repeat_interleave(RUN, -1)


def _nearest(scaled: torch.Tensor) -> torch.Tensor:
    limits, _ = _tables(scaled.device)
    return torch.bucketize(scaled.abs().contiguous(), limits).to(torch.uint8) | (scaled < 0).to(torch.uint8) << 3


def _values(codes: torch.Tensor) -> torch.Tensor:
    return torch.tensor(FP4_VALUES, device=codes.device)[codes.int()]


@lru_cache(maxsize=16)
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The limits between the sizes of numbers, and the sizes."""
    return torch.tensor(_BETWEEN, device=device), torch.tensor(FP4_VALUES[:8], device=device)
