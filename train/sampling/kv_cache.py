"""A KV cache that holds what is used: full layers in blocks of a pool, sliding layers in a ring of one window a slot.

A slot's row of tokens has a length of its own. It takes a block when it grows into one and gives all back when it ends;
samples of one prompt share its whole blocks. In a ring position p is at p mod window, so that what a token may see is
all of the ring that is written.

Legend: R slots, B rows of a forward pass, S their tokens, G key/value heads, C columns, D head size, P blocks of the
pool, T tokens of a block.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoint.train.model.cached_attention import Kept
from counterpoint.train.model.precision import on_cuda

BLOCK = 32
"""Tokens of a block."""
APART = 16
"""Blocks from which rows of less than half as many are attended to apart, rather than filled up."""
_NOBODY = 0
"""The block that slots without a sample write to."""

Pair = tuple[torch.Tensor, torch.Tensor]


def token_bytes(config: Any, itemsize: int) -> int:
    """Of one token's keys and values in all full layers."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    full = sum(kind != "sliding_attention" for kind in config.layer_types)
    return full * 2 * config.num_key_value_heads * size * itemsize


def tokens_that_fit(model: Any) -> int:
    """Tokens that may be kept in half of the GPU memory that is free or was given back; without a GPU as many as may
    be."""
    weight = next(model.parameters())
    if not on_cuda(weight):
        return sys.maxsize
    free = torch.cuda.mem_get_info(weight.device)[0]
    idle = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return max(BLOCK, (free + idle) // 2 // token_bytes(model.config, weight.element_size()))


@dataclass(frozen=True)
class Parked:
    """A sample's keys and values in host memory: blocks of the full layers, the ring of the sliding ones."""

    length: int
    blocks: int
    layers: list[Pair]


class BlockCache:
    """Stands in for transformers' cache in forward passes of gpt-oss, and for a mask of lean attention (`kept`).

    slots: rows at a time. tokens: that full layers hold at most, all slots together; a row that is alone may be longer.
    length: of each slot, the tokens that are kept, and so the position of its next one. dense: attention is
    transformers' eager one, which takes all keys and values of a layer and an additive mask (`masks`).
    """

    def __init__(
        self, config: Any, slots: int, tokens: int, dtype: torch.dtype, device: torch.device, dense: bool = False
    ) -> None:
        self.windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
        self.heads = config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.dtype, self.device, self.dense = dtype, device, dense
        self.limit = max(1, tokens // BLOCK)
        self.length = np.zeros(slots, np.int64)
        self.position_R = torch.zeros(slots, dtype=torch.long, device=device)
        self.table = np.full((slots, 1), _NOBODY)  # a slot's blocks, as many as `counts` says
        self.counts = np.zeros(slots, np.int64)
        self.users = [1]  # of each block; the first is nobody's
        self.free: list[int] = []
        self.layers: list[Pair] = [self._empty(*((1, BLOCK) if w is None else (slots, w))) for w in self.windows]
        self.filling: _Filling | None = None
        self.parts: list[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]] = []
        self.seen = 0

    def _empty(self, rows: int, columns: int) -> Pair:
        key, value = (
            torch.zeros(rows, self.heads, columns, self.size, dtype=self.dtype, device=self.device) for _ in range(2)
        )
        return key, value

    # ---- blocks

    @property
    def room(self) -> int:
        """Blocks that may still be taken."""
        return len(self.free) + max(0, self.limit + 1 - len(self.users))

    def _take(self, count: int) -> list[int]:
        missing = count - len(self.free)
        if missing > 0:
            used = len(self.users)
            wanted = max(used + missing, min(used * 3 // 2, self.limit + 1))
            for n, (layer, window) in enumerate(zip(self.layers, self.windows, strict=True)):
                if window is None:
                    self.layers[n] = self._grown(layer[0], wanted), self._grown(layer[1], wanted)
            self.free += range(wanted - 1, used - 1, -1)
            self.users += [0] * (wanted - used)
        taken = [self.free.pop() for _ in range(count)]
        for block in taken:
            self.users[block] = 1
        return taken

    def _grown(self, pool_PGTD: torch.Tensor, blocks: int) -> torch.Tensor:
        larger = pool_PGTD.new_empty(blocks, *pool_PGTD.shape[1:])
        larger[: len(pool_PGTD)] = pool_PGTD
        larger[len(pool_PGTD) :] = 0  # what a mask hides must be finite
        return larger

    def drop(self, slot: int) -> None:
        """A sample has ended: its blocks are free for others."""
        for block in self._blocks(slot):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)
        self.table[slot], self.counts[slot], self.length[slot] = _NOBODY, 0, 0
        self.position_R[slot] = 0

    def _blocks(self, slot: int) -> list[int]:
        return self.table[slot, : self.counts[slot]].tolist()

    def _give(self, slot: int, blocks: Sequence[int]) -> None:
        first, end = self.counts[slot], self.counts[slot] + len(blocks)
        if end > self.table.shape[1]:
            more = max(end, 2 * self.table.shape[1]) - self.table.shape[1]
            self.table = np.pad(self.table, ((0, 0), (0, more)), constant_values=_NOBODY)
        self.table[slot, first:end], self.counts[slot] = blocks, end

    def extend(self, slot: int, alone: bool) -> bool:
        """Room for the slot's next token; False where no block is left. alone: there is no other to make way."""
        if self.length[slot] < BLOCK * self.counts[slot]:
            return True
        if self.room == 0 and not alone:
            return False
        self._give(slot, self._take(1))
        return True

    def park(self, slot: int) -> Parked:
        """Move a sample to host memory, bit for bit."""
        index = torch.tensor(self._blocks(slot), device=self.device)
        layers: list[Pair] = []
        for (key, value), window in zip(self.layers, self.windows, strict=True):
            at: Any = index if window is None else slot
            layers.append((key[at].to("cpu", copy=True), value[at].to("cpu", copy=True)))
        parked = Parked(int(self.length[slot]), len(index), layers)
        self.drop(slot)
        return parked

    def put_back(self, slot: int, parked: Parked) -> None:
        self._give(slot, self._take(parked.blocks))
        self.length[slot] = self.position_R[slot] = parked.length
        index = torch.tensor(self._blocks(slot), device=self.device)
        for layer, window, held in zip(self.layers, self.windows, parked.layers, strict=True):
            for whole, part in zip(layer, held, strict=True):
                at: Any = index if window is None else slot
                whole[at] = part.to(self.device)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which move together in this order."""
        index, kept = torch.tensor(slots, device=self.device), list(slots)
        self.position_R = self.position_R[index]
        self.length, self.table, self.counts = self.length[kept], self.table[kept], self.counts[kept]
        for n, ((key, value), window) in enumerate(zip(self.layers, self.windows, strict=True)):
            if window is not None:
                self.layers[n] = key[index], value[index]

    # ---- forward passes

    def begin_filling(self, slots: Sequence[int], of_prompt: Sequence[int], lengths: Sequence[int]) -> None:
        """The next forward pass reads prompts: the first `lengths[i]` tokens of its row `of_prompt[i]` are of
        `slots[i]`, which is empty. Rows of one prompt share its whole blocks."""
        shared: dict[int, list[int]] = {}
        source: list[tuple[int, int, int]] = []  # row of the pass, first token, block
        for slot, row, length in zip(slots, of_prompt, lengths, strict=True):
            whole = length // BLOCK
            if row not in shared:
                shared[row] = self._take(whole)
                source += [(row, BLOCK * n, block) for n, block in enumerate(shared[row])]
            else:
                for block in shared[row]:
                    self.users[block] += 1
            own = self._take(1)
            source.append((row, BLOCK * whole, own[0]))
            self._give(slot, shared[row] + own)
            self.length[slot] = length
        self.position_R[torch.tensor(slots, device=self.device)] = torch.tensor(lengths, device=self.device)
        at = torch.tensor(source, device=self.device).T
        index = [torch.tensor(part, device=self.device) for part in (slots, of_prompt, lengths)]
        self.filling = _Filling(at[0], at[1], at[2], *index)

    def begin_decoding(self) -> None:
        """The next forward pass takes one token a slot, each of which has room for it (`extend`)."""
        self.filling, self.seen = None, int(self.length.max()) + 1
        slots = np.arange(len(self.length))
        heads_G1 = torch.arange(self.heads, device=self.device)[:, None]
        groups = self._groups()
        self.parts = []
        for group in groups:
            rows = None if len(groups) == 1 else self._put(group)
            table_rW = self._put(self.table[group, : max(1, self.counts[group].max())])
            hidden_rC = self._hidden(table_rW.shape[1] * BLOCK, rows)
            self.parts.append((rows, (table_rW[:, None] * self.heads + heads_G1).flatten(), hidden_rC))
        self.newest = self._put(self.table[slots, self.length // BLOCK]), self.position_R % BLOCK
        window = next((w for w in self.windows if w is not None), None)
        if window is not None:
            self.ring = self._put(slots), self.position_R % window
            self.ring_hidden = self._hidden(min(window, self.seen), None)

    def _groups(self) -> list[npt.NDArray[np.int64]]:
        """Slots by falling length, in groups of which none is filled up to more than twice its length."""
        order = np.argsort(-self.counts, kind="stable")
        starts = [0]
        for n, slot in enumerate(order):
            longest = self.counts[order[starts[-1]]]
            if longest >= APART and 2 * self.counts[slot] <= longest:
                starts.append(n)
        if len(starts) == 1 or self.dense:
            return [np.arange(len(order))]
        return np.split(order, starts[1:])

    def _put(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.device)

    def advance(self, slots: Sequence[int], index: torch.Tensor | None) -> None:
        """These slots have taken their token. index: the same on the device, None for all."""
        self.length[list(slots)] += 1
        if index is None:
            self.position_R += 1
        else:
            self.position_R[index] += 1

    def _hidden(self, columns: int, rows: torch.Tensor | None) -> torch.Tensor:
        position = self.position_R if rows is None else self.position_R[rows]
        return torch.arange(columns, device=self.device) > position[:, None]

    def kept(self, layer: int) -> Iterator[Kept]:
        """The keys and values that decoding rows attend to, the new ones among them."""
        window, (key, value) = self.windows[layer], self.layers[layer]
        if window is not None:
            visible = min(window, self.seen)
            yield Kept(None, key[:, :, :visible], value[:, :, :visible], self.ring_hidden)
            return
        for rows, index, hidden in self.parts:
            shape = len(hidden), self.heads, hidden.shape[1], self.size
            found = [pool.flatten(0, 1).index_select(0, index).view(shape) for pool in (key, value)]
            yield Kept(rows, found[0], found[1], hidden)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.filling is not None else self.seen

    def update(
        self, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a layer's new keys and values, and return them: `kept` has what decoding rows attend to."""
        window = self.windows[layer_idx]
        for held, new in zip(self.layers[layer_idx], (key_BGSD, value_BGSD), strict=True):
            if self.filling is not None:
                self.filling.into_blocks(held, new) if window is None else self.filling.into_ring(held, new)
            else:
                row_R, column_R = self.newest if window is None else self.ring
                held[row_R, :, column_R] = new[:, :, 0]
        if self.dense and self.filling is None:
            (part,) = self.kept(layer_idx)
            return part.key, part.value
        return key_BGSD, value_BGSD

    def masks(self) -> dict[str, Any]:
        """What a decoding step takes as attention masks: this, or additive masks (R, 1, 1, C)."""
        found: dict[str, Any] = {"full_attention": self, "sliding_attention": self}
        if not self.dense:
            return found
        for layer, window in enumerate(self.windows):
            (part,) = self.kept(layer)
            mask = torch.zeros(part.hidden_rC.shape, dtype=self.dtype, device=self.device)
            kind = "full_attention" if window is None else "sliding_attention"
            found[kind] = mask.masked_fill_(part.hidden_rC, torch.finfo(self.dtype).min)[:, None, None]
        return found


@dataclass(frozen=True)
class _Filling:
    """Where a pass over prompts writes: of each block its row of the pass and first token; and the slots, the row of
    each, and its tokens."""

    row_P: torch.Tensor
    first_P: torch.Tensor
    block_P: torch.Tensor
    slot: torch.Tensor
    of_prompt: torch.Tensor
    lengths: torch.Tensor

    def into_blocks(self, pool_PGTD: torch.Tensor, new_BGSD: torch.Tensor) -> None:
        token_PT = self.first_P[:, None] + torch.arange(BLOCK, device=pool_PGTD.device)
        # Behind the end stands what is overwritten before it is seen.
        token_PT = token_PT.clamp_max(new_BGSD.shape[2] - 1)
        pool_PGTD[self.block_P] = new_BGSD.transpose(1, 2)[self.row_P[:, None], token_PT].transpose(1, 2)

    def into_ring(self, ring_RGCD: torch.Tensor, new_BGSD: torch.Tensor) -> None:
        tokens, window = new_BGSD.shape[2], ring_RGCD.shape[2]
        if tokens <= window:
            ring_RGCD[self.slot, :, :tokens] = new_BGSD[self.of_prompt]
            return
        # The last token of each row that is in a column of the ring; columns not yet reached are never seen.
        column_C = torch.arange(window, device=ring_RGCD.device)
        last_B1 = self.lengths[:, None] - 1
        source_BC = (last_B1 - (last_B1 - column_C) % window).clamp_min(0)
        index = source_BC[:, None, :, None].expand(-1, new_BGSD.shape[1], -1, new_BGSD.shape[3])
        ring_RGCD[self.slot] = new_BGSD[self.of_prompt].gather(2, index)
