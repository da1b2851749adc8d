"""Parts of gpu.py: each operator of the lean path, forward and backward, against float64.

Legend: B rows, S tokens in a row, H query heads, G key heads, D head size, E experts, N tokens, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gpu_bench import Bench, relative_error, short, tree_row, unpadded

from counterpoint.train.adapters.expert_math import (
    Adapter,
    ExpertWeights,
    Routing,
    grouped_backward,
    grouped_forward,
    grouped_serves,
    loop_backward,
    loop_forward,
)
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.model.attention import _CpuAttention, _CudaAttention
from counterpoint.train.model.attention_plan import AttentionPlan
from counterpoint.train.model.mxfp4 import Mxfp4Tensor, frozen_mxfp4
from counterpoint.train.model.norm import _RmsNorm

BF = torch.bfloat16
ALPHA, LIMIT = 1.702, 7.0
"""gpt-oss's activation: the factor inside the sigmoid, and where gate and up are clamped."""
LORA_SCALE = 2.0


def attention(bench: Bench) -> None:
    window = 16 if bench.tiny else 128
    for kind in ("plain", "packed", "tree", "padded"):
        for rows in (1, 2):
            for width in (None, window):
                for trained in (True, False) if (rows, kind) == (1, "plain") else (True,):
                    name = f"attention {kind} x{rows} window={width} sinks={'on' if trained else 'frozen'}"
                    with bench.attempt(name):
                        _attention_case(bench, name, kind, rows, width, trained)
    if bench.cuda_forms:
        with bench.attempt("attention window edge"):
            _window_edge(bench, window)


def _heads(bench: Bench) -> tuple[int, int, int]:
    return (8, 2, 16) if bench.tiny else (64, 8, 64)


def _attention_case(bench: Bench, name: str, kind: str, rows: int, window: int | None, train_sinks: bool) -> None:
    torch.manual_seed(0)
    (heads, groups, size), tokens, device = _heads(bench), 96 if bench.tiny else 1000, bench.device
    position, end = tree_row(tokens, kind)
    plan = AttentionPlan(position.expand(rows, -1).to(device), end.expand(rows, -1).to(device), window)
    parts = [(torch.randn(rows, h, tokens, size, device=device) * 1.5).to(BF) for h in (heads, groups, groups)]
    parts.append(torch.randn(heads, device=device).to(BF) * 2)
    d_out = torch.randn(rows, tokens, heads, size, device=device).to(BF)
    leaves = [part.clone().requires_grad_() for part in parts]
    leaves[3].requires_grad_(train_sinks)
    bench.poison()
    function: Any = _CudaAttention if bench.cuda_forms else _CpuAttention
    out = function.apply(*leaves, plan, size**-0.5)
    out.backward(d_out)
    wide = [part.double().requires_grad_() for part in parts]
    reference = _dense_attention(wide, plan, size**-0.5)
    reference.backward(d_out.double())
    assert (leaves[3].grad is not None) == train_sinks
    real = slice(unpadded(tokens) if kind == "padded" else tokens)
    errors = {"out": relative_error(out[:, real], reference[:, real])}
    for which, leaf, exact in zip(("dq", "dk", "dv", "dsink"), leaves, wide, strict=True):
        if leaf.grad is not None and exact.grad is not None:
            errors[which] = relative_error(leaf.grad, exact.grad)
    bench.check(name, errors, dict.fromkeys(errors, 1e-2) | {"dsink": 2e-2})


def _dense_attention(parts: Sequence[torch.Tensor], plan: AttentionPlan, scale: float) -> torch.Tensor:
    """(B, S, H, D) from queries, keys, values and sinks, with the sink as one more column."""
    q_BHSD, k_BGSD, v_BGSD, sink_H = parts
    groups = q_BHSD.shape[1] // k_BGSD.shape[1]
    k, v = k_BGSD.repeat_interleave(groups, 1), v_BGSD.repeat_interleave(groups, 1)
    scores = (q_BHSD @ k.mT * scale).masked_fill(plan.dense(torch.float32) != 0, -torch.inf)
    column = sink_H.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    share = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    return (share @ v).transpose(1, 2)


def _window_edge(bench: Bench, window: int) -> None:
    """A window that is off by one: only the value that is one too far to the left of the last query is not zero."""
    (heads, groups, size), tokens, device = _heads(bench), 300, bench.device
    query = torch.zeros(1, heads, tokens, size, device=device, dtype=BF)
    value = torch.zeros(1, groups, tokens, size, device=device, dtype=BF)
    value[:, :, tokens - 1 - window] = 1.0
    sinks = torch.full((heads,), -30.0, device=device, dtype=BF)
    position, end = (part[None].to(device) for part in tree_row(tokens, "plain"))
    function: Any = _CudaAttention
    out = function.apply(query, torch.zeros_like(value), value, sinks, AttentionPlan(position, end, window), 0.1)
    errors = {"last": float(out[0, -1].abs().max()), "one_before": float(out[0, -2].abs().max() == 0)}
    bench.check("attention window edge", errors, 1e-30)


