"""A run's settings as text: for the run folder, and to compare two runs."""

from __future__ import annotations

from typing import Any

import yaml

from counterpoint.configs.problems import shown
from counterpoint.configs.redact import redact
from counterpoint.configs.schema import RunSettings


def plain(run: RunSettings) -> dict[str, Any]:
    """Every setting as plain values (JSON types), defaults written out, secrets hidden, the recipe first."""
    value = redact(run.model_dump(mode="json"))
    return {"recipe": value.pop("recipe"), **value}


def to_yaml(run: RunSettings) -> str:
    """A run file with every setting; `load_run` loads an equal run from it."""
    return yaml.safe_dump(plain(run), sort_keys=False, allow_unicode=True, width=120)


def differences(old: RunSettings, new: RunSettings) -> list[str]:
    """What changed, one line per setting: "`lora.rank` was `16` and is `8`"."""
    return _differences(plain(old), plain(new), "")


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"`{path}` was {_written(old)} and is {_written(new)}"]


def _written(value: Any) -> str:
    if isinstance(value, dict | list):
        return "`" + yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip() + "`"
    return shown(value)
