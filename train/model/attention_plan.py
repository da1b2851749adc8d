"""Tree rows cut into blocks that a fused attention kernel can take, and no block where nothing is visible.

Legend: B rows, S tokens a row, N = B S (flat index b S + i), M blocks in one call, Q queries and K keys of a block.

The rule is that of masks.py. Tokens with one `subtree_end` in a row are a segment: each sees its ancestors and the
segment's own past. Keys of any run of queries that starts at i are the ancestors of i (`j < i < subtree_end[j]`) and
the run itself; in sliding layers only those within the window of some query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from counterpoint.train.model.masks import LAYER_TYPES, tree_allowed

Int64 = npt.NDArray[np.int64]
BLOCKED = -1e30
"""Added to scores where attention is not allowed: finite, so that a wholly blocked part of a block makes no NaN."""
LONG_SEGMENT = 64
CALL_PAIRS = 4096
"""What a kernel call costs besides its work, in (query, key) pairs: roughly, for choosing between two exact ways."""
DENSE_PAIRS = 1 << 25


@dataclass(frozen=True)
class Block:
    """M blocks of one kernel call: flat indices of queries (M, Q) and keys (M, K), None for all N tokens row by row.

    mask: (M, 1, Q, K) additive, or None. causal: query q sees keys 0 to q. valid (M, Q) is False at queries that only
    fill a block up; fresh: no block before has these queries.
    """

    query: torch.Tensor | None
    key: torch.Tensor | None
    valid: torch.Tensor | None
    mask: torch.Tensor | None
    causal: bool
    fresh: bool


@dataclass(frozen=True)
class Sequences:
    """The same attention, or a part of it, for kernels that take sequences of their own lengths.

    query, key: flat indices (total,) of all sequences' queries and keys, None where these are the tokens as they are.
    starts: offsets of queries and keys, int32 on the device. causal: from the bottom right corner; else each query sees
    all keys of its sequence.
    """

    query: torch.Tensor | None
    key: torch.Tensor | None
    causal: bool
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int


class AttentionPlan:
    """One layer type's attention over a batch: takes the place of a mask, and is computed once a batch."""

    def __init__(self, position_BS: torch.Tensor, subtree_end_BS: torch.Tensor, window: int | None) -> None:
        self.position_BS = position_BS
        self.subtree_end_BS = subtree_end_BS
        self.window = window
        self.memo: dict[Any, Any] = {}
        """For kernels: what they work out from these alone."""

    @property
    def shape(self) -> torch.Size:
        """(B, S)."""
        return self.subtree_end_BS.shape

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The same as an additive mask (B, 1, S, S)."""
        allowed = tree_allowed(self.position_BS, self.subtree_end_BS, self.window)[:, None]
        zero = torch.zeros((), dtype=dtype, device=allowed.device)
        return torch.where(allowed, zero, torch.finfo(dtype).min)

    @cached_property
    def blocks(self) -> list[Block]:
        return list(_blocks(*self._arrays, self.window))

    @cached_property
    def sequences(self) -> list[Sequences]:
        """Parts over disjoint keys; the first has all queries."""
        return _sequences(*self._arrays, self.window, self.subtree_end_BS.device)

    @cached_property
    def narrow(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and ends (B, S) in int32, where they are."""
        position, end = (part.to(torch.int32).contiguous() for part in (self.position_BS, self.subtree_end_BS))
        return position, end

    @cached_property
    def _arrays(self) -> tuple[Int64, Int64]:
        return self.position_BS.cpu().numpy().astype(np.int64), self.subtree_end_BS.cpu().numpy().astype(np.int64)


def tree_plans(position_BS: torch.Tensor, subtree_end_BS: torch.Tensor, window: int) -> dict[str, AttentionPlan]:
    """Plans by layer type, for `GptOssModel.forward(attention_mask=...)` with the lean attention."""
    widths = zip(LAYER_TYPES, (None, window), strict=True)
    return {layer_type: AttentionPlan(position_BS, subtree_end_BS, width) for layer_type, width in widths}


@lru_cache(maxsize=8)
def causal_plan(rows: int, tokens: int, window: int | None, device: torch.device) -> AttentionPlan:
    """The plan of plain causal rows without padding."""
    position = torch.arange(tokens, device=device).expand(rows, tokens)
    return AttentionPlan(position, torch.full((rows, tokens), tokens, device=device), window)


