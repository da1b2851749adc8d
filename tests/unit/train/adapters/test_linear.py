"""LoRA on attention's projections against PEFT's own layers."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import ATTENTION_TARGETS, attach_lora
from counterpoint.train.adapters.linear import AutocastLinear
from counterpoint.train.model.attention import use_attention

IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def adapted(model, ours):
    """LoRA on attention, its B not zero: by this project, or by PEFT alone."""
    if ours:
        model = attach_lora(model, LoraSettings(rank=3, alpha=6, experts=False))
    else:
        model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=list(ATTENTION_TARGETS)))
    use_attention(model.get_base_model(), lean=True)
    random = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return model


def outcome(model, autocast, kept_bytes):
    """(loss, gradients, bytes kept for the backward pass in addition to the parameters)."""

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(IDS, labels=IDS).loss

    loss, kept = kept_bytes(forward, model.parameters())
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, kept


def test_under_autocast_the_numbers_are_peft_s_and_the_copies_are_gone(build_gptoss, kept_bytes):
    ours, theirs = (adapted(build_gptoss(torch.float32).to(torch.bfloat16), own) for own in (True, False))
    mine, other = (outcome(model, True, kept_bytes) for model in (ours, theirs))
    assert mine[0] == other[0]
    assert mine[1].keys() == other[1].keys()
    assert all(torch.equal(grad, other[1][name]) for name, grad in mine[1].items())
    layers, hidden = ours.config.num_hidden_layers, ours.config.hidden_size
    # Two of three copies of a layer's normalised input, and that of attention's output, which attention keeps.
    query = ours.config.num_attention_heads * ours.config.head_dim
    assert other[2] - mine[2] == layers * IDS.numel() * (2 * hidden + query) * 2


def test_without_autocast_it_casts_as_peft_does(build_gptoss, kept_bytes):
    ours, theirs = (adapted(build_gptoss(torch.float32).to(torch.bfloat16), own) for own in (True, False))
    mine, other = (outcome(model, False, kept_bytes) for model in (ours, theirs))
    assert mine[0] == other[0]
    assert all(torch.equal(grad, other[1][name]) for name, grad in mine[1].items())


def test_every_projection_is_of_this_class(build_gptoss):
    model = adapted(build_gptoss(), ours=True)
    found = [type(module) for module in model.modules() if isinstance(module, PeftLinear)]
    assert found == [AutocastLinear] * 4 * model.config.num_hidden_layers
