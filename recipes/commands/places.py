"""The files and folders that a run file or a command names, looked for before anything slow is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, ModelError, RunError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings


def check_places(settings: Any, *, trains: bool = True) -> None:
    """NoDataError, ModelError, ConfigError or RunError for the first place that is not there; nothing is downloaded.

    trains: whether there must be data to train on, and a folder for the run.
    """
    if trains:
        check_data(settings.data)
    _check_files(_prompt_paths(getattr(settings, "eval", None)))
    _check_model(settings.model, "model")
    teacher = getattr(getattr(settings, "grpo", None), "teacher", None)
    if teacher is not None and teacher.model is not None:
        _check_model(teacher.model, "grpo.teacher.model")
    if trains:
        _check_output(Path(settings.output))


def check_data(data: Any) -> None:
    """NoDataError for the first file of the section `data` that is not there."""
    _check_files(_data_paths(data))


def _check_files(paths: Iterable[str]) -> None:
    from counterpoint.data.rows.containers import find, is_file_source

    for path in paths:
        if is_file_source(path):
            find(path)


def check_checkpoint(name: str) -> None:
    """ModelError for a name that must be meant as a folder, and is none: what stands beside it is searched for one of a
    like name. A name such as `owner/name` may be on Hugging Face unless there is a folder `owner` here."""
    place = Path(name).expanduser()
    if place.exists() or name == EMBEDDED_MODEL or not (_must_be_folder(name) or place.parent.is_dir()):
        return
    here = [each.name for each in place.parent.iterdir() if each.is_dir()] if place.parent.is_dir() else []
    like = difflib.get_close_matches(place.name, here, n=1, cutoff=0.5)
    meant = f"; did you mean {place.parent / like[0]}?" if like else ""
    raise ModelError(f"{name}: there is no such folder{meant or ': give a run, a checkpoint, an adapter or a model'}")


def _data_paths(data: Any) -> Iterator[str]:
    for source in (*data.train, *(getattr(data, "valid", None) or ())):
        path = getattr(source, "path", None)
        if path is not None and getattr(source, "share", None) is None:
            yield path
    if (tools := getattr(data, "tools", None)) is not None:
        yield tools


def _prompt_paths(sampled: Any) -> Iterator[str]:
    """Of an evaluation: its prompts, and those of its tasks."""
    for path in (
        getattr(sampled, "prompts", None),
        *(getattr(task, "path", None) for task in getattr(sampled, "tasks", ())),
    ):
        if path is not None:
            yield path


def _must_be_folder(name: str) -> bool:
    return name.count("/") != 1 or name[0] in "./~"


def _check_model(model: ModelSettings, section: str) -> None:
    name = model.name
    if name != EMBEDDED_MODEL and not Path(name).expanduser().exists() and _must_be_folder(name):
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
