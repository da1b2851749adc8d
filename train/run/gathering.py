"""What processes collect of each other after sampling, for which some wait far longer than for a step of training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from accelerate import PartialState

from counterpoint.train.run.world import world_size


def patient_gather(seconds: float) -> Callable[[list[Any]], list[Any]]:
    """Collects the lists of all processes into one, in all of them. Collective, as each call of what it returns is.

    It waits so long, whatever the timeout of the run's own group is (NCCL ends the process once that is over): over a
    group of its own on the CPU, which takes nothing of a GPU either. A process that ends ends the waiting.
    """
    if world_size() == 1:
        return list
    PartialState()  # the run's group is there first
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))

    def gather(mine: list[Any]) -> list[Any]:
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine, group=group)
        return [each for one in found for each in one]

    return gather
