"""Which items a step takes: known from its number alone, so that a resumed run goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepOrder:
    """items: how many there are; groups: of a step, at most as many; an epoch leaves out what does not fill a step."""

    items: int
    groups: int
    seed: int
    shuffle: bool = True

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return max(1, self.items // self.groups)

    def of(self, step: int) -> tuple[list[int], int]:
        """(numbers of the items, epoch)."""
        epoch, place = divmod(step, self.steps)
        order = list(range(self.items))
        if self.shuffle:
            draw = torch.Generator().manual_seed(self.seed)
            for _ in range(epoch + 1):
                order = torch.randperm(self.items, generator=draw).tolist()
        return order[place * self.groups : (place + 1) * self.groups], epoch
