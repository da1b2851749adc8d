"""Experts that compute with what will be exported: base and adapter merged and rounded to MXFP4, anew after each step.

quantization.json   of an adapter that trained so: it is right only when it is rounded in the same way
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ModelError
from counterpoint.train.adapters.projections import projections

QUANTIZATION_FILE = "quantization.json"


@dataclass(frozen=True)
class Quantization:
    """How an adapter's merge is rounded. seed: of the thresholds."""

    seed: int
    format: str = "mxfp4"
    rounding: str = "dithered"

    def write(self, folder: Path) -> None:
        (folder / QUANTIZATION_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @staticmethod
    def of(folder: Path | None) -> Quantization | None:
        """Of an adapter's folder, None where it trained without. ModelError for a file of another kind."""
        if folder is None or not (folder / QUANTIZATION_FILE).is_file():
            return None
        try:
            found = Quantization(**json.loads((folder / QUANTIZATION_FILE).read_bytes()))
        except (ValueError, TypeError):
            raise ModelError(f"{folder / QUANTIZATION_FILE}: cannot be read: take another copy of it") from None
        if (found.format, found.rounding) != ("mxfp4", "dithered"):
            raise ModelError(f"{folder / QUANTIZATION_FILE}: {found.format}, {found.rounding} is not known: update")
        return found


def round_experts(model: Any, seed: int) -> None:
    """Let the experts' adapters compute with their rounded merge until the next call (see `experts.ParamWrapper`)."""
    for part in projections(model):
        if part.module is not None:
            part.module.rounded = part.all_dithered(seed)


def unround_experts(model: Any) -> None:
    for part in projections(model):
        if part.module is not None:
            part.module.rounded = None
