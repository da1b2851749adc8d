"""Real runs to inject faults into: the real command in a process of its own, from a folder of its own."""

from __future__ import annotations

import ctypes
import errno
import json
import resource
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forks import CLI, Fork, Forks

RUN_FILE = """
recipe: sft
model: {name: tiny}
lora: {rank: 2, alpha: 4}
data: {train: rows.jsonl, max_tokens: 512}
train: {steps: 6, batch_rows: 2, learning_rate: 5e-3, checkpoint_every: 2, log_every: 1, device: cpu, threads: 1}
eval: {prompts: prompts.jsonl, efforts: low, max_new_tokens: 4, at_start: false}
tracking: {wandb: "off"}
"""
PROMPT = {"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"}
TIMES = ("tokens_per_second", "trained_tokens_per_second", "seconds")


def row(number: int) -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"{number} + 1?"},
        {"role": "assistant", "reasoning_content": "add one", "content": f"{number + 1}"},
    ]
    return {"messages": said}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@dataclass
class Place:
    """A folder with a run file and its data, and the command line there."""

    folder: Path
    forks: Forks

    def start(self, *arguments: str, **environment: str | None) -> Fork:
        return self.forks.start(CLI, list(arguments), folder=self.folder, **environment)

    def __call__(self, *arguments: str, code: int = 0, **environment: str | None) -> str:
        """What the command printed, on either stream; never a traceback."""
        done = self.forks.command(*arguments, folder=self.folder, **environment)
        told = done.stdout + done.stderr
        assert done.returncode == code, told
        assert "Traceback" not in told, told
        return told

    def error(self, *arguments: str, code: int = 1, **environment: str | None) -> str:
        """The one line that the command printed as its error."""
        done = self.forks.command(*arguments, folder=self.folder, **environment)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.rstrip("\n")

    @property
    def run(self) -> Path:
        (only,) = (self.folder / "runs").iterdir()
        return only

    def log(self) -> str:
        return (self.run / "log.txt").read_text()


def losses(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def begun(place: Place, *arguments: str, step: int = 3) -> Fork:
    """A run of `my.yaml` that has come to that step."""
    run = place.start("train", "my.yaml", *arguments)
    run.until(f"\nstep {step}/")
    return run


def newest(place: Place) -> list[str]:
    """The names of the complete checkpoints."""
    return sorted(path.parent.name for path in (place.run / "checkpoints").glob("step-*/complete.json"))


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def lay_out(folder: Path, forks: Forks) -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my.yaml").write_text(RUN_FILE)
    write_rows(folder / "rows.jsonl", [row(n) for n in range(12)])
    write_rows(folder / "prompts.jsonl", [PROMPT])
    return Place(folder, forks)


def on_host(name: str, arguments: list[str], locks: bool = True, stale: float | None = None) -> int:
    """A job for tests/forks.py: the command line on a machine of that name, whose file system may pass no locks on.

    stale: seconds in place of the minute in which a holder must have given a sign of life.
    """
    import counterpoint.train.run.lock as lock
    from counterpoint.recipes.cli import main

    libc = ctypes.CDLL(None)
    if libc.unshare(0x04000000) == 0:  # CLONE_NEWUTS
        socket.sethostname(name)
    else:
        socket.gethostname = lambda: name
    if not locks:

        def flock(*_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        lock.fcntl.flock = flock  # type: ignore[assignment]
    if stale is not None:
        lock.lock_folder.__defaults__ = (stale / 5, stale)
    return main(arguments)


ON_HOST = f"{Path(__file__)}:on_host"


def limited(limits: dict[str, int], arguments: list[str]) -> int:
    """A job: the command line under `setrlimit`; memory (`AS`) is in bytes above what the process has."""
    from counterpoint.recipes.cli import main

    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if name == "AS" else 0
        resource.setrlimit(kind, (value + pages * resource.getpagesize(), resource.getrlimit(kind)[1]))
    return main(arguments)


def read_only(folder: str, arguments: list[str]) -> int:
    """A job: the command line where `folder` is mounted read-only."""
    from counterpoint.recipes.cli import main

    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return main(arguments)
