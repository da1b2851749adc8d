"""Bytes, launches and waits of one layer of gpt-oss-20b on a GPU, counted on tensors without data.

    python benchmarks/gpu_count.py                # on any machine, in seconds; 8,192 tokens, LoRA of rank 16
    PYTHONPATH=.kernels python benchmarks/gpu_count.py    # our kernels too (`make test-kernels` installs triton there)

An operation of torch is a launch, and its bytes are those of the tensors that it reads and writes: what caches spare
and what kernels allocate for themselves is not counted. A kernel of ours is a launch likewise, and reads each tensor
once. What depends on a batch alone (which blocks of attention are looked at) is not counted: it is no layer's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / ".typecheck"))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterpoint.train.adapters import activation, expert_math
from counterpoint.train.adapters.expert_math import Adapter, ExpertWeights, Routing
from counterpoint.train.adapters.kernel_experts import kernel_backward, kernel_forward
from counterpoint.train.kernels.registry import put_in_use
from counterpoint.train.model import attention
from counterpoint.train.model.attention_plan import AttentionPlan, causal_plan
from counterpoint.train.model.kernel_attention import KernelAttention
from counterpoint.train.model.mxfp4 import frozen_mxfp4

META, BF = torch.device("meta"), torch.bfloat16
EXPERTS, CHOICES, HIDDEN, INNER, RANK = 32, 4, 2880, 2880, 16
HEADS, GROUPS, SIZE, WINDOW = 64, 8, 64, 128


class Count(TorchDispatchMode):
    """launches, bytes and waits of what runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = self.waits = 0

    def add(self, *tensors: torch.Tensor | None) -> None:
        """One launch that touches each of these once."""
        self.launches += 1
        self.bytes += sum(part.numel() * part.element_size() for part in tensors if part is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, returns = func._schema.name, func._schema.returns
        alias = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        if alias or name.startswith(("aten::empty", "aten::new_empty", "aten::detach", "prim::")):
            return out
        read = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        made = [part for part in tree_leaves(out) if isinstance(part, torch.Tensor)]
        self.add(*read, *made)
        return out


def stand_ins(count: Count) -> dict[str, Any]:
    """Kernels that count themselves. What surrounds them (tiles, blocks) is computed as it would be."""
    from counterpoint.train.kernels.attention import FORWARD, TO_KEYS, _blocks
    from counterpoint.train.kernels.grouped import tiles_of

    def forward(h: torch.Tensor, *constants: float) -> torch.Tensor:
        out = h.new_empty(len(h), h.shape[1] // 2)
        count.add(h, out)
        return out

    def backward(h: torch.Tensor, g: torch.Tensor, weight: torch.Tensor, d_h: torch.Tensor, *rest: Any) -> torch.Tensor:
        count.add(h, g, weight, d_h, g)
        return g

    def grouped(
        x: torch.Tensor, weight: Any, tiles: Any, *, row_R: Any = None, transposed: bool = False, **more: Any
    ) -> Any:
        out = x.new_empty(tiles.rows, weight.shape[1 if transposed else 2])
        held = (weight.blocks, weight.scales) if hasattr(weight, "blocks") else (weight,)
        rows = x.new_empty(tiles.rows, x.shape[1])
        count.add(rows, *held, row_R, *(part for part in more.values() if isinstance(part, torch.Tensor)), out)
        return out

    def attend(q: Any, k: Any, v: Any, sink: Any, position: Any, end: Any, window: int, memo: Any, scale: float) -> Any:
        _blocks(memo, position, end, window or 1 << 30, FORWARD)
        out, lse = (
            q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]),
            q.new_empty(q.shape[:3], dtype=torch.float32),
        )
        count.add(q, k, v, out, lse)
        return out, lse

    def attend_back(d: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, position: Any, end: Any, window: int, memo: Any,
                    scale: float) -> Any:  # fmt: skip
        _blocks(memo, position, end, window or 1 << 30, TO_KEYS)
        delta, d_q = torch.empty_like(lse), torch.empty_like(out)
        d_k, d_v = (out.new_empty(*out.shape[:2], k.shape[1], k.shape[3]) for _ in range(2))
        count.add(q, k, v, out, d, lse, delta, d_q)
        count.add(q, k, v, d, lse, delta, d_k, d_v)
        return d_q, d_k, d_v, delta

    return {"swiglu": (forward, backward), "grouped": (grouped, tiles_of), "attention": (attend, attend_back)}


