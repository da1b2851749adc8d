"""The files and folders that a run file names, looked for before anything slow is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, ModelError, RunError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings


def check_places(settings: Any) -> None:
    """NoDataError, ModelError, ConfigError or RunError for the first place that is not there; nothing is downloaded."""
    from counterpoint.data.rows.containers import find, is_file_source

    for path in _data_paths(settings):
        if is_file_source(path):
            find(path)
    _check_model(settings.model, "model")
    teacher = getattr(getattr(settings, "grpo", None), "teacher", None)
    if teacher is not None:
        _check_model(teacher.model, "grpo.teacher.model")
    _check_output(Path(settings.output))


def _data_paths(settings: Any) -> Iterator[str]:
    data = settings.data
    for source in (*data.train, *(getattr(data, "valid", None) or ())):
        path = getattr(source, "path", None)
        if path is not None:
            yield path


def _check_model(model: ModelSettings, section: str) -> None:
    name = model.name
    if name != EMBEDDED_MODEL and not Path(name).expanduser().exists() and (name.count("/") != 1 or name[0] in "./~"):
        raise ModelError(
            f"{section}.name: there is no folder `{name}`: give `{EMBEDDED_MODEL}`, a checkpoint folder, or a Hugging "
            "Face name such as openai/gpt-oss-20b"
        )
    if model.adapter is not None and not Path(model.adapter).exists():
        raise ConfigError(
            f"{section}.adapter: {model.adapter}: no such folder: name a run, a checkpoint or an adapter's folder"
        )


def _check_output(output: Path) -> None:
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    if not place.is_dir():
        raise RunError(f"output: {place} is a file: name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"output: {place} cannot be written to: name another folder")
