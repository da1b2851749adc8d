"""What a user means by a checkpoint: a run folder, a checkpoint in one, an adapter, merged weights, or a name.

runs/quickstart-...                         its result (`adapter/` or `model/`), else its newest complete checkpoint
runs/quickstart-.../checkpoints/step-000040
an adapter folder                           on the base that its run, its manifest or its config names
a model folder, a Hugging Face name, tiny   the model itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from counterpoint.configs.errors import ConfigError, ModelError
from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import TrainingRun
from counterpoint.train.adapters.attach import load_lora
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.adapters.quantization import Quantization, round_experts
from counterpoint.train.checkpoints.resume import CHECKPOINTS, newest_complete
from counterpoint.train.checkpoints.shards import SHARDS, load_shards
from counterpoint.train.checkpoints.weights import ADAPTER_FILE
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.model.marker import MARKER, why_broken

RUN_FILE = "config.yaml"
RESULTS = ("adapter", "model")


@dataclass(frozen=True, slots=True)
class Found:
    """What a checkpoint consists of. base: the model under it, or the model itself. adapter: LoRA to put on it, or
    None.

    run: settings of the run it came from, where that is known; prompts are then rendered as in training. shards: the
    checkpoint whose shards replace the base's own weights, None for an unsharded model. pin: what its run pinned of the
    base (model/pin.py), None where that is not known.
    """

    source: str
    base: ModelSettings
    adapter: Path | None
    run: TrainingRun | None
    shards: Path | None = None
    pin: Mapping[str, Any] | None = None


def find_checkpoint(name: str, model: ModelSettings | None = None) -> Found:
    """What `name` is. `model` is the base of an adapter that names none, and how weights are held in memory.

    ModelError where nothing is found.
    """
    place = Path(name).expanduser()
    if not place.is_dir():
        if place.exists():
            raise ModelError(f"{name}: a file, not a folder: give a run folder, an adapter, or a model")
        return Found(name, _like(model, name), None, None)
    run = _run_of(place)
    weights = _weights_of(place, name)
    if not (weights / ADAPTER_FILE).is_file():
        if (weights / SHARDS).is_dir():
            return _in_shards(name, weights, run)
        if not (weights / "config.json").is_file():
            raise ModelError(
                f"{name}: holds neither a run, an adapter nor a model (no config.json): name another folder"
            )
        return Found(name, _like(model or (run.model if run else None), str(weights)), None, run)
    base = run.model if run is not None else model or _base_of(weights)
    pin = _pin_of(weights)
    return Found(name, _at(base, pin), weights, run, pin=pin)


def open_checkpoint(checkpoint: Found | str, device: torch.device | str = "cpu") -> LoadedModel:
    """The model in memory, its adapter on it, on the implementations of its run. A name is as of `find_checkpoint`.

    An adapter that was trained with rounded experts computes with them.
    """
    found = find_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    loaded = load_model(found.base, device)
    if found.adapter is not None:
        loaded = loaded.with_model(load_lora(loaded.model, found.adapter))
    if found.shards is not None:
        load_shards(loaded.model, found.shards)
    use_implementations(loaded.model, found.base)
    if (trained := Quantization.of(found.adapter)) is not None:
        round_experts(loaded.model, trained.seed)
    return loaded


def _in_shards(name: str, checkpoint: Path, run: TrainingRun | None) -> Found:
    if run is None:
        raise ModelError(
            f"{name}: the shards of a model that fsdp2 trained, and there is no run file of it: "
            "name it where it was written, RUN/checkpoints/..."
        )
    pin = _pin_of(checkpoint)
    return Found(name, _at(run.model, pin), None, run, checkpoint, pin)


def _pin_of(weights: Path) -> Mapping[str, Any] | None:
    """What the marker of a run's result or checkpoint, or the manifest of an export, says of the base."""
    for file, key in ((MARKER, "base"), ("manifest.json", "base_pin")):
        try:
            pin: Any = json.loads((weights / file).read_bytes()).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(pin, Mapping) and isinstance(pin.get("files"), Mapping) and "revision" in pin:
            return pin
    return None


def _at(base: ModelSettings, pin: Mapping[str, Any] | None) -> ModelSettings:
    """The base at the commit that it was pinned to."""
    if pin is None or base.revision is not None or pin.get("name") != base.name:
        return base
    return base.model_copy(update={"revision": pin["revision"]})


def _run_of(place: Path) -> TrainingRun | None:
    """Settings of the run whose folder, result or checkpoint this is; None where it is none."""
    place = place.resolve()
    run_folder = place
    if place.name in RESULTS:
        run_folder = place.parent
    elif place.parent.name == CHECKPOINTS:
        run_folder = place.parent.parent
    if not (run_folder / RUN_FILE).is_file():
        return None
    try:
        run = load_run(run_folder / RUN_FILE)
    except ConfigError as error:
        raise ModelError(f"{error}: so this run folder cannot be read") from None
    return run if isinstance(run, TrainingRun) else None


def _weights_of(place: Path, name: str) -> Path:
    """The folder of the weights: `place` itself, or of a run folder what it made."""
    if not (place / RUN_FILE).is_file():
        if place.resolve().parent.name == CHECKPOINTS and (fault := why_broken(place)) is not None:
            raise ModelError(f"{name}: not a complete checkpoint ({fault}): take another one of its run")
        return place
    for result in RESULTS:
        if (place / result).is_dir():
            if not (place / result / MARKER).is_file():
                raise ModelError(f"{place / result}: not finished: go on with `counterpoint train --resume {place}`")
            return place / result
    checkpoint, _ = newest_complete(place)
    if checkpoint is None:
        raise ModelError(f"{name}: this run has neither a result nor a complete checkpoint yet: wait for one")
    return checkpoint.folder


def _base_of(adapter: Path) -> ModelSettings:
    """The base that an adapter names: in the manifest of our export, else PEFT's own config."""
    for file, name_key, revision_key in (
        ("manifest.json", "base", "base_revision"),
        ("adapter_config.json", "base_model_name_or_path", "revision"),
    ):
        try:
            value: Any = json.loads((adapter / file).read_bytes())
            name, revision = value[name_key], value.get(revision_key)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if isinstance(name, str) and name:
            return ModelSettings(name=name, revision=revision)
    raise ModelError(f"{adapter}: names no base model: set `model.name`")


def _like(model: ModelSettings | None, name: str) -> ModelSettings:
    """`name` with the number format and implementation of `model`."""
    if model is None:
        return ModelSettings(name=name)
    return model.model_copy(update={"name": name, "adapter": None, "init": "pretrained", "revision": None})
