"""A pool of servers as an engine that always samples the same: one adapter, from one part of the distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.pool import ServerPool
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.server import Wanted
from counterpoint.train.sampling.truncation import Truncation


@dataclass(frozen=True)
class PinnedEngine:
    """An `Engine`; thread-safe. adapter: the name of one that is loaded on every server, None for the servers' own
    model. turn, wanted, stops: as of `ServerPool.sample`."""

    pool: ServerPool
    adapter: str | None
    turn: int = 0
    wanted: Wanted | None = None
    stops: Callable[[], bool] | None = None
    each_alone: bool = True

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `ServerPool.sample`."""
        return self.pool.sample(
            prompts, max_new_tokens, temperature, seed, stop_ids, self.adapter, self.turn, self.wanted, self.stops
        )

    def cut(self, truncation: Truncation) -> Self:
        """See `Cuttable`."""
        return replace(self, wanted=replace(self.wanted or self.pool.wanted, truncation=truncation))

    def evaluating(self, truncation: Truncation, stops: Callable[[], bool]) -> Self:
        """The same adapter, drawn from as an evaluation wants it: without what only a loss needs of a sample."""
        return replace(self, wanted=Wanted(truncation), stops=stops)

    def close(self) -> None:
        """See `ServerPool.close`."""
        self.pool.close()
