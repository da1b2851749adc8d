"""Which experts the router picks for each token: recorded where tokens are sampled, replayed where they are learned.

Legend: N tokens of a forward pass, L layers, K experts a token, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

UNKNOWN = -1
"""In place of an expert: the router picks."""


def routers_of(model: nn.Module) -> list[GptOssTopKRouter]:
    """From the first layer to the last."""
    return [module for module in model.modules() if isinstance(module, GptOssTopKRouter)]


class RouteRecorder:
    """The picks of the last forward pass, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = routers_of(model)
        self._picks: list[torch.Tensor] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        hooks = [each.register_forward_hook(lambda _, __, out: self._picks.append(out[2])) for each in self.routers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def taken(self) -> npt.NDArray[Any]:
        """(N, L, K) uint8, or int32 where there are more experts; nothing is kept."""
        picks, self._picks = self._picks, []
        narrow = torch.uint8 if self.routers[0].num_experts <= 256 else torch.int32
        return torch.stack(picks, 1).to(narrow).cpu().numpy()


class RouteReplay:
    """Sends tokens to given experts, with weights of the model's own router, which goes on learning.

    The picks are looked up by layer, however often it runs: activation checkpointing runs it again in the backward
    pass, which has to lie inside `replaying` as well.
    """

    def __init__(self, model: nn.Module) -> None:
        routers = routers_of(model)
        self.shape = len(routers), routers[0].top_k
        self.experts = routers[0].num_experts
        self._given_NLK: torch.Tensor | None = None
        self._counts: list[torch.Tensor] | None = None
        for layer, router in enumerate(routers):
            router.register_forward_hook(partial(self._replayed, layer))

    @contextmanager
    def replaying(self, given_NLK: torch.Tensor | None) -> Iterator[None]:
        """given_NLK: experts, `UNKNOWN` where the router picks; None lets it pick everywhere."""
        before, self._given_NLK = self._given_NLK, given_NLK
        try:
            yield
        finally:
            self._given_NLK = before

    @contextmanager
    def counting(self, counts: list[torch.Tensor]) -> Iterator[None]:
        """`counts` gets, of each layer that runs inside, (picks that the router would not have made, picks that are
        given)."""
        self._counts = counts
        try:
            yield
        finally:
            self._counts = None

    def _replayed(self, layer: int, router: nn.Module, args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        if self._given_NLK is None:
            return None
        logits_NE, _, own_NK = output
        given_NK = self._given_NLK[:, layer].to(own_NK.dtype)
        assert len(given_NK) == len(own_NK), "routes of other tokens"
        is_given_NK = given_NK != UNKNOWN
        picks_NK = torch.where(is_given_NK, given_NK, own_NK)
        if self._counts is not None:
            other_NK = (picks_NK[:, :, None] != own_NK[:, None, :]).all(-1) & is_given_NK
            self._counts.append(torch.stack([other_NK.sum(), is_given_NK.sum()]))
        value_NK = logits_NE.gather(1, picks_NK)
        return logits_NE, torch.softmax(value_NK, 1, dtype=value_NK.dtype), picks_NK
