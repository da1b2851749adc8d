"""What a run starts from: `model.adapter`, or a run folder as `model.name`, as the base and the adapter on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import EMBEDDED_MODEL, LoraSettings, ModelSettings
from counterpoint.configs.schema import Run, SftRun, TrainingRun
from counterpoint.train.adapters.attach import load_lora, lora_of
from counterpoint.train.checkpoints.find import CHECKPOINTS, RESULTS, RUN_FILE, find_checkpoint
from counterpoint.train.checkpoints.weights import ADAPTER_FILE
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.pin import check_same_base

R = TypeVar("R", bound=Run)


def with_start(run: R) -> R:
    """`run` with `model.name` a model, `model.adapter` an adapter's folder, and `lora` as of that adapter.

    Paths become absolute, since the run folder records them. ConfigError where an adapter does not fit the run,
    ModelError where nothing is found.
    """
    model = start_of(run.model)
    values: dict[str, Any] = {"model": model}
    if isinstance(run, TrainingRun) and model.adapter is not None:
        lora = _as_of_adapter(run.lora, model.adapter)
        # Only supervised training drops out.
        values["lora"] = lora if isinstance(run, SftRun) else lora.model_copy(update={"dropout": 0.0})
    return run.model_copy(update=values) if model != run.model or "lora" in values else run


def start_of(model: ModelSettings) -> ModelSettings:
    """The section with its names resolved; itself where it names no run and no adapter."""
    if model.adapter is None and not _is_run_or_adapter(model.name):
        return model
    if model.init == "random":
        raise ConfigError("model: `init: random` draws new weights, which fit no trained adapter or run: leave it out")
    own_base = model.adapter is not None and "name" in model.model_fields_set
    named = model.name if model.adapter is None else model.adapter
    if not Path(named).expanduser().exists():
        raise ConfigError(f"model.adapter: {named}: no such folder: name a run, a checkpoint or an adapter's folder")
    found = find_checkpoint(named, model if own_base else None)
    if model.adapter is not None:
        if found.adapter is None:
            raise ConfigError(f"model.adapter: {named} holds no adapter, but a model: name it as `model.name`")
    elif found.adapter is None:
        if found.shards is not None:
            raise ConfigError(f"model.name: {named} is a part of a sharded run: let it finish, then name its result")
        return model.model_copy(update={"name": str(Path(found.base.name).resolve())})
    base = model.name if own_base else _absolute(found.base.name)
    revision = model.revision if own_base or model.revision else found.base.revision
    return model.model_copy(update={"name": base, "revision": revision, "adapter": str(Path(found.adapter).resolve())})


def put_start(loaded: LoadedModel, model: ModelSettings, trainable: bool = False) -> LoadedModel:
    """The model with the adapter of `model.adapter` on it, where it names one."""
    if model.adapter is None:
        return loaded
    return loaded.with_model(load_lora(loaded.model, model.adapter, trainable=trainable))


def _is_run_or_adapter(name: str) -> bool:
    place = Path(name).expanduser()
    if name == EMBEDDED_MODEL or not place.is_dir():
        return False
    is_part = place.name in RESULTS or place.resolve().parent.name == CHECKPOINTS
    return (
        (place / RUN_FILE).is_file()
        or (place / ADAPTER_FILE).is_file()
        or (is_part and not (place / "config.json").is_file())
    )


def _absolute(name: str) -> str:
    place = Path(name).expanduser()
    return str(place.resolve()) if name != EMBEDDED_MODEL and place.is_dir() else name


def _as_of_adapter(lora: LoraSettings, folder: str) -> LoraSettings:
    """The adapter's own shape. ConfigError for a setting of the run file that contradicts it."""
    if not lora.enabled:
        raise ConfigError(
            "lora.enabled: false trains all weights, and `model.adapter` is trained as an adapter: export it with "
            "`counterpoint export --to bf16`, and name that as `model.name`"
        )
    own = lora_of(folder)
    for name in sorted(lora.model_fields_set - {"enabled"}):
        given, its = getattr(lora, name), getattr(own, name)
        if name == "expert_rank":
            given, its = given or lora.rank, its or own.rank
        if given != its:
            raise ConfigError(
                f"lora.{name}: {given} is set, and the adapter {folder} has {its}: an adapter keeps its shape: set "
                f"{its}, or leave it out"
            )
    return own


def check_adapter_base(model: ModelSettings, pin: Mapping[str, Any]) -> None:
    """ModelError where the adapter's run pinned another base than `pin`, that of this run."""
    if model.adapter is not None:
        check_same_base(find_checkpoint(model.adapter, model).pin, pin, f"model.adapter: {model.adapter}")
