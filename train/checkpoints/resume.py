"""Which checkpoint a run resumes from, and whether it may.

A run resumes only with the data and the settings that it began with: the newest complete checkpoint is compared with
the new process by the data's fingerprint and by every setting that affects the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints.save import PARTIAL, checkpoints_in
from counterpoint.train.model.marker import UNFINISHED, read_marker, why_broken

CHECKPOINTS = "checkpoints"
# Settings that may differ between a checkpoint and the run that resumes from it: they do not change what is learned.
# The rows of a step are compared as one number (`rows_per_step`), so that their split over processes may change.
FREE_SETTINGS = (
    "extends",
    "name",
    "output",
    "eval",
    "tracking",
    "launch",
    "train.accumulation",
    "train.activation_checkpointing",
    "train.batch_rows",
    "train.checkpoint_every",
    "train.device",
    "train.keep_checkpoints",
    "train.log_every",
    "train.on_loss_spike",
    "train.threads",
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, its step, and the details that its marker holds."""

    folder: Path
    step: int
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Identity:
    """What a run must share with a checkpoint to resume from it.

    settings: the resolved run file as plain values (secrets redacted); data: the training data's fingerprint;
    rows_per_step: rows in one optimizer step over all processes.
    """

    settings: Mapping[str, Any]
    data: str
    rows_per_step: int

    def as_details(self) -> dict[str, Any]:
        return {"settings": self.settings, "data": self.data, "rows_per_step": self.rows_per_step}


def newest_complete(run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint of a run, and one line for each newer or broken one that was skipped."""
    passed_over = [f"{folder.name}: {UNFINISHED}" for folder in sorted((run_folder / CHECKPOINTS).glob(f"{PARTIAL}*"))]
    for folder in reversed(checkpoints_in(run_folder / CHECKPOINTS)):
        problem = why_broken(folder)
        if problem is None:
            return read_checkpoint(folder), passed_over
        passed_over.append(f"{folder.name}: {problem}")
    return None, passed_over


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint by its folder. RunError when it is not complete."""
    problem = why_broken(folder)
    if problem is not None:
        raise RunError(f"{folder}: {problem}: take another checkpoint, or its run folder for the newest complete one")
    details = read_marker(folder)
    return Checkpoint(folder, int(details["step"]), details)


def check_same_run(checkpoint: Checkpoint, identity: Identity, allow_changes: bool = False) -> list[str]:
    """RunError when the data changed, or a setting that matters did and `allow_changes` is not given.

    Returns one line for each changed setting that was allowed.
    """
    where = f"cannot resume from {checkpoint.folder}"
    if checkpoint.details["data"] != identity.data:
        raise RunError(
            f"{where}: the training data changed (fingerprint {checkpoint.details['data'][:12]} then, "
            f"{identity.data[:12]} now): restore the old data, or start a new run"
        )
    changes = changed_settings(checkpoint.details["settings"], identity.settings)
    rows_then = checkpoint.details["rows_per_step"]
    if rows_then != identity.rows_per_step:
        changes.append(f"rows per step (batch_rows x accumulation x processes) {rows_then} -> {identity.rows_per_step}")
    if changes and not allow_changes:
        raise RunError(
            f"{where}: the settings changed: {'; '.join(changes)}: "
            "use the old ones, start a new run, or pass --overwrite to resume with the new ones"
        )
    return changes


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`path old -> new` for each setting that matters and differs."""
    flat_before, flat_now = _significant(before), _significant(now)
    absent = object()
    changes = []
    for path in sorted({*flat_before, *flat_now}):
        old, new = flat_before.get(path, absent), flat_now.get(path, absent)
        if old != new:
            shown = ["unset" if value is absent else json.dumps(value) for value in (old, new)]
            changes.append(f"{path} {shown[0]} -> {shown[1]}")
    return changes


def _significant(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if prefix in FREE_SETTINGS:
            return
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    walk("", json.loads(json.dumps(settings)))
    return flat
