"""The lean experts against transformers' own loop under PEFT's own wrappers, and the grouped form against the loop."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters import expert_math
from counterpoint.train.adapters.attach import attach_lora, load_lora
from counterpoint.train.adapters.expert_math import Adapter, ExpertWeights, Routing
from counterpoint.train.adapters.experts import LEAN_EXPERTS, use_experts
from counterpoint.train.model.mxfp4 import Mxfp4Tensor

IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-4)}


def with_lora(model, lora=None, seed=1):
    """An adapter whose B is not zero, so that every gradient is."""
    model = attach_lora(model, lora or LoraSettings(rank=3, expert_rank=2, router=True))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def lean(model, on=True, recompute=False):
    use_experts(model.get_base_model(), on, recompute)
    return model


def gradients(model, ids=IDS, parts=1):
    model.zero_grad()
    loss = 0.0
    for part in ids.chunk(parts):
        value = model(part, labels=part).loss / parts
        value.backward()
        loss += value.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(ours, theirs, dtype):
    loss_tolerance, grad_tolerance = TOLERANCE[dtype]
    assert ours[0] == pytest.approx(theirs[0], rel=loss_tolerance)
    assert ours[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert (ours[1][name] - grad).norm() <= grad_tolerance * grad.norm(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("checkpointing", [False, True, "experts"])
@pytest.mark.parametrize("parts", [1, 2])
def test_loss_and_gradients_equal_the_reference(build_gptoss, dtype, checkpointing, parts):
    model = with_lora(build_gptoss(dtype, initializer_range=0.5))
    model.train()
    if checkpointing is True:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    theirs = gradients(lean(model, on=False), parts=parts)
    ours = gradients(lean(model, recompute=checkpointing == "experts"), parts=parts)
    assert len(theirs[1]) == 28
    assert_equal(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_again_is_what_would_have_been_kept(build_gptoss, dtype):
    model = with_lora(build_gptoss(torch.float32)).to(dtype).train()
    kept, again = (gradients(lean(model, recompute=recompute)) for recompute in (False, True))
    assert kept[0] == again[0]
    assert len(kept[1]) == len(again[1]) == 28
    assert all(torch.equal(grad, again[1][name]) for name, grad in kept[1].items())


@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(rank=2, attention=False),
        LoraSettings(rank=2, layers=(1,)),
        LoraSettings(rank=2, attention=False, layers=(0,)),
    ],
)
def test_parts_of_the_model(build_gptoss, lora):
    model = with_lora(build_gptoss(torch.float64), lora)
    assert_equal(gradients(lean(model)), gradients(lean(model, on=False)), torch.float64)


@pytest.mark.parametrize("target", ["gate_up_proj", "down_proj"])
def test_one_projection_only(build_gptoss, target):
    from counterpoint.train.adapters.attach import _lora_config

    config: LoraConfig = _lora_config(LoraSettings(rank=2, attention=False), None, ["experts.gate_up", "experts.down"])
    config.target_parameters = [f"mlp.experts.{target}"]
    model = PeftModel(build_gptoss(torch.float64), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    assert_equal(gradients(lean(model)), gradients(lean(model, on=False)), torch.float64)


def test_clamps_are_reached_and_pass_no_gradient(build_gptoss):
    model = with_lora(build_gptoss(torch.float64, initializer_range=2.0))
    seen = []
    hook = (
        model.get_base_model()
        .model.layers[0]
        .mlp.experts.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    )
    theirs = gradients(lean(model, on=False))
    hook.remove()
    experts = model.get_base_model().model.layers[0].mlp.experts.get_base_layer()
    assert (seen[0] @ experts.gate_up_proj[0]).abs().max() > experts.limit
    assert_equal(gradients(lean(model)), theirs, torch.float64)


def test_bfloat16_is_no_further_from_float64_than_the_reference(build_gptoss):
    model = with_lora(build_gptoss(torch.float64, num_local_experts=2), LoraSettings(rank=3, attention=False))
    exact = gradients(lean(model, on=False))
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    widened = gradients(lean(narrow, on=False)), gradients(lean(narrow))
    errors = [
        sum(float((grads[name].double() - exact[1][name]).norm() / exact[1][name].norm()) for name in exact[1])
        for _, grads in widened
    ]
    assert errors[1] <= 1.1 * errors[0]
    assert widened[1][0] == pytest.approx(exact[0], rel=2e-2)


def test_disabled_merged_unmerged_and_two_adapters(build_gptoss):
    model = with_lora(build_gptoss(torch.float64))
    with torch.no_grad():
        expected = {}
        for on in (False, True):
            lean(model, on)
            results = [model(IDS).logits]
            with model.disable_adapter():
                results.append(model(IDS).logits)
            model.merge_adapter()
            results.append(model(IDS).logits)
            model.unmerge_adapter()
            results.append(model(IDS).logits)
            expected[on] = results
        for theirs, ours in zip(expected[False], expected[True], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)
        assert not torch.allclose(expected[True][0], expected[True][1], atol=1e-3)
        assert torch.allclose(expected[True][0], expected[True][2], atol=1e-10, rtol=0)
        model.add_adapter("second", model.peft_config["default"])
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.base_model.set_adapter(["default", "second"])
        both = [lean(model, on)(IDS).logits for on in (False, True)]
        assert torch.allclose(both[1], both[0], atol=1e-10, rtol=0)
        assert not torch.allclose(both[1], expected[True][0], atol=1e-3)


def test_generate_with_cache_equals_the_reference(build_gptoss):
    model = with_lora(build_gptoss(torch.float64)).eval()
    texts = [
        lean(model, on).generate(input_ids=IDS, max_new_tokens=12, do_sample=False, eos_token_id=None)
        for on in (False, True)
    ]
    assert texts[0].shape == (2, 36)
    assert torch.equal(texts[0], texts[1])


def test_saved_lean_adapter_has_equal_logits_in_plain_peft(build_gptoss, tmp_path):
    model = lean(with_lora(build_gptoss(torch.float64)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    gradients(model)
    optimizer.step()
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        live = model(IDS).logits
        plain = PeftModel.from_pretrained(build_gptoss(torch.float64), str(tmp_path), autocast_adapter_dtype=False)
        for name, parameter in plain.named_parameters():
            assert parameter.dtype == torch.float64, name
        assert torch.allclose(plain(IDS).logits, live, atol=1e-10, rtol=0)
        again = lean(load_lora(build_gptoss(torch.float64), tmp_path))
        assert torch.allclose(again(IDS).logits, live, atol=1e-10, rtol=0)


def test_plain_peft_wrappers_are_right_on_the_lean_function_too(build_gptoss):
    config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    model = PeftModel(build_gptoss(), config)
    assert type(model.base_model.model.model.layers[0].mlp.experts).__module__.startswith("peft.")
    assert_equal(gradients(lean(model)), gradients(lean(model, on=False)), torch.float32)


def test_full_fine_tuning_falls_back_to_the_reference(build_gptoss):
    model = build_gptoss()
    theirs = gradients(model)
    use_experts(model, lean=True)
    assert model.config._experts_implementation == LEAN_EXPERTS
    ours = gradients(model)
    assert any("gate_up_proj" in name for name in ours[1])
    assert_equal(ours, theirs, torch.float32)


def test_nothing_of_the_size_of_the_weights_is_kept_for_backward(build_gptoss, kept_bytes):
    wide = {"num_local_experts": 32, "hidden_size": 64, "intermediate_size": 64}
    model = with_lora(build_gptoss(**wide), LoraSettings(rank=2, attention=False))
    kept: dict[bool, int] = {}
    for on in (False, True):
        lean(model, on)
        kept[on] = kept_bytes(lambda: model(IDS, labels=IDS).loss, model.parameters())[1]
    stack = model.get_base_model().model.layers[0].mlp.experts.get_base_layer().gate_up_proj
    assert kept[False] - kept[True] > 2 * stack.numel() * 4


@pytest.mark.parametrize("want_x", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("adapters", ["both", "up", "down", "none"])
@pytest.mark.parametrize("recompute", [True, False])
def test_grouped_form_equals_the_loop(monkeypatch, dtype, tolerance, adapters, want_x, recompute):
    torch.manual_seed(0)
    monkeypatch.setattr(expert_math, "ROWS_AT_A_TIME", 33)  # of 80
    limit = 0.5 if dtype == torch.float32 else 7.0  # a value that rounds across the clamp is no error
    tokens, experts, hidden, inner, rank, choices = 40, 6, 32, 16, 3, 2

    def draw(*shape):
        return (torch.randn(*shape) * 0.3).to(dtype)

    base = ExpertWeights(
        draw(experts, hidden, 2 * inner), draw(experts, 2 * inner), draw(experts, inner, hidden),
        draw(experts, hidden), 1.702, limit,
    )  # fmt: skip
    up = (
        Adapter(draw(experts, hidden, rank), draw(experts, rank, 2 * inner), 1.5)
        if adapters in ("both", "up")
        else None
    )
    down = (
        Adapter(draw(experts, inner, rank), draw(experts, rank, hidden), 0.7) if adapters in ("both", "down") else None
    )
    x, dy, weight = draw(tokens, hidden), draw(tokens, hidden), torch.rand(tokens, choices).to(dtype)
    index = torch.randint(0, experts - 1, (tokens, choices))  # the last expert gets no tokens
    index[:, 1] = (index[:, 0] + 1) % (experts - 1)
    routing = Routing.of(index, experts)
    results = []
    for forward, backward in (
        (expert_math.loop_forward, expert_math.loop_backward),
        (expert_math.grouped_forward, expert_math.grouped_backward),
    ):
        out, saved = forward(x, weight, routing, base, up, down)
        if recompute:
            saved = saved._replace(hidden_RJ=None)
        results.append((out, *backward(dy, x, weight, routing, base, up, down, saved, want_x)))
    for loop, grouped in zip(*results, strict=True):
        assert (loop is None) == (grouped is None)
        if loop is not None:
            assert loop.shape == grouped.shape
            assert loop.dtype == grouped.dtype == dtype
            assert (loop.double() - grouped.double()).norm() <= tolerance * loop.double().norm()


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("at_a_time", [1, 4, 6, 8])
def test_grouped_form_unpacks_a_few_experts_at_a_time(monkeypatch, adapters, at_a_time):
    monkeypatch.setattr(expert_math, "UNPACKED_EXPERTS", at_a_time)  # of 6
    monkeypatch.setattr(Mxfp4Tensor, "dense", lambda self: pytest.fail("all experts unpacked"))
    some, asked = Mxfp4Tensor.some, []
    monkeypatch.setattr(Mxfp4Tensor, "some", lambda self, which: asked.append(list(which)) or some(self, which))
    torch.manual_seed(0)
    packed = [
        Mxfp4Tensor(
            torch.randint(0, 256, (6, outputs, inputs // 2), dtype=torch.uint8),
            torch.randint(120, 124, (6, outputs, inputs // 32), dtype=torch.uint8),
            torch.float32,
        )
        for inputs, outputs in ((32, 64), (32, 32))
    ]
    factors = [Adapter(torch.randn(6, 32, 3), torch.randn(6, 3, outputs), 0.5) for outputs in (64, 32)]
    up, down = factors if adapters else (None, None)
    biases = torch.randn(6, 64), torch.randn(6, 32)
    x, dy, weight = torch.randn(40, 32), torch.randn(40, 32), torch.rand(40, 2)
    index = torch.randint(0, 3, (40, 2))  # some parts get no tokens
    index[:, 1] = 5
    routing, results = Routing.of(index, 6), []
    plain = [torch.stack([part.expert(e) for e in range(6)]) for part in packed]
    for w1, w2 in (plain, packed):
        base = ExpertWeights(w1, biases[0], w2, biases[1], 1.702, 7.0)
        out, saved = expert_math.grouped_forward(x, weight, routing, base, up, down)
        saved = saved._replace(hidden_RJ=None)
        results.append((out, *expert_math.grouped_backward(dy, x, weight, routing, base, up, down, saved, True)))
    # Twice forward, three times backward, and none for tokens that it does not get.
    assert sorted(e for each in asked for e in each) == sorted(5 * [e for e, _, _ in routing.spans()])
    assert all(len(each) <= at_a_time for each in asked)
    for unpacked, few in zip(*results, strict=True):
        assert (unpacked is None) == (few is None)
        assert unpacked is None or torch.allclose(few, unpacked, rtol=1e-4, atol=1e-4)


def test_what_a_gpu_leaves_for_experts_without_rows_is_no_gradient(monkeypatch):
    """As compute capability 10 does: products of two matrices by group leave memory as it was where a group is empty."""
    grouped_mm = torch.nn.functional.grouped_mm

    def leaving(a, b, *, offs):
        out = grouped_mm(a, b, offs=offs)
        if a.ndim == b.ndim == 2:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", leaving)
    torch.manual_seed(0)
    base = ExpertWeights(
        torch.randn(5, 32, 32), torch.randn(5, 32), torch.randn(5, 16, 32), torch.randn(5, 32), 1.7, 7.0
    )
    up = Adapter(torch.randn(5, 32, 3), torch.randn(5, 3, 32), 1.5)
    down = Adapter(torch.randn(5, 16, 3), torch.randn(5, 3, 32), 0.7)
    x, dy, weight, index = torch.randn(9, 32), torch.randn(9, 32), torch.rand(9, 2), torch.tensor([[1, 3]] * 9)
    routing = Routing.of(index, 5)
    _, saved = expert_math.grouped_forward(x, weight, routing, base, up, down)
    found = expert_math.grouped_backward(dy, x, weight, routing, base, up, down, saved, True)
    for gradient in found[2:]:
        assert gradient[[0, 2, 4]].abs().max() == 0
        assert torch.isfinite(gradient).all()
        assert (gradient[[1, 3]].flatten(1).norm(dim=1) > 0).all()


def test_tokens_and_rows_are_matched(build_gptoss):
    index = torch.tensor([[2, 0], [1, 2], [0, 2]])
    routing = Routing.of(index, 4)
    assert routing.row_R.tolist() == [0, 2, 1, 0, 1, 2]
    assert routing.end_E.tolist() == [2, 3, 6, 6]
    assert routing.spans() == [(0, 0, 2), (1, 2, 3), (2, 3, 6)]
    assert routing.row_R[routing.slot_NK].tolist() == [[0, 0], [1, 1], [2, 2]]
