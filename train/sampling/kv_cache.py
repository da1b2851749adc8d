"""A KV cache in slots: each row of a batch has a length of its own, ends when it ends, and makes room for another.

Keys are at the index of their position, so a shorter row needs no padding to its left. Sliding layers keep a ring of
one window, in which position p is at p mod window: what a token may see is then all of the ring that is written.

Legend: R slots, B rows of a forward pass, S their tokens, G key/value heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch


class SlotCache:
    """Stands in for transformers' cache in forward passes of gpt-oss; `masks` makes the attention masks that fit.

    Set by the caller before each forward pass: `filling`, the slots whose prompts are read (None while decoding, when
    all R slots take one token), and `position_R`, where each slot's next token goes.
    """

    def __init__(self, config: Any, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
        self.heads = config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.dtype, self.device = dtype, device
        self.position_R = torch.zeros(slots, dtype=torch.long, device=device)
        self.filling: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.columns = 0
        self.seen = 0
        self.layers = [self._empty(slots, 0) for _ in self.windows]

    def _empty(self, slots: int, columns: int) -> list[torch.Tensor]:
        shape = (slots, self.heads, columns, self.size)
        return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)]

    def reserve(self, columns: int) -> None:
        """Room for positions below `columns`; grows by half at least."""
        if columns <= self.columns:
            return
        self.columns = max(columns, self.columns * 3 // 2)
        for layer, window in zip(self.layers, self.windows, strict=True):
            wanted = self.columns if window is None else min(window, self.columns)
            for n, held_RGCD in enumerate(layer):
                if wanted > held_RGCD.shape[2]:
                    slots, heads, _, size = held_RGCD.shape
                    larger = held_RGCD.new_zeros(slots, heads, wanted, size)
                    larger[:, :, : held_RGCD.shape[2]] = held_RGCD
                    layer[n] = larger

    def keep(self, slots: torch.Tensor) -> None:
        """Drop all slots but these, which move together in this order."""
        self.position_R = self.position_R[slots]
        self.layers = [[held[slots] for held in layer] for layer in self.layers]

    def begin_filling(self, slots: torch.Tensor, of_prompt: torch.Tensor, lengths: torch.Tensor) -> None:
        """The next forward pass reads prompts: prompt `of_prompt[i]`, of `lengths[i]` tokens, goes into `slots[i]`."""
        self.filling = slots, of_prompt, lengths
        self.position_R[slots] = lengths

    def begin_decoding(self, seen: int) -> None:
        """The next forward passes take one token a slot; no position is `seen` or above."""
        self.filling, self.seen = None, seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def update(
        self, key_BGSD: torch.Tensor, value_BGSD: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a layer's new keys and values; returns those to attend to."""
        held_key, held_value = self.layers[layer_idx]
        window = self.windows[layer_idx]
        if self.filling is not None:
            for held, new in ((held_key, key_BGSD), (held_value, value_BGSD)):
                self._fill(held, new, window)
            return key_BGSD, value_BGSD
        ring = held_key.shape[2] if window is not None else 0
        column_R = self.position_R % ring if window is not None and ring == window else self.position_R
        rows_R = torch.arange(len(column_R), device=self.device)
        held_key[rows_R, :, column_R] = key_BGSD[:, :, 0]
        held_value[rows_R, :, column_R] = value_BGSD[:, :, 0]
        visible = self.seen if window is None else min(window, self.seen)
        return held_key[:, :, :visible], held_value[:, :, :visible]

    def _fill(self, held_RGCD: torch.Tensor, new_BGSD: torch.Tensor, window: int | None) -> None:
        assert self.filling is not None
        slots, of_prompt, lengths = self.filling
        tokens = new_BGSD.shape[2]
        if window is None or tokens <= window:
            held_RGCD[slots, :, :tokens] = new_BGSD[of_prompt]
            return
        # The last token of each row that is in a column of the ring; columns not yet reached are never seen.
        column_C = torch.arange(window, device=self.device)
        last_BC = lengths[:, None] - 1
        source_BC = (last_BC - (last_BC - column_C) % window).clamp_min(0)
        index = source_BC[:, None, :, None].expand(-1, self.heads, -1, self.size)
        held_RGCD[slots] = new_BGSD[of_prompt].gather(2, index)

    def masks(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Additive masks (R, 1, 1, columns) of a decoding step."""
        position_R1 = self.position_R[:, None]
        out: dict[str, torch.Tensor] = {}
        for kind, limit in (("full_attention", None), ("sliding_attention", max((w or 0) for w in self.windows))):
            columns = self.seen if limit is None else min(limit, self.seen)
            hidden = torch.arange(columns, device=self.device) > position_R1
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
            out[kind] = mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None]
        return out
