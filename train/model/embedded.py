"""Where the package keeps the embedded model, which `tiny.py` describes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def tiny_folder() -> Path:
    """Where the package keeps the embedded model."""
    return Path(str(resources.files("counterpoint.train.model").joinpath("tiny_base")))
