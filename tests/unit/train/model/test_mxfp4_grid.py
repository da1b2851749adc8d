"""Rounding to the MXFP4 grid: neighbours, thresholds by hash, scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.configs.errors import ModelError
from counterpoint.train.model.mxfp4 import FP4_VALUES, unpacked
from counterpoint.train.model.mxfp4_grid import (
    between,
    codes_of,
    dither_key,
    dithered,
    nearest,
    nearest_value,
    packed,
    quantised,
    raised,
    steps_of,
    uniform,
    values_of,
)

SCALE = torch.tensor([[122]], dtype=torch.uint8)
"""One run of 32 in steps of 2^-5."""


def row(*numbers: float) -> torch.Tensor:
    """One output of 32 inputs, the first as given."""
    return torch.tensor([[*numbers, *[0.0] * (32 - len(numbers))]])


@given(st.integers(0, 2**32 - 1), st.integers(10, 240))
@settings(max_examples=60)
def test_what_lies_on_the_grid_stays(seed: int, power: int) -> None:
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, 5, 32), dtype=torch.uint8, generator=random)
    scales = torch.full((3, 5, 2), power, dtype=torch.uint8)
    codes = codes_of(blocks)
    weight = values_of(codes, scales)
    assert torch.equal(weight, unpacked(blocks, scales, torch.float32))
    assert torch.equal(packed(codes).flatten(-2), blocks)
    assert torch.equal(values_of(*quantised(weight)), weight)
    assert torch.equal(raised(scales, weight), scales)
    for rounded in (nearest(weight, scales), between(weight, scales, uniform((seed, 1), (3, 5, 64), weight.device))):
        assert torch.equal(values_of(rounded, scales), weight)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@settings(max_examples=60)
def test_numbers_go_to_the_nearest_of_the_better_power(seed: int, size: float) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 32, generator=random) * size
    codes, scales = quantised(weight)
    found = values_of(codes, scales)
    assert torch.equal(nearest_value(weight, steps_of(scales)), found)
    for given_row, mine in zip(weight.numpy(), found.numpy(), strict=True):
        exponent = int(np.floor(np.log2(np.abs(given_row).max()))) - 2
        errors = []
        for power in (exponent, exponent + 1):
            grid = np.array(FP4_VALUES, np.float64) * 2.0**power
            close = grid[np.abs(given_row[:, None] - grid).argmin(1)]
            errors.append(((given_row - close) ** 2).sum())
        assert ((given_row - mine.astype(np.float64)) ** 2).sum() == pytest.approx(min(errors), rel=1e-4)


def test_zeros_and_odd_widths() -> None:
    codes, scales = quantised(torch.zeros(2, 64))
    assert not values_of(codes, scales).any()
    assert torch.equal(raised(scales, torch.zeros(2, 64)), scales)
    with pytest.raises(ModelError, match="runs of 32"):
        quantised(torch.zeros(2, 48))


def test_a_threshold_decides_between_the_neighbours() -> None:
    """Scale byte 122, base 1.0 and -1.5 of its steps: 0.002 is 0.128 of the gap to 1.5."""
    target = row(0.03125 + 0.002, -1.5 / 32)
    assert float(target[0, 0]) == pytest.approx(0.03325)
    up, down = (between(target, SCALE, torch.full((1, 32), t)) for t in (0.05, 0.5))
    assert (up[0, 0], down[0, 0]) == (0x3, 0x2)
    assert (packed(up)[0, 0, 0], packed(down)[0, 0, 0]) == (0xB3, 0xB2)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.31, 0.5, 0.999])
@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (1.5, 2.0), (2.0, 3.0), (4.0, 6.0), (-6.0, -4.0), (-0.5, 0.0)])
def test_the_mean_over_seeds_is_the_number(low: float, high: float, share: float) -> None:
    """At unequal gaps and beside the largest number, within four standard errors of 4,096 seeds."""
    seeds = 4096
    number = (low + share * (high - low)) / 32
    target = row(*[number] * 32)
    keys = [dither_key(seed, "a", 0) for seed in range(seeds // 32)]
    found = torch.cat([values_of(dithered(target, SCALE, key), SCALE) for key in keys])
    error = (high - low) / 32 * (share * (1 - share) / seeds) ** 0.5
    assert abs(float(found.double().mean()) - number) <= 4 * error + 1e-9
    assert set(found.unique().tolist()) <= {low / 32, high / 32}


@pytest.mark.parametrize("number", [6.0, -6.0, 6.9, -6.9])
def test_the_largest_numbers_stay_within_the_grid(number: float) -> None:
    target = row(*[number / 32] * 32)
    scales = raised(SCALE, target)
    assert torch.equal(scales, SCALE)
    assert values_of(dithered(target, scales, (1, 2)), scales).unique().tolist() == [np.sign(number) * 6 / 32]


@pytest.mark.parametrize(("size", "power"), [(7.0, 122), (7.01, 123), (14.0, 123), (14.01, 124), (100.0, 126)])
def test_a_scale_is_raised_where_the_target_passes_half_a_step(size: float, power: int) -> None:
    assert raised(SCALE, row(1.0 / 32, -size / 32)).tolist() == [[power]]


def test_thresholds_depend_on_seed_tensor_expert_and_place() -> None:
    """Exact values, so that what was trained with them is exported with them by every version and device."""
    key = dither_key(0, "model.layers.0.mlp.experts.gate_up_proj", 0)
    assert key == (1330178480, 438728067)
    found = uniform(key, (2, 3), torch.device("cpu"))
    assert [round(value * 2**23 - 0.5) for value in found.flatten().tolist()] == [
        7994575,
        2424515,
        1810658,
        6171657,
        2215195,
        1213279,
    ]
    whole = uniform(key, (40, 64), torch.device("cpu"))
    assert torch.equal(whole.flatten()[:6], found.flatten())
    others = [dither_key(1, "a", 0), dither_key(0, "a", 0), dither_key(0, "b", 0), dither_key(0, "a", 1)]
    drawn = torch.stack([uniform(other, (200, 100), whole.device).flatten() for other in others])
    assert 0 < float(drawn.min()) < 1e-3
    assert 1 - 1e-3 < float(drawn.max()) < 1
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.03
    neighbours = drawn[0].view(200, 100)
    for a, b in ((neighbours[1:], neighbours[:-1]), (neighbours[:, 1:], neighbours[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.03
    counts = torch.histc(drawn.flatten(), 64, 0, 1)
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 120  # chi squared with 63 degrees


def test_thresholds_need_no_number_above_63_bits() -> None:
    """The same hash in Python's unbounded integers: nothing overflows, so every device agrees."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x735A2D97) & 0xFFFFFFFF
        return x ^ (x >> 15)

    key = (0xFFFFFFFF, 0xDEADBEEF)
    found = uniform(key, (300,), torch.device("cpu"))
    wanted = [((mix(mix(i ^ key[0]) ^ key[1]) >> 9) + 0.5) / 2**23 for i in range(300)]
    assert found.tolist() == wanted
