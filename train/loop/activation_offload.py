"""Activation offload: what checkpointing keeps of each layer, its input, waits for the backward pass in host memory.

torch's checkpointing saves that input by autograd, so `saved_tensors_hooks` around it see that tensor and no other.
On CUDA the copies run on a stream of their own: out while the next layer computes, and back one layer ahead. (torch's
`save_on_cpu`, which transformers offers from 5.24, copies on the stream that computes, which then waits.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from counterpoint.train.model.precision import on_cuda


class Copies(Protocol):
    """pinned: whether host memory is pinned, without which a copy would wait."""

    pinned: bool

    def start(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Begin a copy after all that has been asked for by now; gives what `wait` takes."""
        ...

    def wait(self, copy: Any) -> None:
        """What is computed from now on begins after that copy."""
        ...


class PlainCopies:
    """At once, in the order of the program."""

    pinned = False

    def start(self, source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source)

    def wait(self, copy: None) -> None: ...


class CudaCopies:
    """On a stream of their own; neither call waits on the host. Written to torch's rules, not yet run on a GPU."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def start(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, copy: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(copy)


class _Input:
    """A layer's input: in `host`, and in `tensor` while it is on the device. copy: the newest one of it."""

    def __init__(self, tensor: torch.Tensor, host: torch.Tensor, copy: Any, before: _Input | None) -> None:
        self.tensor: torch.Tensor | None = tensor
        self.host, self.copy, self.device = host, copy, tensor.device
        self.before = None if before is None else weakref.ref(before)


class ActivationOffload:
    """The hooks. On the device are at most two inputs at a time: of the layer at hand, and one on its way.

    A tensor is let go only after the stream that computes has waited for its copy: its memory, which that stream may
    use again at once, is then no longer read or written.
    """

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self._newest: weakref.ref[_Input] | None = None  # of a pass that has ended, it is gone

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Input:
        if tensor.numel() == 0:  # checkpointing's own
            return tensor
        before = None if self._newest is None else self._newest()
        if before is not None and before.tensor is not None:
            self.copies.wait(before.copy)
            before.tensor = None
        host = torch.empty_like(tensor, device="cpu", pin_memory=self.copies.pinned)
        source = tensor.detach()
        saved = _Input(source, host, self.copies.start(source, host), before)
        self._newest = weakref.ref(saved)
        return saved

    def unpack(self, saved: torch.Tensor | _Input) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        self._fetch(saved)
        self.copies.wait(saved.copy)
        tensor, saved.tensor = saved.tensor, None
        if saved.before is not None and (before := saved.before()) is not None:
            self._fetch(before)
        assert tensor is not None
        return tensor

    def _fetch(self, saved: _Input) -> None:
        if saved.tensor is None:
            saved.tensor = torch.empty_like(saved.host, device=saved.device)
            saved.copy = self.copies.start(saved.host, saved.tensor)


def offload_checkpoints(model: torch.nn.Module) -> ActivationOffload:
    """Offload the inputs of all layers of `model` that are computed again; checkpointing is enabled before."""
    weight = next(model.parameters())
    offload = ActivationOffload(CudaCopies(weight.device) if on_cuda(weight) else PlainCopies())

    def around(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(*args: Any, **kwargs: Any) -> Any:
            # transformers makes the embeddings' output of a frozen model a leaf, which autograd holds in any case.
            if args[1].is_leaf:
                return checkpoint(*args, **kwargs)
            with saved_tensors_hooks(offload.pack, offload.unpack):
                return checkpoint(*args, **kwargs)

        return checkpointed

    layers: list[Any] = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    assert layers
    assert all(each.gradient_checkpointing for each in layers)
    for layer in layers:
        layer._gradient_checkpointing_func = around(layer._gradient_checkpointing_func)
    return offload


class Offload(TrainerCallback):
    """Begins with training, when transformers has enabled checkpointing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        offload_checkpoints(kwargs["model"])
