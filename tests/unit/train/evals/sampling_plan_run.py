"""An evaluation of a random tiny model, that can be killed.

fault: `half:N` writes half of the N-th group's lines and dies; `unsynced:N` dies between writing and syncing.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.evals import journal
from counterpoint.train.evals.runner import Shard, run_plan
from counterpoint.train.evals.sampling_plan import Draw, plan
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.scorers import Scorers

SUITE = SuiteSettings.model_validate(
    {
        "tasks": [
            {"type": "arithmetic", "size": 6, "samples": 2, "max_new_tokens": 12},
            {"type": "arithmetic", "name": "products", "size": 4, "options": {"operations": "multiply"}},
        ],
        "efforts": ["low", "high"],
        "max_new_tokens": 20,
        "batch": 8,
    }
)


def draws() -> list[Draw]:
    return plan(build_tasks(SUITE), Renderer(random_tiny().vocabulary), seed=5)


def evaluate(folder: Path, shard: Shard | None = None, engine: Any = None) -> list[dict[str, Any]] | None:
    loaded = random_tiny()
    with Scorers() as scorers:
        return run_plan(
            draws(),
            engine or Sampler(loaded, batch_rows=5),
            folder,
            loaded.vocabulary,
            scorers,
            batch=SUITE.batch,
            identity={"model": "random tiny model"},
            shard=shard,
        )


def die_at(fault: str) -> None:
    """Break the journal's writing as `fault` says."""
    kind, _, number = fault.partition(":")
    write, count = os.write, [0]

    def broken(file: int, data: bytes) -> int:
        count[0] += 1
        if count[0] < int(number):
            return write(file, data)
        write(file, data[: len(data) // 2] if kind == "half" else data)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    journal.os.write = broken  # pyright: ignore[reportAttributeAccessIssue]


def forked(folder: str, fault: str | None = None) -> int:
    """`evaluate` as a job of tests/forks.py."""
    if fault is not None:
        die_at(fault)
    evaluate(Path(folder))
    return 0
