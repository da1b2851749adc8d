"""Training that knows its rounding: from a step on, experts compute with what an export in MXFP4 would hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from counterpoint.train.adapters.quantization import Quantization, round_experts


class Quantized(TrainerCallback):
    """Rounds anew after each step, once the weights have changed.

    share: of the steps, after which it begins. seed: of the thresholds, the same in every step and in the export.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.seed, self.began = share, seed, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._round(state, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._round(state, kwargs["model"])

    def _round(self, state: Any, model: Any) -> None:
        if state.global_step >= math.ceil(round(self.share * state.max_steps, 6)):
            round_experts(model, self.seed)
            self.began = True

    def write(self, folder: Path) -> None:
        """How it is rounded, beside an adapter that was trained so."""
        if self.began:
            Quantization(self.seed).write(folder)
