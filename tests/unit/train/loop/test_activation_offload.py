"""Inputs of layers in host memory: the same numbers, and fewer bytes on the device."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.train.loop import activation_offload
from counterpoint.train.loop.activation_offload import ActivationOffload, Offload, PlainCopies, offload_checkpoints

LAYERS, TOKENS = 6, 32


class LateCopies:
    """A stream that copies as late as it may: when it is waited for. Until then a target holds garbage."""

    pinned = False

    def __init__(self) -> None:
        self.open: list[tuple[weakref.ref[torch.Tensor], torch.Tensor, list[bool]]] = []

    def start(self, source: torch.Tensor, target: torch.Tensor) -> list[bool]:
        target.fill_(float("nan"))
        done = [False]
        self.open.append((weakref.ref(source), target, done))
        return done

    def wait(self, copy: list[bool]) -> None:
        while not copy[0]:  # in order, as a stream does
            source, target, done = self.open.pop(0)
            held = source()
            assert held is not None, "its memory was given back before it was read"
            target.copy_(held)
            done[0] = True


def model_of(layers: int = LAYERS) -> Any:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        router_aux_loss_coef=0.0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model: Any = GptOssForCausalLM(config).train()
    model._set_gradient_checkpointing(True, lambda *args: checkpoint(*args, use_reentrant=False))
    return model


def gradients(model: Any, passes: int = 2) -> list[torch.Tensor]:
    for n in range(passes):
        ids = torch.arange(TOKENS)[None] % 61 + n
        model(input_ids=ids % 61, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("copies", [PlainCopies, LateCopies])
def test_gradients_are_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch, copies: Any) -> None:
    """Also where a copy happens no sooner than it is waited for, out of and into memory that is in use."""
    plain, offloaded, by_torch = model_of(), model_of(), model_of()
    monkeypatch.setattr(activation_offload, "PlainCopies", copies)
    offload_checkpoints(offloaded)
    for layer in by_torch.model.layers:

        def on_cpu(*args: Any, inner: Any = layer._gradient_checkpointing_func) -> Any:
            with save_on_cpu():
                return inner(*args)

        layer._gradient_checkpointing_func = on_cpu
    expected = gradients(plain)
    assert all(map(torch.equal, expected, gradients(offloaded)))
    assert all(map(torch.equal, expected, gradients(by_torch)))


def test_at_most_two_inputs_are_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six layers; between the passes it is one, and those in host memory are gone with the backward pass."""
    held: list[weakref.ref[Any]] = []
    counts: list[int] = []
    made = activation_offload._Input

    def watched(*args: Any) -> Any:
        saved = made(*args)
        held.append(weakref.ref(saved))
        return saved

    def note(*args: Any) -> None:
        counts.append(sum(saved.tensor is not None for ref in held if (saved := ref()) is not None))

    monkeypatch.setattr(activation_offload, "_Input", watched)
    model = model_of()
    offload_checkpoints(model)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(note)
        layer.register_full_backward_hook(note)
    out = model(input_ids=torch.arange(TOKENS)[None], use_cache=False).logits
    assert len([ref for ref in held if ref() is not None]) == LAYERS
    note()
    assert counts.pop() == 1
    out.sum().backward()
    assert len(counts) >= 2 * LAYERS
    assert max(counts) <= 2
    del out
    gc.collect()
    assert not [ref for ref in held if ref() is not None]


def test_a_pass_that_is_kept_may_go_back_twice() -> None:
    model = model_of(2)
    offload_checkpoints(model)
    loss = model(input_ids=torch.arange(TOKENS)[None], use_cache=False).logits.float().logsumexp(-1).sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    assert all(torch.equal(2 * grad, p.grad) for grad, p in zip(once, model.parameters(), strict=True))


def test_what_is_packed_comes_back_once_it_has_left() -> None:
    offload = ActivationOffload(LateCopies())
    tensors = [torch.full((4,), float(n)) for n in range(3)]
    saved = [offload.pack(tensor.clone()) for tensor in tensors]
    assert all(torch.equal(offload.unpack(each), tensors[2 - n]) for n, each in enumerate(reversed(saved)))


def test_a_run_trains_the_same_with_it(tiny_run: ModuleType, tmp_path: Path) -> None:
    curves, weights = [], []
    for on in (False, True):
        model = tiny_run.tiny_model(0)
        trainer = tiny_run.make(tmp_path / str(on), steps=4, model=model, loop={"offload": Offload() if on else None})
        trainer.args.activation_checkpointing = trainer.args.gradient_checkpointing = True
        trainer.base.enable_input_require_grads()
        trainer.train()
        curves.append(trainer.curve.logs)
        weights.append(tiny_run.weights_of(trainer))
    assert curves[0] == curves[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
