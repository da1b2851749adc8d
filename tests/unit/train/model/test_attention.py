"""Fused attention with sinks against transformers' eager one: any forest, any window, gradients of everything."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from benchmark_modules import benchmark_module
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from counterpoint.train.model import attention_plan
from counterpoint.train.model.attention import (
    LEAN_ATTENTION,
    _CpuAttention,
    _CudaAttention,
    lean_attention_forward,
    lean_mask,
    use_attention,
)
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.attention_plan import AttentionPlan
from counterpoint.train.model.masks import tree_allowed, tree_masks

WINDOW = 4
KERNELS = benchmark_module("gpu_emulation")


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A random forest as runs: each run continues from some open token (or none) for some tokens."""
    path: list[int] = []
    position: list[int] = []
    end: list[int] = []
    for length in draw(st.lists(st.integers(1, 90), min_size=1, max_size=7)):
        keep = draw(st.sampled_from([0, len(path), len(path) // 2, max(len(path) - 1, 0)]))
        for closed in path[keep:]:
            end[closed] = len(end)
        path = path[:keep]
        for _ in range(length):
            position.append(len(path))
            path.append(len(end))
            end.append(-1)
    for still_open in path:
        end[still_open] = len(end)
    return position, end


def padded(rows):
    """Rows of one width; padding sees itself only."""
    width = max(len(end) for _, end in rows)
    position = torch.tensor([p + [0] * (width - len(p)) for p, _ in rows])
    end = torch.tensor([e + list(range(len(e) + 1, width + 1)) for _, e in rows])
    return position, end


def inputs(batch, tokens, heads=4, groups=2, size=8, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.randn(batch, heads, tokens, size, dtype=dtype)
    k, v = torch.randn(2, batch, groups, tokens, size, dtype=dtype)
    return [part.requires_grad_() for part in (q, k, v, torch.randn(heads, dtype=dtype))]


def eager(q, k, v, sinks, mask, scale=0.3):
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], sinks=sinks, training=True)
    return eager_attention_forward(module, q, k, v, mask, scale)[0]


def results(out, parts):
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), parts)]


