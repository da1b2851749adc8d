"""A few real steps with random weights: how fast this machine trains a run, and what memory its steps take."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback


@dataclass(frozen=True)
class Measured:
    """tokens_per_second: of the steps after the first. above: the highest memory above the model with its adapter."""

    tokens_per_second: float
    above: int


def allocated_peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch holds during `work` above what it held before."""
    gc.collect()  # what is garbage by now would be freed during `work`, and taken from its sum
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    results: Any = found.profiler.kineto_results if found.profiler is not None else None
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    now = highest = 0
    for _, size in events:
        now += size
        highest = max(highest, now)
    return highest


class Stopwatch:
    """Seconds and tokens of the steps after the first one."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def mark(self, tokens: int) -> None:
        """A step ended; `tokens` of the run so far."""
        self.marks.append((time.perf_counter(), tokens))

    @property
    def tokens_per_second(self) -> float:
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return (last - first) / max(ended - began, 1e-9)


def measured_training(trainer: Any) -> Measured:
    """Runs `trainer.train()` (at least three steps), once for both figures."""
    watch = Stopwatch()

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.mark(trainer.meter.total_tokens)

    trainer.add_callback(Steps())
    above = allocated_peak(trainer.train, trainer.args.device)
    return Measured(watch.tokens_per_second, above)
