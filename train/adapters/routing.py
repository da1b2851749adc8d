"""What a run does to the experts: which of them got gradient, how tokens spread over them, how far that drifted.

Legend: L layers, N tokens, K experts a token, E experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

from counterpoint.train.adapters.attach import DOWN, GATE_UP, lora_parts, whole
from counterpoint.train.model.sharded import reshard

REPORT_FILE = "adapter.jsonl"
_PROBE_KEYS = ("input_ids", "position_ids", "attention_mask")


@dataclass(frozen=True)
class Routing:
    """Which experts the tokens of one batch chose, by layer: picks (L, N, K) int64, sorted by expert, on the CPU."""

    picks_LNK: torch.Tensor
    experts: int

    @property
    def load(self) -> torch.Tensor:
        """Share of a layer's picks that went to each expert; each layer sums to 1."""
        counts = torch.stack([torch.bincount(picks.flatten(), minlength=self.experts) for picks in self.picks_LNK])
        return counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)

    @property
    def entropy(self) -> torch.Tensor:
        """Entropy of the load over its greatest value: 1 is an even spread, 0 one expert for all."""
        load_LE = self.load
        return -torch.special.xlogy(load_LE, load_LE).sum(-1) / math.log(max(self.experts, 2))

    def drift(self, base: Routing) -> float:
        """Total variation distance of the loads, mean over layers: 0 is the same, 1 disjoint experts."""
        return float((self.load - base.load).abs().sum(-1).mean() / 2)

    def changed(self, base: Routing) -> float:
        """Share of picks that the base did not make for the same token and layer."""
        same = (self.picks_LNK[..., :, None] == base.picks_LNK[..., None, :]).any(-1)
        return float(1 - same.double().mean())


class ExpertReport(TrainerCallback):
    """Writes routing and experts' gradients after the first step that moves weights, every `every`, and at the end.

    run_folder gets `adapter.jsonl`; scalars(step, numbers) the same in a few numbers. Routing is measured on the first
    training batch, kept for this: with the adapter, and without it (or, without an adapter, as it was at the start).
    """

    def __init__(
        self,
        run_folder: Path | None = None,
        scalars: Callable[[int, Mapping[str, float]], None] | None = None,
        every: int = 100,
    ) -> None:
        self.path = None if run_folder is None else run_folder / REPORT_FILE
        self.scalars = scalars
        self.every = every
        self._reported: int | None = None
        self._moved = False
        self._probe: dict[str, Any] | None = None
        self._base: Routing | None = None
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._hook = inner_model(kwargs["model"]).register_forward_pre_hook(self._keep_probe, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The warm-up's first step has rate 0, and moves nothing.
        self._moved |= any(group["lr"] > 0 for group in kwargs["optimizer"].param_groups)
        if self._base is None:
            self._base = self._route(kwargs["model"], adapter=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._moved and (self._reported is None or state.global_step % self.every == 0):
            self._report(kwargs["model"], state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._moved and self._reported != state.global_step:
            self._report(kwargs["model"], state)

    def _keep_probe(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training and self._probe is None:
            self._probe = {key: kwargs[key] for key in _PROBE_KEYS if kwargs.get(key) is not None}
            self._hook.remove()

    def _route(self, model: Any, adapter: bool = True) -> Routing | None:
        if self._probe is None:
            return None
        off = not adapter and hasattr(model, "disable_adapter")
        with model.disable_adapter() if off else nullcontext():
            return routing_of(model, self._probe)

    def _report(self, model: Any, state: Any) -> None:
        self._reported = state.global_step
        now = self._route(model)
        trained = experts_with_gradient(model)
        record: dict[str, Any] = {"step": state.global_step}
        numbers: dict[str, float] = {}
        if trained:
            record["experts_with_gradient"] = {kind: counts for kind, (counts, _) in trained.items()}
            shares = [sum(counts.values()) / max(1, total * len(counts)) for counts, total in trained.values()]
            numbers["adapter/experts_with_gradient"] = min(shares)
        if now is not None and self._base is not None:
            record["load"] = [[round(share, 6) for share in layer] for layer in now.load.tolist()]
            record["entropy"] = [round(value, 6) for value in now.entropy.tolist()]
            numbers["router/entropy"] = float(now.entropy.mean())
            numbers["router/largest_load"] = float(now.load.max())
            numbers["router/drift"] = now.drift(self._base)
            numbers["router/changed"] = now.changed(self._base)
        if not getattr(state, "is_world_process_zero", True):
            return
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**record, **numbers}) + "\n")
        if self.scalars is not None and numbers:
            self.scalars(state.global_step, numbers)


def routing_of(model: Any, batch: dict[str, Any]) -> Routing | None:
    """Routing of one batch (model inputs), without padding; the model's mode and gradients are left as they are."""
    routers = [module for module in model.modules() if isinstance(module, GptOssTopKRouter)]
    if not routers:
        return None
    seen: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda _, __, out: seen.append(out[2].detach())) for router in routers]
    try:
        narrow = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
        device = batch["input_ids"].device.type
        with _evaluating(model), torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=narrow):
            model(**batch, logits_to_keep=1, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        reshard(model)  # it is called before the optimizer's step
    kept_N = _not_padding(model, batch)
    picks = torch.stack([picks_NK.sort(-1).values[kept_N].cpu() for picks_NK in seen])
    return Routing(picks, routers[0].num_experts)


def experts_with_gradient(model: Any) -> dict[str, tuple[dict[int, int], int]]:
    """Of each expert projection with LoRA: {layer: experts whose B is no longer zero}, and the experts of a layer.

    B starts at zero, so an expert's B is zero until it got gradient.
    """
    found: dict[str, tuple[dict[int, int], int]] = {}
    for kind, layer, module in lora_parts(model):
        if kind not in (GATE_UP, DOWN):
            continue
        experts = cast(int, cast(Any, module).num_experts)
        weight = whole(cast(torch.Tensor, module.lora_B[module.active_adapters[0]].weight))
        moved_E = weight.unflatten(-1, (-1, experts)).ne(0).flatten(0, 1).any(0)
        found.setdefault(kind, ({}, experts))[0][layer] = int(moved_E.sum())
    return found


def inner_model(model: Any) -> torch.nn.Module:
    """The decoder (`GptOssModel`) inside a causal model, with or without PEFT's wrap."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.model


def _not_padding(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    ids = batch["input_ids"].flatten()
    pad = getattr(model.config, "pad_token_id", None)
    return torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