def assert_close(ours, theirs, tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() <= tolerance * (1 + other.abs().max())


@pytest.mark.parametrize("window", [None, WINDOW, 100])
@pytest.mark.parametrize("dense_pairs", [0, 1 << 25])
@settings(max_examples=25, deadline=None)
@given(st.lists(forests(), min_size=1, max_size=2))
def test_any_forest_equals_eager(window, dense_pairs, rows):
    position, end = padded(rows)
    parts = inputs(*end.shape)
    mask = torch.zeros(end.shape[0], 1, *[end.shape[1]] * 2, dtype=torch.float64)
    mask.masked_fill_(~tree_allowed(position, end, window)[:, None], -1e300)
    with patch.object(attention_plan, "DENSE_PAIRS", dense_pairs):
        ours = results(_CpuAttention.apply(*parts, AttentionPlan(position, end, window), 0.3), parts)
    assert_close(ours, results(eager(*parts, mask), parts), 1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(forests(), min_size=1, max_size=2), st.sampled_from([None, WINDOW, 100]))
def test_blocks_and_sequences_hold_exactly_the_visible_pairs(rows, window):
    """Each visible pair once, no other: on blocks with their masks, and on sequences causal from the bottom right."""
    position, end = padded(rows)
    batch, tokens = end.shape
    allowed = torch.block_diag(*tree_allowed(position, end, window).int())
    plan = AttentionPlan(position, end, window)
    found = torch.zeros_like(allowed)
    with patch.object(attention_plan, "DENSE_PAIRS", 0):
        for block in plan.blocks:
            everything = torch.arange(batch * tokens).view(batch, tokens)
            query = everything if block.query is None else block.query
            key = everything if block.key is None else block.key
            seen = torch.ones(query.shape + key.shape[1:], dtype=torch.bool)
            if block.mask is not None:
                seen &= block.mask[:, 0] == 0
            if block.causal:
                seen &= torch.arange(query.shape[1])[:, None] >= torch.arange(key.shape[1])
            if block.valid is not None:
                seen &= block.valid[..., None]
            m, q, k = seen.nonzero(as_tuple=True)
            found.index_put_((query[m, q], key[m, k]), torch.ones(len(m), dtype=torch.int32), accumulate=True)
    assert torch.equal(found, allowed)
    found, every = torch.zeros_like(allowed), torch.arange(batch * tokens)
    for part in plan.sequences:
        queries, keys = (every if index is None else index for index in (part.query, part.key))
        starts = zip(part.query_starts.tolist(), part.key_starts.tolist(), strict=True)
        for (q0, k0), (q1, k1) in itertools.pairwise(starts):
            assert q1 - q0 <= part.longest_query
            assert k1 - k0 <= part.longest_key
            behind = (k1 - k0) - (q1 - q0)
            distance = torch.arange(q1 - q0)[:, None] + behind - torch.arange(k1 - k0)
            seen = (distance >= 0) & (distance < (window or tokens * batch)) | torch.tensor(not part.causal)
            i, j = seen.nonzero(as_tuple=True)
            found.index_put_((queries[q0 + i], keys[k0 + j]), torch.ones(len(i), dtype=torch.int32), accumulate=True)
    assert torch.equal(found, allowed)


def test_many_branches_of_one_trunk_read_it_once():
    """400 branches of 20 tokens on a trunk of 2,000: a copy of the trunk for each would be 808,000 keys."""
    trunk, branches, branch = 2000, 400, 20
    tokens = trunk + branches * branch
    end = [tokens] * trunk + [trunk + (n + 1) * branch for n in range(branches) for _ in range(branch)]
    position = [*range(trunk), *(trunk + n for _ in range(branches) for n in range(branch))]
    plan = AttentionPlan(torch.tensor([position]), torch.tensor([end]), None)
    own, together = plan.sequences
    assert own.key is None
    assert len(own.query_starts) == branches + 2
    assert together.key is not None
    assert (len(together.key), together.query_starts.tolist()) == (trunk, [0, branches * branch])
    assert not together.causal
    arrays = plan._arrays
    assert attention_plan.flash_sequences(arrays[0][0], arrays[1][0]) == (branches + 1, tokens)
    windowed = AttentionPlan(torch.tensor([position]), torch.tensor([end]), 128).sequences
    assert len(windowed) == 1
    assert windowed[0].key is not None
    assert len(windowed[0].key) == tokens + branches * 127


@pytest.mark.parametrize("window", [None, WINDOW, 100])
@settings(max_examples=25, deadline=None)
@given(st.lists(forests(), min_size=1, max_size=2))
def test_the_cuda_form_equals_eager_around_a_kernel_as_flash_is_described(window, rows):
    position, end = padded(rows)
    parts = inputs(*end.shape)
    mask = torch.zeros(end.shape[0], 1, *[end.shape[1]] * 2, dtype=torch.float64)
    mask.masked_fill_(~tree_allowed(position, end, window)[:, None], -1e300)
    kernels = {f"_flash_attention_{way}": getattr(KERNELS, f"flash_{way}") for way in ("forward", "backward")}
    with patch.multiple(torch.ops.aten, **kernels):
        out = _CudaAttention.apply(*parts, AttentionPlan(position, end, window), 0.3)
        ours = results(out, parts)
    assert out.is_contiguous()
    # The sink and keys of several sequences are summed in float32, as on a GPU where the inputs are narrower.
    assert_close(ours, results(eager(*parts, mask), parts), 1e-6)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 500])
def test_plain_causal_rows_and_the_width_of_the_window(window, tokens):
    parts = inputs(2, tokens)
    position = torch.arange(tokens).expand(2, tokens)
    end = torch.full((2, tokens), tokens)
    mask = tree_masks(position, end, window or tokens, torch.float64)["sliding_attention"]
    module = SimpleNamespace(num_key_value_groups=2, sinks=parts[3], training=True)
    out, _ = lean_attention_forward(module, *parts[:3], None, 0.3, sliding_window=window, s_aux=parts[3])
    ours, theirs = results(out, parts), results(eager(*parts, mask), parts)
    assert_close(ours, theirs, 1e-12)
    if window is not None and tokens > window:
        off_by_one = tree_masks(position, end, window - 1, torch.float64)["sliding_attention"]
        with pytest.raises(AssertionError):
            assert_close(ours, results(eager(*parts, off_by_one), parts), 1e-6)


