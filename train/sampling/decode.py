"""Continuous batching: a sample that ends makes room for the next prompt, and no token is computed for ended ones.

This makes sampling fast where lengths differ: `generate` pads every prompt to the longest and continues until the
last row of the batch has ended. Prompts that are the same (several samples of one) are read once.

Legend: B rows of a forward pass, S tokens, R slots, V rows of the vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from counterpoint.train.model.attention import LEAN_ATTENTION
from counterpoint.train.model.expert_routes import RouteRecorder
from counterpoint.train.model.masks import tree_masks
from counterpoint.train.sampling.expert_routes import ExpertRoutes
from counterpoint.train.sampling.kv_cache import SlotCache

Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""From logits (R, V) and the numbers of the samples they are of, the next row of each."""
REFILL = 8
"""New prompts are read when one slot in so many is free, or all that are left fit: one by one would cost more."""
SHRINK = 0.75
"""With no prompt waiting, slots are dropped when at most this share of them is in use."""


@dataclass
class _Sample:
    number: int
    rows: list[int] = field(default_factory=list)
    routes: list[ExpertRoutes] = field(default_factory=list)


class Decoder:
    """Draws samples from a gpt-oss model (or a PEFT model around one), at most `slots` at a time.

    recorder: of the experts that tokens go to; `routes` has them of each sample that has ended, by its number: those of
    all tokens but the last, which is not read.
    """

    def __init__(
        self, model: Any, pad_row: int, stop_rows: Sequence[int], slots: int, recorder: RouteRecorder | None = None
    ) -> None:
        self.recorder, self.routes = recorder, dict[int, ExpertRoutes]()
        self.model, self.pad_row, self.stop_rows, self.n_slots = model, pad_row, frozenset(stop_rows), slots
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = inner.config
        parameter = next(inner.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        # Lean attention makes causal masks on its own and needs none written out.
        self.fused = self.config._attn_implementation == LEAN_ATTENTION

    def run(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, choose: Choose) -> list[list[int]]:
        """The rows drawn for each prompt (rows of the model), up to and with the stop row."""
        out: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        cache = SlotCache(self.config, min(self.n_slots, len(prompts)), self.dtype, self.device)
        held: list[_Sample | None] = [None] * len(cache.position_R)
        next_R = torch.full((len(held),), self.pad_row, dtype=torch.long, device=self.device)
        while True:
            free = [slot for slot, sample in enumerate(held) if sample is None]
            if waiting and len(free) >= min(len(waiting), max(1, len(held) // REFILL)):
                taken = [waiting.popleft() for _ in free[: len(waiting)]]
                read = self._fill(cache, free[: len(taken)], [prompts[number] for number in taken], next_R)
                for slot, number, routes in zip(free, taken, read, strict=False):
                    held[slot] = _Sample(number, routes=routes)
            live = [slot for slot, sample in enumerate(held) if sample is not None]
            if not live:
                return out
            if not waiting and len(live) <= SHRINK * len(held):
                kept = torch.tensor(live, device=self.device)
                cache.keep(kept)
                next_R, held = next_R[kept], [held[slot] for slot in live]
            self._step(cache, held, next_R, choose, out, max_new_tokens)

    def _fill(
        self, cache: SlotCache, slots: Sequence[int], prompts: Sequence[Sequence[int]], next_R: torch.Tensor
    ) -> list[list[ExpertRoutes]]:
        """Read all but the last token of each prompt into its slot; the last is the first step's. Their routes, where
        they are recorded."""
        distinct = list({tuple(prompt): None for prompt in prompts})
        numbers = {prompt: n for n, prompt in enumerate(distinct)}
        of_prompt = torch.tensor([numbers[tuple(prompt)] for prompt in prompts], device=self.device)
        lengths = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        slot_index = torch.tensor(slots, device=self.device)
        next_R[slot_index] = torch.tensor([prompt[-1] for prompt in prompts], device=self.device)
        width = max(map(len, prompts)) - 1
        cache.reserve(width + 1)
        cache.begin_filling(slot_index, of_prompt, lengths)
        if width == 0:
            return [[] for _ in prompts]
        rows_BS = np.full((len(distinct), width), self.pad_row, dtype=np.int64)
        for row_S, prompt in zip(rows_BS, distinct, strict=True):
            row_S[: len(prompt) - 1] = prompt[:-1]
        position_BS = torch.arange(width, device=self.device).expand(len(distinct), -1)
        self._forward(torch.from_numpy(rows_BS).to(self.device), position_BS, self._causal(position_BS), cache)
        if self.recorder is None:
            return [[] for _ in prompts]
        taken = self.recorder.taken()
        found = taken.reshape(len(distinct), width, *taken.shape[1:])
        return [[found[numbers[tuple(prompt)], : len(prompt) - 1]] for prompt in prompts]

    def _causal(self, position_BS: torch.Tensor) -> dict[str, Any]:
        """Prompts begin at the first column, so the padding of shorter ones comes after all that they see."""
        if self.fused:
            return {"full_attention": None, "sliding_attention": None}
        end_BS = torch.full_like(position_BS, position_BS.shape[1])
        return tree_masks(position_BS, end_BS, self.config.sliding_window, self.dtype)

    def _step(
        self,
        cache: SlotCache,
        held: list[_Sample | None],
        next_R: torch.Tensor,
        choose: Choose,
        out: list[list[int]],
        max_new_tokens: int,
    ) -> None:
        live = [slot for slot, sample in enumerate(held) if sample is not None]
        seen = int(cache.position_R.max()) + 1
        cache.reserve(seen)
        cache.begin_decoding(seen)
        logits_RV = self._forward(next_R[:, None], cache.position_R[:, None], cache.masks(self.dtype), cache)[:, -1]
        whole = len(live) == len(held)
        index = None if whole else torch.tensor(live, device=self.device)
        samples = [sample for sample in held if sample is not None]
        drawn = choose(logits_RV if index is None else logits_RV[index], [sample.number for sample in samples])
        if index is None:
            cache.position_R += 1
            next_R.copy_(drawn)
        else:
            cache.position_R[index] += 1
            next_R[index] = drawn
        routes = None if self.recorder is None else self.recorder.taken()
        for slot, sample, row in zip(live, samples, drawn.tolist(), strict=True):
            sample.rows.append(row)
            if routes is not None:
                sample.routes.append(routes[slot : slot + 1])
            if row in self.stop_rows or len(sample.rows) == max_new_tokens:
                out[sample.number] = sample.rows
                if routes is not None:
                    self.routes[sample.number] = np.concatenate(sample.routes)
                held[slot] = None
                # An ended slot stays where columns are in any case, and at its start costs no further ones.
                cache.position_R[slot] = 0

    def _forward(
        self, rows_BS: torch.Tensor, position_BS: torch.Tensor, masks: dict[str, Any], cache: SlotCache
    ) -> torch.Tensor:
        return self.model(
            input_ids=rows_BS,
            position_ids=position_BS,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
