"""Which checkpoint a run resumes from, and whether it may.

A run resumes only with the data and the settings that it began with: the newest complete checkpoint is compared with
the new process by the data's fingerprint and by every setting that affects the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints.save import PARTIAL, checkpoints_in
from counterpoint.train.model.marker import UNFINISHED, read_marker, why_broken
from counterpoint.train.model.pin import check_same_base

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
    "rollout.server.adapters",
    "rollout.server.adapters_port",
    "rollout.server.parallel",
    "rollout.server.retries",
    "rollout.server.timeout",
    "rollout.server.url",
    "rollout.server.url_file",
    "rollout.server.wait",
    "train.accumulation",
    "train.activation_checkpointing",
    "train.activation_offload",
    "train.batch_rows",
    "train.checkpoint_every",
    "train.device",
    "train.keep_best",
    "train.keep_checkpoints",
    "train.log_every",
    "train.no_learning_steps",
    "train.on_loss_spike",
    "train.on_no_learning",
    "train.stop_when",
    "train.threads",
)
# Settings that a run may change on its way where the user says so (--overwrite): what the loop reads anew in every
# process. All others made the weights, the optimizer's state or the order of the data that a checkpoint holds.
STEERING_SETTINGS = (
    "data",  # its tokens are compared by their fingerprint
    "dpo",
    "grpo",
    "model.attention",
    "model.experts",
    "model.norms",
    "model.loss",
    "rewards",
    "rollout",
    "tools",
    "train",
)
FIXED_SETTINGS = (
    "data.shuffle",
    "grpo.group",
    "grpo.efforts",
    "grpo.iterations",
    "train.frozen",
    "train.frozen_layers",
    "train.optimizer",
    "train.rates",
)
"""Of `STEERING_SETTINGS`, those that stay as they were."""


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
    rows_per_step: rows in one optimizer step over all processes. base: what is pinned of the base (model/pin.py), None
    for a checkpoint of a version that pinned nothing.
    """

    settings: Mapping[str, Any]
    data: str
    rows_per_step: int
    base: Mapping[str, Any] | None = None

    def as_details(self) -> dict[str, Any]:
        details = {"settings": self.settings, "data": self.data, "rows_per_step": self.rows_per_step}
        return details | ({"base": self.base} if self.base is not None else {})


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
    """RunError when the data changed, or a setting that matters did and `allow_changes` is not given; and with it, for
    a setting that a checkpoint cannot be continued with.

    Returns one line for each changed setting that was allowed; it is in force from the next step on.
    """
    where = f"cannot resume from {checkpoint.folder}"
    if checkpoint.details["data"] != identity.data:
        raise RunError(
            f"{where}: the training data changed (fingerprint {checkpoint.details['data'][:12]} then, "
            f"{identity.data[:12]} now): restore the old data, or start a new run"
        )
    if identity.base is not None:
        then = checkpoint.details.get("base")
        check_same_base(then, identity.base, where)
        if then is not None and then.get("adapter") != identity.base.get("adapter"):
            raise RunError(f"{where}: model.adapter is not the one that the run began with: restore it")
    changes = changed_settings(checkpoint.details["settings"], identity.settings)
    # A setting that only one of both versions of this program knows made nothing of what the checkpoint holds.
    fixed = [
        change for change in changes if "unset" not in change.split() and not _is_steering(change.partition(" ")[0])
    ]
    rows_then = checkpoint.details["rows_per_step"]
    if rows_then != identity.rows_per_step:
        change = f"rows per step (batch_rows x accumulation x processes) {rows_then} -> {identity.rows_per_step}"
        changes.append(change)
        fixed.append(change)
    if fixed and allow_changes:
        raise RunError(
            f"{where}: the checkpoint was made with another setting, which --overwrite cannot change: "
            f"{'; '.join(fixed)}: use the old one, or start a new run"
        )
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


def _is_steering(path: str) -> bool:
    return _is_under(path, STEERING_SETTINGS) and not _is_under(path, FIXED_SETTINGS)


def _is_under(path: str, sections: Sequence[str]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)


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
