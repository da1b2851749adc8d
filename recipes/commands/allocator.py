"""How torch's CUDA allocator is set up, before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch reads its settings: the name of now, and the one before."""
GROWING = "expandable_segments:True"


def grow_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have the allocator grow its segments: rows of changing length would leave gaps in those of fixed size.

    To be called before torch is imported; the processes of a launcher inherit it. What the environment sets, stays.
    """
    if not any(name in environment for name in NAMES):
        environment[NAMES[0]] = GROWING


def set_otherwise(environment: Mapping[str, str] = os.environ) -> str | None:
    """The variable that keeps segments from growing, with its value; None without one."""
    name = next((name for name in NAMES if name in environment), None)
    return None if name is None or GROWING in environment[name] else f"{name}={environment[name]}"
