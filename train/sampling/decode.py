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
from counterpoint.train.sampling.kv_cache import BLOCK, BlockCache, Parked

Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""From logits (R, V) and the numbers of the samples they are of, the next row of each."""
REFILL = 8
"""New prompts are read when one slot in so many is free, or all that are left fit: one by one would cost more."""
SHRINK = 0.75
"""With no prompt waiting, slots are dropped when at most this share of them is in use."""
READ_TOKENS = 16_384
"""Tokens, padding included, of the prompts that are read together."""


@dataclass
class _Sample:
    """order: of when it came in. parked: its keys and values, while others need their place."""

    number: int
    prompt: Sequence[int]
    rows: list[int] = field(default_factory=list)
    routes: list[ExpertRoutes] = field(default_factory=list)
    order: int = 0
    parked: Parked | None = None


class Decoder:
    """Draws samples from a gpt-oss model (or a PEFT model around one), at most `slots` at a time.

    tokens: of which keys and values are kept at a time. A sample is taken in when its prompt fits; where those in
    progress need more, the latest of them waits in host memory until there is room. One alone may have more.
    recorder: of the experts that tokens go to; `routes` has them of each sample that has ended, by its number: those of
    all tokens but the last, which is not read.
    """

    def __init__(
        self,
        model: Any,
        pad_row: int,
        stop_rows: Sequence[int],
        slots: int,
        tokens: int,
        recorder: RouteRecorder | None = None,
    ) -> None:
        self.recorder, self.routes = recorder, dict[int, ExpertRoutes]()
        self.model, self.pad_row, self.stop_rows = model, pad_row, frozenset(stop_rows)
        self.n_slots, self.n_tokens = slots, tokens
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = inner.config
        parameter = next(inner.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.lean = self.config._attn_implementation == LEAN_ATTENTION
        self.order = self.parked = 0

    def run(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, choose: Choose) -> list[list[int]]:
        """The rows drawn for each prompt (rows of the model), up to and with the stop row."""
        out: list[list[int]] = [[] for _ in prompts]
        waiting = deque(_Sample(number, prompt) for number, prompt in enumerate(prompts))
        slots = min(self.n_slots, len(prompts))
        cache = BlockCache(self.config, slots, self.n_tokens, self.dtype, self.device, not self.lean)
        held: list[_Sample | None] = [None] * slots
        next_R = torch.full((slots,), self.pad_row, dtype=torch.long, device=self.device)
        while True:
            self._take_in(cache, held, waiting, next_R)
            live = [slot for slot, sample in enumerate(held) if sample is not None]
            if not live:
                return out
            self._make_room(cache, held, waiting)
            live = [slot for slot, sample in enumerate(held) if sample is not None]
            if not waiting and len(live) <= SHRINK * len(held):
                cache.keep(live)
                next_R, held = next_R[torch.tensor(live, device=self.device)], [held[slot] for slot in live]
            self._step(cache, held, next_R, choose, out, max_new_tokens)

    def _take_in(
        self, cache: BlockCache, held: list[_Sample | None], waiting: deque[_Sample], next_R: torch.Tensor
    ) -> None:
        free = [slot for slot, sample in enumerate(held) if sample is None]
        live = len(held) - len(free)
        if not waiting or len(free) < min(len(waiting), max(1, len(held) // REFILL)):
            return
        # A block for the next token of each that is in progress is left.
        room, fresh, prompts = cache.room - live, dict[int, _Sample](), set[tuple[int, ...]]()
        while waiting and free:
            sample = waiting[0]
            if sample.parked is not None:
                needed = sample.parked.blocks + 1
            else:
                needed = (len(sample.prompt) - 1) // BLOCK + 2
                if tuple(sample.prompt) in prompts:
                    needed = 2
            if needed > room and len(free) < len(held):  # one alone is taken in any case
                break
            room -= needed
            waiting.popleft()
            slot = free.pop(0)
            held[slot] = sample
            self.order += 1
            sample.order = self.order
            if sample.parked is None:
                fresh[slot] = sample
                prompts.add(tuple(sample.prompt))
                next_R[slot] = sample.prompt[-1]
            else:
                cache.put_back(slot, sample.parked)
                next_R[slot], sample.parked = sample.rows[-1], None
        self._read(cache, fresh)

    def _make_room(self, cache: BlockCache, held: list[_Sample | None], waiting: deque[_Sample]) -> None:
        """For the next token of each sample; where there is none, the latest wait for it."""
        by_age = sorted((sample.order, slot) for slot, sample in enumerate(held) if sample is not None)
        done = 0
        while done < len(by_age):
            if cache.extend(by_age[done][1], alone=len(by_age) == 1):
                done += 1
                continue
            _, slot = by_age.pop()
            sample = held[slot]
            assert sample is not None
            sample.parked, held[slot] = cache.park(slot), None
            self.parked += 1
            waiting.appendleft(sample)

    def _read(self, cache: BlockCache, fresh: dict[int, _Sample]) -> None:
        """Read all but the last token of each prompt into its slot; the last is the first step's."""
        of_prompt: dict[tuple[int, ...], list[int]] = {}
        for slot, sample in fresh.items():
            of_prompt.setdefault(tuple(sample.prompt), []).append(slot)
        together: list[tuple[int, ...]] = []
        for prompt in sorted(of_prompt, key=len, reverse=True):
            # Those of less than half the length would be padding for the most part.
            if together and (
                len(together[0]) * (len(together) + 1) > READ_TOKENS or 2 * len(prompt) < len(together[0])
            ):
                self._read_together(cache, fresh, {each: of_prompt[each] for each in together})
                together = []
            together.append(prompt)
        if together:
            self._read_together(cache, fresh, {each: of_prompt[each] for each in together})

    def _read_together(
        self, cache: BlockCache, fresh: dict[int, _Sample], of_prompt: dict[tuple[int, ...], list[int]]
    ) -> None:
        prompts = list(of_prompt)
        width = len(prompts[0]) - 1
        places = [(slot, n, len(prompt) - 1) for n, prompt in enumerate(prompts) for slot in of_prompt[prompt]]
        cache.begin_filling(*zip(*places, strict=True))
        if width == 0:
            return
        rows_BS = np.full((len(prompts), width), self.pad_row, dtype=np.int64)
        for row_S, prompt in zip(rows_BS, prompts, strict=True):
            row_S[: len(prompt) - 1] = prompt[:-1]
        position_BS = torch.arange(width, device=self.device).expand(len(prompts), -1)
        self._forward(torch.from_numpy(rows_BS).to(self.device), position_BS, self._causal(position_BS), cache)
        if self.recorder is not None:
            taken = self.recorder.taken()
            found = taken.reshape(len(prompts), width, *taken.shape[1:])
            for slot, n, length in places:
                fresh[slot].routes.append(found[n, :length])

    def _causal(self, position_BS: torch.Tensor) -> dict[str, Any]:
        """Prompts begin at the first column, so the padding of shorter ones comes after all that they see."""
        if self.lean:  # makes causal masks on its own
            return {"full_attention": None, "sliding_attention": None}
        end_BS = torch.full_like(position_BS, position_BS.shape[1])
        return tree_masks(position_BS, end_BS, self.config.sliding_window, self.dtype)

    def _step(
        self,
        cache: BlockCache,
        held: list[_Sample | None],
        next_R: torch.Tensor,
        choose: Choose,
        out: list[list[int]],
        max_new_tokens: int,
    ) -> None:
        live = [slot for slot, sample in enumerate(held) if sample is not None]
        cache.begin_decoding()
        logits_RV = self._forward(next_R[:, None], cache.position_R[:, None], cache.masks(), cache)[:, -1]
        index = None if len(live) == len(held) else torch.tensor(live, device=self.device)
        samples = [sample for sample in held if sample is not None]
        drawn = choose(logits_RV if index is None else logits_RV[index], [sample.number for sample in samples])
        cache.advance(live, index)
        if index is None:
            next_R.copy_(drawn)
        else:
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
                cache.drop(slot)

    def _forward(
        self, rows_BS: torch.Tensor, position_BS: torch.Tensor, masks: dict[str, Any], cache: BlockCache
    ) -> torch.Tensor:
        return self.model(
            input_ids=rows_BS,
            position_ids=position_BS,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
