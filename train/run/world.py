"""The processes that train together, from the launcher's environment, and how many rows a step of theirs takes."""

from __future__ import annotations

import os

from counterpoint.configs.schema import TrainingRun


def process_number() -> int:
    """The number of this process among those that train together, on all machines; 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of this run, from the launcher's environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes the run folder (rank 0)."""
    return process_number() == 0


def rows_per_step(settings: TrainingRun, processes: int | None = None) -> int:
    """Rows in one optimizer step over all processes (None: those of this run)."""
    return settings.train.batch_rows * settings.train.accumulation * (processes or world_size())
