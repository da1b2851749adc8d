"""An evaluation in several processes, one a GPU: each draws its share of every plan, the last one to finish merges."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from counterpoint.configs.errors import ConfigError, RunError

PARENT = "COUNTERPOINT_PARENT"
_POLL = 0.5


def share(text: str) -> tuple[int, int]:
    """`0/4` as (0, 4). ConfigError for anything else."""
    rank, _, world = text.partition("/")
    if rank.isdecimal() and world.isdecimal() and int(rank) < int(world):
        return int(rank), int(world)
    raise ConfigError(f"--shard {text}: write the number of the share and how many there are, as 0/4")


def run_shards(arguments: Sequence[str], count: int, folder: Path, gpus: bool, say: Callable[[int], None]) -> None:
    """`counterpoint evaluate` with `arguments` in `count` processes; say: samples on disk so far.

    Each writes `shard-R.log` in `folder`. RunError with the last line of the first that failed; the others are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"shard-{rank}.log" for rank in range(count)]
    command = [sys.executable, "-m", "counterpoint.recipes.cli", "evaluate", *arguments]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            with log.open("wb") as file:
                environment = {**os.environ, **_environment(rank, count, gpus)}
                line = [*command, "--shard", f"{rank}/{count}"]
                processes.append(subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, env=environment))
        while any(process.poll() is None for process in processes):
            _check(processes, logs)
            say(sum(_lines(path) for path in folder.glob("*/samples*.jsonl")))
            time.sleep(_POLL)
        _check(processes, logs)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def is_orphan() -> bool:
    """Whether this is a share whose command was killed: nobody would wait for it, and the next try needs its files."""
    parent = os.environ.get(PARENT)
    return parent is not None and str(os.getppid()) != parent


def _environment(rank: int, count: int, gpus: bool) -> dict[str, str]:
    own = {PARENT: str(os.getpid())}
    if gpus:
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return {**own, "CUDA_VISIBLE_DEVICES": listed.split(",")[rank] if listed else str(rank)}
    return {**own, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}


def _check(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]) -> None:
    for rank, (process, log) in enumerate(zip(processes, logs, strict=True)):
        if process.poll():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing was said"]
            raise RunError(f"process {rank} of {len(logs)} ended with {process.returncode}: {lines[-1]} (see {log})")


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0  # merged meanwhile