def _blocks(position_BS: Int64, end_BS: Int64, window: int | None) -> Iterator[Block]:
    rows, tokens = end_BS.shape
    if window is not None and int(position_BS.max()) < window:
        window = None
    if window is None and (end_BS == tokens).all():
        yield Block(None, None, None, None, causal=True, fresh=True)
        return
    parts = _sliding_parts(position_BS, end_BS, window) if window is not None else _full_parts(end_BS)
    pairs = sum(CALL_PAIRS + part.pairs for part in parts)
    if rows * tokens * tokens <= min(pairs, DENSE_PAIRS):
        mask = np.where(_allowed(position_BS, end_BS, window), 0.0, BLOCKED)[:, None].astype(np.float32)
        yield Block(None, None, None, torch.from_numpy(mask), causal=False, fresh=True)
        return
    for part in parts:
        yield part.block()


@dataclass(frozen=True)
class _Member:
    """One block of a call: queries and keys as indices in a row."""

    row: int
    query: Int64
    key: Int64


@dataclass(frozen=True)
class _Part:
    """Blocks of about equal size, to be one call. arrays: position and end of all rows, where a mask is needed."""

    members: list[_Member]
    tokens: int
    arrays: tuple[Int64, Int64] | None = None
    window: int | None = None
    causal: bool = False
    fresh: bool = True

    @property
    def queries(self) -> int:
        return max(len(member.query) for member in self.members)

    @property
    def keys(self) -> int:
        return max(len(member.key) for member in self.members)

    @property
    def pairs(self) -> int:
        return len(self.members) * self.queries * self.keys // (2 if self.causal else 1)

    def block(self) -> Block:
        """Fill up to equal sizes: queries by token 0 (looking at their first key), keys by keys that are blocked."""
        count, queries, keys = len(self.members), self.queries, self.keys
        query_MQ, key_MK = np.zeros((count, queries), np.int64), np.zeros((count, keys), np.int64)
        valid_MQ = np.zeros((count, queries), bool)
        mask_M1QK = np.full((count, 1, queries, keys), BLOCKED, np.float32) if self.arrays else None
        for m, member in enumerate(self.members):
            n, offset = len(member.query), member.row * self.tokens
            query_MQ[m, :n], key_MK[m, : len(member.key)] = member.query + offset, member.key + offset
            valid_MQ[m, :n] = True
            if mask_M1QK is not None and self.arrays is not None:
                position_S, end_S = (array[member.row] for array in self.arrays)
                seen_QK = _seen(member.query, member.key, position_S, end_S, self.window)
                mask_M1QK[m, 0, :n, : len(member.key)][seen_QK] = 0.0
                mask_M1QK[m, 0, n:, 0] = 0.0
        return Block(
            torch.from_numpy(query_MQ),
            torch.from_numpy(key_MK),
            None if valid_MQ.all() else torch.from_numpy(valid_MQ),
            None if mask_M1QK is None else torch.from_numpy(mask_M1QK),
            self.causal,
            self.fresh,
        )


def _full_parts(end_BS: Int64) -> list[_Part]:
    """Long segments: causal on themselves, then their ancestors without a mask. Runs of short ones: with a mask."""
    parts: list[_Part] = []
    tokens = end_BS.shape[1]
    arrays = (np.zeros_like(end_BS), end_BS)
    for row, end_S in enumerate(end_BS):
        run: tuple[int, int] | None = None
        for first, last in [*_segments(end_S), (tokens, tokens)]:
            short = last - first < LONG_SEGMENT
            if run is not None and (not short or first == tokens or last - run[0] > 2 * LONG_SEGMENT):
                own = np.arange(*run)
                keys = np.concatenate([_ancestors(end_S, run[0]), own])
                parts.append(_Part([_Member(row, own, keys)], tokens, arrays))
                run = None
            if first == tokens:
                break
            if short:
                run = (first if run is None else run[0], last)
                continue
            own, past = np.arange(first, last), _ancestors(end_S, first)
            parts.append(_Part([_Member(row, own, own)], tokens, causal=True))
            if len(past):
                parts.append(_Part([_Member(row, own, past)], tokens, fresh=False))
    return parts


