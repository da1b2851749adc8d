"""What users' functions return as a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def earned(value: Any) -> dict[str, float]:
    """A reward by name: a number's name is `""`; nothing for None. TypeError or ValueError for anything else."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {str(name): number(each) for name, each in value.items() if each is not None}
    return {"": number(value)}


def number(value: Any) -> float:
    """A finite number of Python, numpy or torch. TypeError or ValueError for anything else."""
    if not isinstance(value, bool | int | float):
        item = getattr(value, "item", None)
        if item is None:
            raise TypeError(f"a reward of type {type(value).__name__}: return a number, numbers by name, or None")
        value = item()
    if not math.isfinite(value):
        raise ValueError(f"a reward of {value}: return a finite number, or None where it does not apply")
    return float(value)
