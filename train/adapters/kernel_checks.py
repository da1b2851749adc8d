"""Each kernel against its plain form on small inputs: what `model.kernels: auto` trusts it by. It imports triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from counterpoint.train.kernels.attention import tree_attention, tree_attention_backward
from counterpoint.train.kernels.grouped import SMALL, TILING, grouped, tiles_of
from counterpoint.train.kernels.mxfp4 import unpack
from counterpoint.train.kernels.swiglu import swiglu, swiglu_backward
from counterpoint.train.model.attention_plan import AttentionPlan
from counterpoint.train.model.mxfp4 import Mxfp4Tensor, unpacked

ALPHA, LIMIT = 1.702, 7.0
KERNELS: dict[str, Any] = {
    "swiglu": (swiglu, swiglu_backward), "unpack": unpack, "grouped": (grouped, tiles_of),
    "attention": (tree_attention, tree_attention_backward),
}  # fmt: skip


def _swiglu(device: torch.device, dtype: torch.dtype) -> float:
    draw = Draw(device, dtype)
    h, g, weight = 6 * draw(7, 1200), draw(7, 600), draw(7).abs()
    gate, up = h.double()[:, 0::2].clamp(max=LIMIT), h.double()[:, 1::2].clamp(-LIMIT, LIMIT)
    sigmoid, d_a = torch.sigmoid(ALPHA * gate), g.double() * weight.double()[:, None]
    a = (up + 1) * gate * sigmoid
    d_gate = d_a * (up + 1) * sigmoid * (1 + ALPHA * gate * (1 - sigmoid)) * (h[:, 0::2] <= LIMIT)
    d_up = d_a * gate * sigmoid * (h[:, 1::2].abs() <= LIMIT)
    d_weight, exact = torch.zeros_like(weight), (g.double() * a).sum(-1)
    errors = [_error(swiglu(h, ALPHA, LIMIT), a)]
    found = swiglu_backward(h, g, weight, h, d_weight, ALPHA, LIMIT)
    d_h = torch.stack([d_gate, d_up], -1).flatten(1)
    return max(*errors, _error(found, a), _error(h, d_h), _error(d_weight, exact))


def _unpack(device: torch.device, dtype: torch.dtype) -> float:
    blocks, scales = Draw(device, dtype).packed(3, 64, 96)
    return float((unpack(blocks, scales, dtype) != unpacked(blocks, scales, dtype, plain=True)).any())


def _grouped(device: torch.device, dtype: torch.dtype) -> float:
    """Plain and packed weights, both ways round, with everything added; the second expert has no rows."""
    draw, errors = Draw(device, dtype), list[float]()
    end = torch.tensor([5, 5, 26], dtype=torch.int32, device=device)
    expert, row = torch.tensor([0] * 5 + [2] * 21, device=device), torch.arange(25, -1, -1, device=device)
    for packed in (False, True):
        for transposed in (False, True):
            blocks, scales = draw.packed(3, 64, 96)
            dense = unpacked(blocks, scales, dtype, plain=True).mT.contiguous()
            weight = Mxfp4Tensor(blocks, scales, dtype) if packed else dense
            wide = dense.double().mT if transposed else dense.double()
            x, bias = draw(26, wide.shape[1]), draw(3, wide.shape[2])
            low, factor = draw(26, 8), draw(3, 8, wide.shape[2])
            exact = torch.einsum("rk,rko->ro", x[row].double(), wide[expert]) + bias.double()[expert]
            exact += 0.5 * torch.einsum("rk,rko->ro", low.double(), factor.double()[expert])
            more: dict[str, Any] = {"bias_EO": bias, "low_Rr": low, "factor_ErO": factor, "scale": 0.5}
            for tiling in (SMALL, TILING):
                tiles = tiles_of(end, 26, tiling)
                errors.append(_error(grouped(x, weight, tiles, row_R=row, transposed=transposed, **more), exact))
    return max(errors)


def _attention(device: torch.device, dtype: torch.dtype) -> float:
    """A trunk, a branch with two leaves, the trunk again and another tree; with a window and without."""
    draw, errors = Draw(device, dtype), list[float]()
    end = torch.tensor([[170] * 60 + [140] * 40 + [120] * 20 + [140] * 20 + [170] * 30 + [200] * 30] * 2)
    position = torch.tensor([[*range(120), *range(100, 120), *range(60, 90), *range(30)]] * 2)
    for window in (None, 37):
        plan = AttentionPlan(position.to(device), end.to(device), window)
        q, k, v = draw(2, 4, 200, 64), draw(2, 2, 200, 64), draw(2, 2, 200, 64)
        sink, d_out = draw(4), draw(2, 200, 4, 64)
        out, lse = tree_attention(q, k, v, sink, *plan.narrow, window, plan.memo, 0.125)
        found = tree_attention_backward(d_out, q, k, v, out, lse, *plan.narrow, window, plan.memo, 0.125)
        wide = [part.double().requires_grad_() for part in (q, k, v)]
        keys, values = (part.repeat_interleave(2, 1) for part in wide[1:])
        logits = (wide[0] @ keys.mT * 0.125).masked_fill(plan.dense(torch.float32) != 0, -torch.inf)
        column = sink.double().view(1, -1, 1, 1).expand(2, -1, 200, 1)
        exact = (torch.softmax(torch.cat([logits, column], -1), -1)[..., :-1] @ values).transpose(1, 2)
        exact.backward(d_out.double())
        errors.append(_error(out, exact.detach()))
        for mine, leaf in zip(found[:3], wide, strict=True):
            assert leaf.grad is not None
            errors.append(_error(mine.transpose(1, 2), leaf.grad))
    return max(errors)


CHECKS: dict[str, Callable[[torch.device, torch.dtype], float]] = {
    "swiglu": _swiglu, "unpack": _unpack, "grouped": _grouped, "attention": _attention,
}  # fmt: skip


class Draw:
    """Random tensors that do not move torch's random state."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.random = device, dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(self.device, self.dtype)

    def packed(self, experts: int, outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 2), dtype=torch.uint8, generator=self.random)
        scales = torch.randint(123, 127, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=self.random)
        return blocks.to(self.device), scales.to(self.device)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the reference's; infinite where anything found is not finite."""
    error = float((found.double() - exact).norm() / exact.norm())
    return error if error == error else float("inf")