def _sliding_parts(position_BS: Int64, end_BS: Int64, window: int) -> list[_Part]:
    """Runs of consecutive tokens, with the keys in some query's window; runs with about as many keys share a call."""
    size = min(max(window, LONG_SEGMENT), 2 * LONG_SEGMENT)
    tokens = end_BS.shape[1]
    groups: dict[int, list[_Member]] = {}
    for row, (position_S, end_S) in enumerate(zip(position_BS, end_BS, strict=True)):
        for first in range(0, tokens, size):
            own = np.arange(first, min(first + size, tokens))
            past = _ancestors(end_S, first)
            past = past[position_S[past] > position_S[own].min() - window]
            past = past[_seen(own, past, position_S, end_S, window).any(axis=0)]
            members = groups.setdefault(-(-len(past) // LONG_SEGMENT), [])
            members.append(_Member(row, own, np.concatenate([past, own])))
    return [_Part(groups[size], tokens, (position_BS, end_BS), window) for size in sorted(groups)]


def _sequences(position_BS: Int64, end_BS: Int64, window: int | None, device: torch.device) -> list[Sequences]:
    """Each segment with all that it sees; or each with itself, and then those of one parent together with their past,
    where that gathers half the keys or less."""
    own, whole = _Sequences(device), _Sequences(device)
    past_of: dict[tuple[int, int], Int64] = {}
    children: dict[tuple[int, int], list[Int64]] = {}
    for row, (position_S, end_S) in enumerate(zip(position_BS, end_BS, strict=True)):
        offset = row * len(end_S)
        for (first, last), parent in zip(*_family(end_S), strict=True):
            past = _ancestors(end_S, first)
            if window is not None:
                past = past[position_S[first] - position_S[past] < window]
            tokens = np.arange(first, last) + offset
            own.add(tokens, tokens)
            whole.add(tokens, np.concatenate([past + offset, tokens]))
            if parent is not None:
                past_of[row, parent] = past + offset
                children.setdefault((row, parent), []).append(tokens)
    shared = sum(map(len, past_of.values()))
    if window is not None or 2 * (own.n_keys + shared) > whole.n_keys:
        plain = whole.n_keys == own.n_keys
        return [whole.done(None, plain=plain, causal=True)]
    together = _Sequences(device)
    for parent, parts in children.items():
        together.add(np.concatenate(parts), past_of[parent])
    return [own.done(None, plain=True, causal=True), together.done(together.queries, plain=False, causal=False)]


class _Sequences:
    """Collects sequences of queries and keys."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.queries, self.keys = device, list[Int64](), list[Int64]()

    def add(self, query: Int64, key: Int64) -> None:
        self.queries.append(query)
        self.keys.append(key)

    @property
    def n_keys(self) -> int:
        return sum(map(len, self.keys))

    def done(self, queries: list[Int64] | None, *, plain: bool, causal: bool) -> Sequences:
        """plain: keys are the tokens as they are."""
        lengths = [np.array([0, *map(len, parts)], np.int32) for parts in (self.queries, self.keys)]
        query_start, key_start = (torch.from_numpy(np.cumsum(each, dtype=np.int32)).to(self.device) for each in lengths)
        key = None if plain else torch.from_numpy(np.concatenate(self.keys)).to(self.device)
        query = None if queries is None else torch.from_numpy(np.concatenate(queries)).to(self.device)
        longest_query, longest_key = (int(each.max()) for each in lengths)
        return Sequences(query, key, causal, query_start, key_start, longest_query, longest_key)


def flash_sequences(position_S: Int64, end_S: Int64) -> tuple[int, int]:
    """(sequences, keys of all of them) that a flash kernel is given for one row in layers without a window: what its
    scratch memory depends on. As `_sequences` decides, but for this row alone."""
    segments, parents = _family(end_S)
    past = [int(position_S[first]) for first, _ in segments]
    shared = sum({parent: n for parent, n in zip(parents, past, strict=True) if parent is not None}.values())
    tokens, gathered = len(end_S), len(end_S) + sum(past)
    if 2 * (tokens + shared) > gathered:
        return len(segments), gathered
    return len(segments), max(tokens, shared)  # one part after the other


def _family(end_S: Int64) -> tuple[list[tuple[int, int]], list[int | None]]:
    """Segments, and the number of each one's parent: what it sees is that segment and what that one sees."""
    segments, parents, path = _segments(end_S), list[int | None](), list[int]()
    for number, (first, _) in enumerate(segments):
        while path and end_S[segments[path[-1]][0]] <= first:
            path.pop()
        parents.append(path[-1] if path else None)
        path.append(number)
    return segments, parents


def _segments(end_S: Int64) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(end_S)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(end_S)], strict=True))


def _ancestors(end_S: Int64, index: int) -> Int64:
    return np.flatnonzero(end_S[:index] > index)


def _seen(query: Int64, key: Int64, position_S: Int64, end_S: Int64, window: int | None) -> npt.NDArray[np.bool_]:
    seen = (query[:, None] >= key) & (query[:, None] < end_S[key])
    return seen if window is None else seen & (position_S[query][:, None] - position_S[key] < window)


def _allowed(position_BS: Int64, end_BS: Int64, window: int | None) -> npt.NDArray[np.bool_]:
    index = np.arange(end_BS.shape[1])
    return np.stack([_seen(index, index, p, e, window) for p, e in zip(position_BS, end_BS, strict=True)])
