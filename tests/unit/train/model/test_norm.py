"""The lean norm against transformers' own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm

from counterpoint.train.model import norm
from counterpoint.train.model.norm import LeanRMSNorm, use_norms

HIDDEN = 48


def norms(dtype, weight_dtype=None):
    """transformers' norm and the lean one, of the same weights."""
    torch.manual_seed(0)
    made = [cls(HIDDEN, eps=1e-5) for cls in (GptOssRMSNorm, LeanRMSNorm)]
    weight = 1 + torch.randn(HIDDEN) / 4
    for one in made:
        one.weight.data.copy_(weight)
        one.to(weight_dtype or dtype)
    return made


def results(module, dtype, train_weight=True):
    x = (3 * torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))).to(dtype).requires_grad_()
    module.weight.requires_grad_(train_weight)
    out = module(x)
    weight = torch.cos(torch.arange(out.numel())).view(out.shape).to(out)
    inputs = [x, module.weight] if train_weight else [x]
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_wide_numbers_are_equal_bit_for_bit(dtype):
    theirs, ours = (results(module, dtype) for module in norms(dtype))
    assert all(torch.equal(mine, true) for mine, true in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_narrow_numbers_are_no_further_from_float64_than_the_reference(dtype, weight_dtype):
    pair = norms(dtype, weight_dtype)
    theirs, ours = (results(module, dtype) for module in pair)
    x = (3 * torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))).to(dtype).double().requires_grad_()
    weight = pair[0].weight.detach().double().requires_grad_()
    out = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    upstream = torch.cos(torch.arange(out.numel())).view(out.shape).to(dtype).double()
    exact = [out, *torch.autograd.grad((out * upstream).sum(), [x, weight])]
    assert torch.equal(ours[0], theirs[0])
    for mine, other, true in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == other.dtype
        errors = [float((part.detach().double() - true.detach()).norm() / true.norm()) for part in (mine, other)]
        assert errors[0] <= max(1.05 * errors[1], 1e-6)


def test_the_weight_may_be_frozen_and_the_input_too():
    theirs, ours = (results(module, torch.bfloat16, train_weight=False) for module in norms(torch.bfloat16))
    assert len(ours) == 2
    assert torch.allclose(ours[1].float(), theirs[1].float(), rtol=2e-2, atol=1e-2)
    module = norms(torch.bfloat16)[1]
    module(torch.randn(3, HIDDEN, dtype=torch.bfloat16)).sum().backward()
    assert module.weight.grad is not None


def test_only_the_input_itself_is_kept(kept_bytes):
    kept = {}
    for module in norms(torch.bfloat16):
        module.weight.requires_grad_(False)
        x = torch.randn(6, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
        kept[type(module)] = kept_bytes(partial(module, x), (x, module.weight))[1]
    assert kept[LeanRMSNorm] == 6 * 4
    assert kept[GptOssRMSNorm] > 6 * 4 * HIDDEN


def test_the_fused_kernel_is_called_as_it_is_declared():
    """Its backward pass is CUDA's alone: the meta device holds its declaration. The forward pass is a composite too."""
    x = torch.empty(2, 5, HIDDEN, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(HIDDEN, dtype=torch.bfloat16, device="meta")
    out, scale = norm._fused_forward(x, weight, 1e-5)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert scale.shape == (2, 5, 1)
    d_x, d_weight = norm._fused_backward(torch.empty_like(x), x, weight, scale, (True, True))
    assert d_x is not None
    assert d_weight is not None
    assert (d_x.shape, d_weight.shape) == (x.shape, weight.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fused_forward_pass_computes_the_same(dtype):
    x, weight = torch.randn(6, HIDDEN, dtype=dtype), torch.randn(HIDDEN, dtype=dtype)
    for fused, plain in zip(norm._fused_forward(x, weight, 1e-5), norm._plain_forward(x, weight, 1e-5), strict=True):
        assert torch.equal(fused, plain)


@pytest.mark.parametrize("trained", [True, False])
def test_the_cuda_form_gives_the_gradients_of_the_norm(monkeypatch, trained):
    """The backward kernel is CUDA's alone; its definition stands in, called with what it would be called with."""

    def kernel(grad, x, shape, rstd, weight, mask):
        assert grad.is_contiguous()
        assert (list(shape), rstd.shape, rstd.dtype) == ([HIDDEN], (*x.shape[:-1], 1), torch.float32)
        normed, wide = x.float() * rstd, grad.float()
        inner = wide * weight.float()
        d_x = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * rstd
        d_weight = (wide * normed).flatten(0, -2).sum(0).to(weight.dtype) if mask[1] else None
        return d_x.to(x.dtype) if mask[0] else None, d_weight

    monkeypatch.setattr(norm, "on_cuda", lambda tensor: True)
    monkeypatch.setattr(torch.ops.aten, "_fused_rms_norm_backward", kernel)
    theirs, ours = norms(torch.bfloat16)
    ours = results(ours, torch.bfloat16, trained)
    exact = results(theirs.double(), torch.float64, trained)
    assert len(ours) == len(exact) == 2 + trained
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - true).norm() < 6e-3 * true.norm()


def test_a_model_changes_its_norms_and_back(build_gptoss):
    model = build_gptoss()
    names = list(model.state_dict())
    count = sum(isinstance(module, GptOssRMSNorm) for module in model.modules())
    assert count == 2 * model.config.num_hidden_layers + 1
    for lean in (True, False, True):
        use_norms(model, lean)
        assert sum(type(module) is LeanRMSNorm for module in model.modules()) == (count if lean else 0)
        assert list(model.state_dict()) == names
