"""A checkpoint folder that several processes write together; they share the file system."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from counterpoint.configs.errors import RunError
from counterpoint.train.checkpoints import save


def write_together(
    accelerator: Accelerator,
    target: Path,
    fill: Callable[[Path], None],
    details: Mapping[str, Any],
    expected_bytes: int = 0,
) -> None:
    """`save.write_folder` where every process runs `fill` and the main one does the rest.

    An error in one process is raised in all of them, so that none waits for it.
    """
    if accelerator.num_processes == 1:
        save.write_folder(target, fill, details, expected_bytes)
        return
    partial = target.parent / f"{save.PARTIAL}{target.name}"
    stages: list[Callable[[], object]] = [
        lambda: save.begin_folder(target, expected_bytes) if accelerator.is_main_process else None,
        lambda: fill(partial),
        lambda: save.finish_folder(partial, target, details) if accelerator.is_main_process else None,
    ]
    for stage in stages:
        error = _error_of(stage)
        # Collective: reached by every process after each stage, whatever came of it.
        errors = [text for text in gather_object([str(error) if error else None]) if text]
        if not errors:
            continue
        failure = error or RunError(f"{target}: another process failed to save: {errors[0]}")
        if accelerator.is_main_process:
            save.abandon_folder(partial, target, failure, expected_bytes)
        raise failure


def _error_of(stage: Callable[[], object]) -> Exception | None:
    try:
        stage()
    except Exception as error:
        return error
    return None
