"""Every Triton kernel in Triton's interpreter, in float32, against its plain form in float64.

`make test-kernels` runs it, with TRITON_INTERPRET=1 and versions of triton and numpy of its own.
"""

from __future__ import annotations

import pytest
import torch
from benchmark_modules import benchmark_module

from counterpoint.train.adapters import expert_math, kernel_checks
from counterpoint.train.adapters.activation import activation_backward
from counterpoint.train.adapters.expert_math import Adapter, ExpertWeights, Routing
from counterpoint.train.adapters.kernel_experts import kernel_backward, kernel_forward
from counterpoint.train.kernels.attention import Tiling as AttentionTiling
from counterpoint.train.kernels.attention import blocks_of, tree_attention, tree_attention_backward
from counterpoint.train.kernels.grouped import Tiling, grouped, tiles_of
from counterpoint.train.kernels.mxfp4 import unpack
from counterpoint.train.kernels.registry import put_in_use
from counterpoint.train.kernels.swiglu import swiglu, swiglu_backward
from counterpoint.train.model.attention_plan import AttentionPlan
from counterpoint.train.model.kernel_attention import KernelAttention
from counterpoint.train.model.mxfp4 import Mxfp4Tensor, unpacked

TOLERANCE = 3e-6
"""Relative error by norm: float32 against float64. The kernels' own are printed by `-s`."""


def close(name: str, found: torch.Tensor, exact: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == exact.shape
    error = float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))
    print(f"{name}: {error:.1e}")
    assert error <= tolerance, name