@contextlib.contextmanager
def on_meta(waits: Callable[[], None]) -> Iterator[None]:
    """The CUDA forms run on the meta device; where they would wait for the experts' ends, the rows are even."""
    modules: tuple[Any, ...] = (activation, attention, expert_math)
    ends = expert_math._ends
    for module in modules:
        module.on_cuda = lambda tensor: tensor.is_meta

    def even(base: ExpertWeights, routing: Routing) -> list[int] | None:
        if not hasattr(base.w1, "some"):
            return None
        waits()
        return [routing.row_R.numel() * e // EXPERTS for e in range(EXPERTS + 1)]

    expert_math._ends = even
    yield
    expert_math._ends = ends


def empty(*shape: int, dtype: torch.dtype = BF) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def experts(count: Count, tokens: int, packed: bool, kernels: bool) -> None:
    shapes = (EXPERTS, HIDDEN, 2 * INNER), (EXPERTS, INNER, HIDDEN)
    stacks: list[Any] = [empty(*shape) for shape in shapes]
    if packed:
        stacks = [
            frozen_mxfp4(empty(e, o, i // 32, 16, dtype=torch.uint8), empty(e, o, i // 32, dtype=torch.uint8), BF).data
            for e, i, o in shapes
        ]
    base = ExpertWeights(stacks[0], empty(EXPERTS, 2 * INNER), stacks[1], empty(EXPERTS, HIDDEN), 1.702, 7.0)
    up = Adapter(empty(EXPERTS, HIDDEN, RANK), empty(EXPERTS, RANK, 2 * INNER), 2.0)
    down = Adapter(empty(EXPERTS, INNER, RANK), empty(EXPERTS, RANK, HIDDEN), 2.0)
    x, dy, weight = empty(tokens, HIDDEN), empty(tokens, HIDDEN), empty(tokens, CHOICES)
    forward, backward = (
        (kernel_forward, kernel_backward) if kernels else (expert_math.grouped_forward, expert_math.grouped_backward)
    )
    with count:
        routing = Routing.of(empty(tokens, CHOICES, dtype=torch.int64), EXPERTS)
        _, saved = forward(x, weight, routing, base, up, down)
        backward(dy, x, weight, routing, base, up, down, saved, True)


def attend(count: Count, tokens: int, window: int | None, kernels: bool) -> None:
    plan: Any = causal_plan(1, tokens, window, torch.device("cpu"))
    sequences = plan.sequences
    plan = AttentionPlan(empty(1, tokens, dtype=torch.int64), empty(1, tokens, dtype=torch.int64), window)
    parts = SimpleNamespace(
        **{n: getattr(sequences[0], n) for n in ("query", "key", "causal", "longest_query", "longest_key")}
    )
    parts.query_starts = parts.key_starts = empty(2, dtype=torch.int32)
    plan.__dict__["sequences"] = [parts]
    leaves = [empty(1, tokens, heads, SIZE).transpose(1, 2).requires_grad_() for heads in (HEADS, GROUPS, GROUPS)]
    sink = empty(HEADS).requires_grad_()
    function: Any = KernelAttention if kernels else attention._CudaAttention
    if kernels:  # once a batch
        from counterpoint.train.kernels.attention import FORWARD, TO_KEYS, _blocks

        for tiling in (FORWARD, TO_KEYS):
            _blocks(plan.memo, *plan.narrow, window or 1 << 30, tiling)
    with count:
        out = function.apply(*leaves, sink, plan, 0.125)
        out.backward(torch.empty_like(out))


def counted(tokens: int, kernels: bool) -> Iterator[tuple[str, Count]]:
    work: dict[str, Callable[[Count], None]] = {
        "experts, bf16": lambda count: experts(count, tokens, False, kernels),
        "experts, mxfp4": lambda count: experts(count, tokens, True, kernels),
        "attention, full": lambda count: attend(count, tokens, None, kernels),
        "attention, sliding": lambda count: attend(count, tokens, WINDOW, kernels),
    }
    for name, run in work.items():
        count = Count()

        def waits(count: Count = count) -> None:
            count.waits += 1

        with on_meta(waits):
            put_in_use(stand_ins(count) if kernels else {}, "meta")
            run(count)
            put_in_use({})
        yield name, count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    forms = [False, *([True] if importlib.util.find_spec("triton") else [])]
    print("| part of a layer, forward and backward | form | launches | GB | waits |\n|---|---|---|---|---|")
    for kernels in forms:
        for name, count in counted(tokens, kernels):
            form = "kernels" if kernels else "torch"
            print(f"| {name} | {form} | {count.launches} | {count.bytes / 1e9:.1f} | {count.waits} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