def norm(bench: Bench) -> None:
    for rows in (1, 3000):
        for trained in (False, True):
            name = f"norm rows={rows} weight={'trained' if trained else 'frozen'}"
            with bench.attempt(name):
                _norm_case(bench, name, rows, trained)


def _norm_case(bench: Bench, name: str, rows: int, trained: bool) -> None:
    torch.manual_seed(0)
    width = bench.shape()["hidden_size"]
    inputs = (torch.randn(1, rows, width, device=bench.device) * 3).to(BF)
    weight = (1 + torch.randn(width, device=bench.device) / 3).to(BF)
    d_out = torch.randn_like(inputs)
    x, w = inputs.clone().requires_grad_(), weight.clone().requires_grad_(trained)
    bench.poison()
    function: Any = _RmsNorm
    out = function.apply(x, w, 1e-5)
    out.backward(d_out)
    wide_x, wide_w = inputs.double().requires_grad_(), weight.double().requires_grad_()
    reference = wide_w * wide_x * torch.rsqrt(wide_x.pow(2).mean(-1, keepdim=True) + 1e-5)
    reference.backward(d_out.double())
    errors = {"out": relative_error(out, reference), "dx": _gradient_error(x, wide_x)}
    if trained:
        errors["dw"] = _gradient_error(w, wide_w)
    bench.check(name, errors, 6e-3)