def test_bfloat16_is_nearer_to_float64_than_eager_is():
    position, end = torch.arange(300)[None], torch.full((1, 300), 300)
    parts = inputs(1, 300)
    mask = tree_masks(position, end, 300, torch.float64)["full_attention"]
    exact = results(eager(*parts, mask), parts)
    narrow = [part.detach().to(torch.bfloat16).requires_grad_() for part in parts]
    theirs = results(eager(*narrow, mask.to(torch.bfloat16)), narrow)
    ours = results(_CpuAttention.apply(*narrow, AttentionPlan(position, end, None), 0.3), narrow)
    for mine, other, true in zip(ours[:-1], theirs, exact, strict=False):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() <= (other.double() - true).norm()
    assert (ours[-1].double() - exact[-1]).norm() <= 1e-2 * exact[-1].norm()  # four numbers: too few to compare errors


TREE = ([*range(13), *range(6, 11), *range(3)], [18] * 6 + [13] * 7 + [18] * 5 + [21] * 3)


def loss_and_gradients(model, ids, **more):
    model.zero_grad()
    loss = model(ids, labels=ids, **more).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerances"), [(torch.float64, (1e-10, 1e-10)), (torch.float32, (1e-5, 1e-4))])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tree", [False, True])
def test_model_equals_the_reference(build_gptoss, dtype, tolerances, checkpointing, tree):
    model = build_gptoss(dtype)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    position, end = padded([TREE, (list(range(15)), [15] * 15)])
    ids = torch.randint(1, 64, end.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for lean in (False, True):
        use_attention(model, lean)
        more = {"position_ids": position, **attention_inputs(model, position, end)} if tree else {}
        found.append(loss_and_gradients(model, ids, **more))
    assert model.config._attn_implementation == LEAN_ATTENTION
    assert found[1][0] == pytest.approx(found[0][0], rel=tolerances[0])
    for name, grad in found[0][1].items():
        assert (found[1][1][name] - grad).norm() <= tolerances[1] * grad.norm(), name


def test_branches_equal_separate_sequences(build_gptoss):
    model = build_gptoss(torch.float64).eval()
    use_attention(model, lean=True)
    trunk, left, right = (torch.randint(1, 64, (n,)) for n in (6, 7, 5))
    position, end = padded([(TREE[0][:18], TREE[1][:18])])
    with torch.no_grad():
        row = torch.cat([trunk, left, right])[None]
        tree = model(row, position_ids=position, **attention_inputs(model, position, end)).logits[0]
        one, two = (model(torch.cat([trunk, branch])[None]).logits[0] for branch in (left, right))
    assert torch.allclose(tree[:13], one, atol=1e-12, rtol=0)
    assert torch.allclose(tree[13:], two[6:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("left_padding", [0, 5])
def test_generate_with_cache_equals_the_reference(build_gptoss, left_padding):
    model = build_gptoss(torch.float64).eval()
    ids = torch.randint(1, 64, (2, 14))
    mask = torch.ones_like(ids)
    ids[0, :left_padding], mask[0, :left_padding] = 0, 0
    texts = []
    for lean in (False, True):
        use_attention(model, lean)
        choice = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
        texts.append(model.generate(input_ids=ids, attention_mask=mask, **choice))
    assert torch.equal(texts[0], texts[1])


def test_padding_and_packing_are_never_taken_for_plain_rows(build_gptoss):
    model = build_gptoss(torch.float64).eval()
    ids = torch.randint(1, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    outs = []
    for lean in (False, True):
        use_attention(model, lean)
        with torch.no_grad():
            outs.append(model(ids, attention_mask=mask).logits)
    assert torch.allclose(outs[0], outs[1], atol=1e-12, rtol=0)
    shape = {"batch_size": 1, "q_length": 5, "kv_length": 5, "dtype": torch.float32}
    assert lean_mask(**shape) is None
    assert lean_mask(**shape, allow_is_causal_skip=False) is not None
    assert lean_mask(**{**shape, "kv_length": 8}, q_offset=3) is not None


def test_dropout_falls_back_to_eager(build_gptoss):
    model = build_gptoss(attention_dropout=0.3)
    model.train()
    use_attention(model, lean=True)
    position, end = padded([TREE])
    ids = torch.randint(1, 64, end.shape)
    runs = [
        copy.deepcopy(model)(ids, position_ids=position, **attention_inputs(model, position, end)).logits for _ in "ab"
    ]
    assert not torch.equal(runs[0], runs[1])