@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (5, 720), (3, 512)])
@pytest.mark.parametrize("in_place", [True, False])
def test_clamped_swiglu(rows: int, columns: int, in_place: bool) -> None:
    torch.manual_seed(0)
    h, g, weight = 6 * torch.randn(rows, 2 * columns), torch.randn(rows, columns), torch.rand(rows)
    h[:, :2], h[0, 2:4] = 7.0, -7.0  # the clamp passes the gradient at its own edge
    d_weight = torch.randn(rows)
    assert (h.abs() > 7).any()
    a, d_h = activation_backward(h.double(), (g * weight[:, None]).double(), 1.702, 7.0)
    close("swiglu", swiglu(h, 1.702, 7.0), a)
    exact = d_weight.double() + (g.double() * a).sum(-1)
    out = h if in_place else torch.full_like(h, torch.nan)
    found = swiglu_backward(h, g, weight, out, d_weight, 1.702, 7.0)
    assert found is g
    for name, mine, true in (("swiglu a", g, a), ("swiglu d h", out, d_h), ("swiglu d weight", d_weight, exact)):
        close(name, mine, true)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_unpacked_bit_for_bit(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    blocks = every.repeat(12).view(3, 4, 256)
    scales = torch.randint(1, 254, (3, 4, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours, plain = unpack(blocks, scales, dtype), unpacked(blocks, scales, dtype)
    assert ours.dtype == dtype
    assert torch.equal(ours, plain)
    assert torch.equal(torch.signbit(ours), torch.signbit(plain))
    assert unpack(blocks[:0], scales[:0], dtype).shape == (0, 4, 512)


SMALL = Tiling(16, 32, 32, 4, 1)
WIDTHS = {"whole": (64, 64), "ragged": (96, 80)}


def routing(spread: str, tokens: int = 23, experts: int = 5) -> Routing:
    torch.manual_seed(1)
    index = torch.stack([torch.randperm(experts)[:2] for _ in range(tokens)])
    if spread == "some empty":
        index = torch.tensor([[1, 3]]).expand(tokens, 2)
    if spread == "one takes all":
        index = torch.full((tokens, 2), 2)
    return Routing.of(index, experts)


@pytest.mark.parametrize("spread", ["even", "some empty", "one takes all"])
def test_tiles_cover_each_row_once_with_its_expert(spread: str) -> None:
    found = routing(spread)
    rows = len(found.row_R)
    tiles = tiles_of(found.end_E, rows, SMALL)
    seen = [-1] * rows
    for expert, first in zip(tiles.expert_T.tolist(), tiles.first_T.tolist(), strict=True):
        if expert < 5:
            for row in range(first, min(first + 16, int(found.end_E[expert]))):
                assert seen[row] == -1
                seen[row] = expert
    assert seen == expert_math.expert_of_rows(found).tolist()


@pytest.mark.parametrize("spread", ["even", "some empty", "one takes all"])
@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_grouped_gemm_with_gather_bias_and_lora(spread: str, width: str, packed: bool, transposed: bool) -> None:
    torch.manual_seed(0)
    found, (inputs, outputs) = routing(spread), WIDTHS[width]
    weight = torch.randn(5, inputs, outputs)
    if packed:
        shape = (5, outputs, inputs // 2)
        scales = torch.randint(120, 124, (5, outputs, inputs // 32), dtype=torch.uint8)
        weight = Mxfp4Tensor(torch.randint(0, 256, shape, dtype=torch.uint8), scales, torch.float32)
    dense = torch.stack([weight[e] for e in range(5)]).double()
    if transposed:
        dense = dense.mT
    rows, rank, experts = len(found.row_R), 3, expert_math.expert_of_rows(found)
    x, bias = torch.randn(23, dense.shape[1]), torch.randn(5, dense.shape[2])
    low, factor = torch.randn(rows, rank), torch.randn(5, rank, dense.shape[2])
    gathered = x[found.row_R]
    exact = torch.einsum("rk,rko->ro", gathered.double(), dense[experts])
    ours = grouped(gathered, weight, tiles_of(found.end_E, rows, SMALL), transposed=transposed)
    close("grouped", ours, exact)
    exact += bias.double()[experts] + 0.7 * torch.einsum("rk,rko->ro", low.double(), factor.double()[experts])
    ours = grouped(
        x, weight, tiles_of(found.end_E, rows, SMALL), row_R=found.row_R, transposed=transposed, bias_EO=bias, low_Rr=low,
        factor_ErO=factor, scale=0.7,
    )  # fmt: skip
    close("grouped with all", ours, exact)


@pytest.mark.parametrize("name", list(kernel_checks.CHECKS))
def test_what_a_gpu_is_trusted_by_passes(name: str) -> None:
    """The checks of `model.kernels: auto`, here in float32."""
    assert kernel_checks.CHECKS[name](torch.device("cpu"), torch.float32) <= TOLERANCE


def test_a_check_sees_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_checks, "swiglu", lambda h, alpha, limit: swiglu(h, alpha, limit + 1))
    assert kernel_checks.CHECKS["swiglu"](torch.device("cpu"), torch.float32) > 0.02


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("merged", [True, False])
def test_experts_on_kernels_equal_the_loop(packed: bool, recompute: bool, merged: bool) -> None:
    """merged: the base holds the adapter's product already, and only its gradients are asked for."""
    torch.manual_seed(0)
    found = routing("some empty", tokens=11)
    w1, w2 = torch.randn(5, 32, 64) / 6, torch.randn(5, 32, 32) / 6
    if packed:
        draw = kernel_checks.Draw(torch.device("cpu"), torch.float32)
        w1, w2 = (Mxfp4Tensor(*draw.packed(5, outputs, 32), torch.float32) for outputs in (64, 32))
    base = ExpertWeights(w1, torch.randn(5, 64), w2, torch.randn(5, 32), 1.702, 7.0)
    up = Adapter(torch.randn(5, 32, 3), torch.randn(5, 3, 64), 0.5, merged)
    down = Adapter(torch.randn(5, 32, 3), torch.randn(5, 3, 32), 0.5, merged)
    x, dy, weight = torch.randn(11, 32), torch.randn(11, 32), torch.rand(11, 2)
    results = []
    put_in_use(kernel_checks.KERNELS, "cpu")
    for forward, backward in ((kernel_forward, kernel_backward), (expert_math.loop_forward, expert_math.loop_backward)):
        out, saved = forward(x, weight, found, base, up, down)
        if recompute:
            saved = saved._replace(hidden_RJ=None)
        results.append((out, *backward(dy, x, weight, found, base, up, down, saved, True)))
        put_in_use({})
    for ours, loop in zip(*results, strict=True):
        close("experts", ours, loop, 1e-5)


def forest(kind: str, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, subtree_end) of two different rows."""
    plain = torch.arange(tokens), torch.full((tokens,), tokens)
    if kind == "plain":
        return torch.stack([plain[0]] * 2), torch.stack([plain[1]] * 2)
    half = tokens // 2
    packed = torch.arange(tokens) % half, torch.tensor([half] * half + [tokens] * (tokens - half))
    third = tokens // 3
    end = [tokens] * third + [2 * third] * third + [tokens] * (tokens - 2 * third)
    position = [*range(2 * third), *range(third, tokens - third)]
    tree = torch.tensor(position), torch.tensor(end)
    return torch.stack([packed[0], tree[0]]), torch.stack([packed[1], tree[1]])


def exact_attention(parts: list[torch.Tensor], plan: AttentionPlan, scale: float) -> torch.Tensor:
    q, k, v, sink = parts
    keys, values = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    logits = (q @ keys.mT * scale).masked_fill(plan.dense(torch.float32) != 0, -torch.inf)
    column = sink.view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    return (torch.softmax(torch.cat([logits, column], -1), -1)[..., :-1] @ values).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("kind", "tokens"), [("plain", 1), ("plain", 37), ("forest", 50)])
@pytest.mark.parametrize(
    "tiling", [AttentionTiling(16, 16, 4, 1), AttentionTiling(32, 16, 4, 1), AttentionTiling(16, 32, 4, 1)]
)
def test_attention_on_tree_rows(window: int | None, kind: str, tokens: int, tiling: AttentionTiling) -> None:
    torch.manual_seed(0)
    plan = AttentionPlan(*forest(kind, tokens), window)
    # As the model gives them: heads beside each other, token by token.
    parts = [1.5 * torch.randn(2, tokens, heads, 16).transpose(1, 2) for heads in (4, 2, 2)]
    parts.append(torch.tensor([-30.0, 0.0, 3.0, 1.0]))
    d_out = torch.randn(2, tokens, 4, 16)
    wide = [part.double().requires_grad_() for part in parts]
    exact = exact_attention(wide, plan, 0.3)
    exact.backward(d_out.double())
    out, lse = tree_attention(*parts, *plan.narrow, window, plan.memo, 0.3, tiling)
    close("attention out", out, exact.detach())
    *found, delta = tree_attention_backward(
        d_out, *parts[:3], out, lse, *plan.narrow, window, plan.memo, 0.3, tiling, tiling
    )
    for name, mine, leaf in zip(("dq", "dk", "dv"), found, wide, strict=False):
        assert leaf.grad is not None
        close(f"attention {name}", mine.transpose(1, 2), leaf.grad)
    sink = parts[3]
    d_sink = -(torch.exp(sink[:, None] - lse) * delta).sum((0, 2))
    assert wide[3].grad is not None
    assert (d_sink - wide[3].grad).abs().max() < 1e-4


def test_the_autograd_function_around_it() -> None:
    torch.manual_seed(0)
    plan = AttentionPlan(*forest("forest", 20), None)
    parts = [torch.randn(2, heads, 20, 16) for heads in (4, 2, 2)] + [torch.randn(4)]
    leaves, wide = (
        [part.detach().clone().to(dtype).requires_grad_() for part in parts] for dtype in (torch.float32, torch.float64)
    )
    d_out = torch.randn(2, 20, 4, 16)
    put_in_use(kernel_checks.KERNELS, "cpu")
    out = KernelAttention.apply(*leaves, plan, 0.3)
    out.backward(d_out)
    put_in_use({})
    exact = exact_attention(wide, plan, 0.3)
    exact.backward(d_out.double())
    for ours, true in zip([out, *(leaf.grad for leaf in leaves)], [exact, *(leaf.grad for leaf in wide)], strict=True):
        assert ours is not None
        assert true is not None
        close("autograd", ours, true.detach())


@pytest.mark.parametrize("window", [None, 5])
def test_only_blocks_that_somebody_sees_are_looked_at(window: int | None) -> None:
    position, end = forest("forest", 50)
    plan = AttentionPlan(position, end, window)
    blocks = blocks_of(*plan.narrow, window or 1 << 30, 16, 8)
    seen = plan.dense(torch.float32)[:, 0] == 0
    for row in range(2):
        for m in range(4):
            keys = seen[row, 16 * m : 16 * m + 16].any(0).nonzero()
            assert int(blocks.first_BM[row, m]) <= int(keys.min()) // 8
        for n in range(7):
            queries = seen[row, :, 8 * n : 8 * n + 8].any(1).nonzero()
            assert int(blocks.last_BN[row, n]) >= int(queries.max()) // 16
    plain = AttentionPlan(*forest("plain", 512), 16)
    blocks = blocks_of(*plain.narrow, 16, 64, 64)
    assert blocks.first_BM[0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert blocks.last_BN[0].tolist() == [1, 2, 3, 4, 5, 6, 7, 7]


def test_what_a_layer_costs_is_what_the_benchmarks_say() -> None:
    """docs/benchmarks.md, 8,192 tokens: launches, GB and waits for the device."""
    found = {
        (name, kernels): (count.launches, round(count.bytes / 1e9, 1), count.waits)
        for kernels in (False, True)
        for name, count in benchmark_module("gpu_count").counted(8192, kernels)
    }
    assert found == {
        ("experts, bf16", False): (439, 41.3, 0),
        ("experts, mxfp4", False): (573, 61.5, 1),
        ("attention, full", False): (19, 1.6, 0),
        ("attention, sliding", False): (19, 1.6, 0),
        ("experts, bf16", True): (111, 10.7, 0),
        ("experts, mxfp4", True): (111, 8.3, 0),
        ("attention, full", True): (10, 0.6, 0),
        ("attention, sliding", True): (10, 0.6, 0),
    }
