"""What a run ran on: versions, commit, machine. No paths, no environment, nothing secret."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "openai-harmony", "tiktoken", "numpy", "counterpoint")
GIT_SECONDS = 10
"""Against a git that hangs, as on a file system that does not respond."""


def versions(device: str) -> dict[str, Any]:
    """Plain values for `versions.json`; None for what is unknown."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).resolve().parent),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that tracks the files of `folder`, and whether they differ from it; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    # An installed copy inside somebody's own repository is not tracked by it.
    if commit is None or not _git(folder, "ls-files", "."):
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
