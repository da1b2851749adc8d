"""What is measured between two log lines. Its state goes into checkpoints, so that a resumed run logs the same numbers.

Legend: T trained positions, C channels (context, analysis, commentary, final).
"""

from __future__ import annotations

import time
from typing import Any

import torch

from counterpoint.data.harmony.spans import CHANNEL_NAMES

N_CHANNELS = len(CHANNEL_NAMES)


class Meter:
    """Sums over a logging window on this process; `reduced` tensors come from all processes.

    sums_2C: weight x nll and weight by channel, float64, on the model's device until they are read.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        # Tokens of the whole run, over all processes.
        self.trained_tokens = 0
        self.total_tokens = 0
        self._clear()

    def _clear(self) -> None:
        # MPS and others lack float64, but only CPU and CUDA run here.
        self.sums_2C = torch.zeros(2, N_CHANNELS, dtype=torch.float64, device=self.device)
        self.losses: list[float] = []
        self.window_trained = 0
        self.window_total = 0
        self.window_seconds = 0.0

    def add_targets(self, nll_T: torch.Tensor, weights_T: torch.Tensor, channels_T: torch.Tensor) -> None:
        """Loss by channel of one forward pass; no synchronisation with the device."""
        weights_T = weights_T.double()
        both_2T = torch.stack([weights_T * nll_T.double(), weights_T])
        self.sums_2C.index_add_(1, channels_T.long(), both_2T)

    def add_step(self, loss: float, trained: int, total: int, seconds: float) -> None:
        """One optimizer step: its loss, the tokens of all processes, and the seconds it took."""
        self.losses.append(loss)
        self.window_trained += trained
        self.window_total += total
        self.window_seconds += seconds
        self.trained_tokens += trained
        self.total_tokens += total

    def read(self, sums_2C: torch.Tensor) -> dict[str, float]:
        """The window's metrics from the sums of all processes; the window starts anew."""
        numbers = {"loss": sum(self.losses) / len(self.losses)} if self.losses else {}
        weighted_C, weight_C = sums_2C.tolist()
        for name, value, weight in zip(CHANNEL_NAMES, weighted_C, weight_C, strict=True):
            if weight > 0:
                numbers[f"loss_{name}"] = value / weight
        seconds = max(self.window_seconds, 1e-9)
        numbers["trained_tokens_per_second"] = self.window_trained / seconds
        numbers["tokens_per_second"] = self.window_total / seconds
        numbers["trained_tokens"] = self.trained_tokens
        numbers["tokens"] = self.total_tokens
        self._clear()
        return numbers

    def state(self, sums_2C: torch.Tensor) -> dict[str, Any]:
        """Plain numbers for a checkpoint; `sums_2C` as for `read`."""
        return {
            "sums": sums_2C.tolist(),
            "losses": self.losses,
            "window": [self.window_trained, self.window_total, self.window_seconds],
            "tokens": [self.trained_tokens, self.total_tokens],
        }

    def restore(self, state: dict[str, Any], is_main: bool) -> None:
        """Continue a saved window; its sums over all processes are given to the main one."""
        self._clear()
        if is_main:
            self.sums_2C += torch.tensor(state["sums"], dtype=torch.float64, device=self.device)
        self.losses = list(state["losses"])
        self.window_trained, self.window_total, self.window_seconds = state["window"]
        self.trained_tokens, self.total_tokens = state["tokens"]


class StepClock:
    """Seconds spent in steps alone: evaluation, logging and saving do not count."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def begin(self) -> None:
        self._began = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._began
