"""The router's load-balancing loss, for runs that ask for it (`train.router_aux_loss_coef`).

transformers computes it inside the model's forward, where the masks of tree rows break it; so the router's logits are
recorded as they are computed, and the same function is called on them. Padding counts as tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter, load_balancing_loss_func


class RouterLoss:
    """Records router logits inside `recording`, and turns them into the loss of that forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, GptOssTopKRouter)]
        self._recording = False
        self._logits: list[torch.Tensor] = []
        for router in self.routers:
            router.register_forward_hook(self._keep)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Activation checkpointing runs routers again in the backward pass: only the first time counts."""
        self._logits, self._recording = [], True
        try:
            yield
        finally:
            self._recording = False

    def read(self) -> torch.Tensor:
        """The loss, unscaled (1 or more; 1 is perfect balance over the experts, times the experts a token takes)."""
        router = self.routers[0]
        loss = load_balancing_loss_func(cast(Any, tuple(self._logits)), router.num_experts, router.top_k)
        assert isinstance(loss, torch.Tensor)
        self._logits = []
        return loss

    def _keep(self, module: nn.Module, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        if self._recording:
            self._logits.append(outputs[0])