def random_packed(bench: Bench, experts: int, inputs: int, outputs: int, low: int = 119) -> Any:
    """An MXFP4 tensor (experts, inputs, outputs) of random bits, with block scales from 2 ** (low - 127)."""
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, device=bench.device)
    scales = torch.randint(low, low + 3, (experts, outputs, inputs // 32), dtype=torch.uint8, device=bench.device)
    return frozen_mxfp4(blocks, scales, BF).data


@dataclass(frozen=True)
class ExpertInputs:
    """Tokens x and the gradient of their output (N, H), expert indices and weights (N, K), base and adapters."""

    x: torch.Tensor
    d_out: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor
    base: ExpertWeights
    up: Adapter | None
    down: Adapter | None


def experts(bench: Bench) -> None:
    for spread in ("even", "some empty", "one takes all"):
        for rank in (16, 4, None):
            for packed in (False, True):
                if not packed or (rank is not None and spread != "one takes all"):
                    name = f"experts {spread} rank={rank} {'mxfp4' if packed else 'bf16'}"
                    with bench.attempt(name):
                        _experts_case(bench, name, _expert_inputs(bench, spread, rank, packed))


def _expert_inputs(bench: Bench, spread: str, rank: int | None, packed: bool) -> ExpertInputs:
    torch.manual_seed(1)
    shape, tokens = bench.shape(), 61 if bench.tiny else 509
    count, top = shape["num_local_experts"], shape["num_experts_per_tok"]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    score = torch.rand(tokens, count, device=bench.device)
    if spread == "some empty":
        score[:, ::3] = -1
    if spread == "one takes all":
        score[:, top:] = -1

    def matrices(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(count, rows, columns, device=bench.device) * rows**-0.5).to(BF)

    def biases(width: int) -> torch.Tensor:
        return (torch.randn(count, width, device=bench.device) / 3).to(BF)

    def adapter(inputs: int, outputs: int) -> Adapter | None:
        if rank is None:
            return None
        return Adapter(matrices(rank, inputs).mT, matrices(outputs, rank).mT.contiguous(), LORA_SCALE)

    weight = torch.softmax(torch.randn(tokens, top, device=bench.device), -1).to(BF)
    if packed:
        w1, w2 = random_packed(bench, count, hidden, 2 * inner), random_packed(bench, count, inner, hidden)
    else:
        w1, w2 = matrices(hidden, 2 * inner), matrices(inner, hidden)
    b1, b2 = biases(2 * inner), biases(hidden)
    b1[:, 0::14], b1[:, 3::14], b1[:, 5::14] = 12.0, 12.0, -12.0  # clamped, and far from the edge
    x, d_out = (torch.randn(tokens, hidden, device=bench.device).to(BF) for _ in range(2))
    base = ExpertWeights(w1, b1, w2, b2, ALPHA, LIMIT)
    up, down = adapter(hidden, 2 * inner), adapter(inner, hidden)
    return ExpertInputs(x, d_out, score.topk(top, -1).indices, weight, base, up, down)


def _experts_case(bench: Bench, name: str, inputs: ExpertInputs) -> None:
    base, up, down = inputs.base, inputs.up, inputs.down
    forward, backward = (grouped_forward, grouped_backward) if bench.cuda_forms else (loop_forward, loop_backward)
    if bench.cuda_forms:
        assert grouped_serves(inputs.x, base.w1, base.w2), "grouped_serves refuses this shape"
    reference, exact = _exact_experts(inputs)
    routing = Routing.of(inputs.index, base.b1.shape[0])
    unused = torch.bincount(inputs.index.flatten(), minlength=base.b1.shape[0]) == 0
    for recompute in (False, True):
        bench.poison()
        out, saved = forward(inputs.x, inputs.weight, routing, base, up, down)
        if recompute:
            saved = saved._replace(hidden_RJ=None)
        found = backward(inputs.d_out, inputs.x, inputs.weight, routing, base, up, down, saved, True)
        gradients = {"dx": found.hidden_NH, "dweight": found.weight_NK}
        gradients |= {factor: getattr(found, factor) for factor in exact if factor not in gradients}
        errors = {"out": relative_error(out, reference)}
        for which, gradient in gradients.items():
            errors[which] = relative_error(gradient, exact[which])
            if which not in ("dx", "dweight") and bool((gradient[unused] != 0).any()):
                errors[f"{which}_of_unused"] = float("nan")
        bench.check(f"{name} recompute={recompute}", errors, 2e-2)


def _exact_experts(inputs: ExpertInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output (N, H) in float64 and its gradients, by plain autograd, expert by expert."""
    base, up, down = inputs.base, inputs.up, inputs.down
    w1, w2 = (w.dense() if isinstance(w, Mxfp4Tensor) else w for w in (base.w1, base.w2))
    leaf = {"dx": inputs.x, "dweight": inputs.weight}
    if up is not None and down is not None:
        leaf |= {"a_up": up.a, "b_up": up.b, "a_down": down.a, "b_down": down.b}
    leaf = {name: tensor.double().requires_grad_() for name, tensor in leaf.items()}
    out = torch.zeros_like(leaf["dx"])
    for e in range(len(base.b1)):
        row, choice = torch.where(inputs.index == e)
        if not len(row):
            continue
        x = leaf["dx"][row]
        h = x @ w1[e].double() + base.b1[e].double()
        if up is not None:
            h = h + LORA_SCALE * (x @ leaf["a_up"][e]) @ leaf["b_up"][e]
        h = h + (h.to(BF).double() - h).detach()  # rounded as the kernels keep it: else the clamp's edge differs
        gate, linear = h[:, 0::2].clamp(max=LIMIT), h[:, 1::2].clamp(-LIMIT, LIMIT)
        a = (linear + 1) * gate * torch.sigmoid(ALPHA * gate)
        o = a @ w2[e].double() + base.b2[e].double()
        if down is not None:
            o = o + LORA_SCALE * (a @ leaf["a_down"][e]) @ leaf["b_down"][e]
        out = out.index_add(0, row, o * leaf["dweight"][row, choice, None])
    out.backward(inputs.d_out.double())
    return out.detach(), {name: _gradient(tensor) for name, tensor in leaf.items()}


def loss(bench: Bench) -> None:
    for confident in (False, True):
        for head in (False, True):
            kind = "confident" if confident else "random"
            name = f"loss {kind} tokens, head {'trained' if head else 'frozen'}"
            with bench.attempt(name):
                _loss_case(bench, name, confident, head)


def _loss_case(bench: Bench, name: str, confident: bool, head: bool) -> None:
    torch.manual_seed(2)
    vocabulary, hidden, device = bench.shape()["vocab_size"], bench.shape()["hidden_size"], bench.device
    count = 100 if bench.tiny else 1500  # more than one chunk of 1 GiB
    weight = (torch.randn(vocabulary, hidden, device=device) * hidden**-0.5).to(BF)
    target = torch.randint(0, vocabulary, (count,), device=device)
    x = torch.randn(count, hidden, device=device).to(BF)
    if confident:  # the target's probability is mostly 0.9 to 0.9999, as late in a fine-tuning
        logit = torch.linspace(*((8, 15) if bench.tiny else (12, 22)), count, device=device)[:, None]
        row = weight[target].float()
        x = (x.float() + logit * row / row.pow(2).sum(-1, keepdim=True)).to(BF)
    weights = torch.rand(count, device=device)
    a, w = x.clone().requires_grad_(), weight.clone().requires_grad_(head)
    bench.poison()
    with torch.autocast(device, BF):
        out, _ = weighted_nll(a, w, target, weights, 10.0)
    out.backward()
    wide_a, wide_w = x.double().requires_grad_(), weight.double().requires_grad_(head)
    total = 0.0
    for term in _exact_losses(wide_a, wide_w, target, weights.double() / 10.0):
        term.backward()
        total += float(term.detach())
    found, exact = _gradient(a).double(), _gradient(wide_a)
    row_error = (found - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-30)
    errors = {"loss": abs(float(out.detach()) - total) / abs(total), "dx": relative_error(found, exact)}
    errors["dx_row"] = float(row_error.median())
    if head:
        errors["dW"] = _gradient_error(w, wide_w)
    bench.check(name, errors, dict.fromkeys(errors, 1e-2) | {"loss": 2e-3}, dx_row_worst=short(float(row_error.max())))


def _exact_losses(
    x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, factor: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The loss in terms of 250 positions each: float64 logits of all would not fit."""
    for part in torch.arange(len(x), device=x.device).split(250):
        yield (F.cross_entropy(x[part] @ weight.T, target[part], reduction="none") * factor[part]).sum()


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _gradient_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return relative_error(_gradient(found), _gradient(exact))
