"""The best checkpoint by a measured figure, and the end of a run whose figure no longer becomes better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.configs.train_section import StopSettings, TrainSettings
from counterpoint.train.loop.base_trainer import BaseTrainer

_KEPT = ("best_step", "best", "stop_best", "waited", "seen_step")


class KeepBest(TrainerCallback):
    """Reads `trainer.measured` after each step; added after all callbacks that measure.

    A `StepCallback` and a `StatefulCallback` (base_trainer.py), for every process; the main one's counts, since it
    alone samples. best_step, best: the step with the best figure and the figure; None before one was measured. ended:
    why `train.stop_when` ended the run.
    """

    def __init__(self, trainer: BaseTrainer, settings: TrainSettings, say: Callable[[str], None]) -> None:
        self.trainer, self.keep, self.stop, self.say = trainer, settings.keep_best, settings.stop_when, say
        self.best_step: int | None = None
        self.best: float | None = None
        self.stop_best: float | None = None
        self.waited = 0
        self.seen_step = 0
        self.ended: str | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.trainer.measured.clear()  # of the model before its first step, which has no checkpoint

    def after_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        measured, step = dict(self.trainer.measured), state.global_step
        self.trainer.measured.clear()
        if step <= self.seen_step or not any(figure in measured for figure in self._figures()):
            return  # a resumed run measures the step of its checkpoint again
        self.seen_step = step
        if self.keep in measured and is_better(self.keep, measured[self.keep], self.best):
            self.best_step, self.best = step, measured[self.keep]
            self.trainer.kept_step = step
            control.should_save = True
        if self.stop is not None and self.stop.metric in measured:
            self._wait(self.stop, measured[self.stop.metric], step, control)

    def _wait(self, stop: StopSettings, value: float, step: int, control: TrainerControl) -> None:
        if is_better(stop.metric, value, self.stop_best, stop.least):
            self.stop_best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= stop.patience and step < self.trainer.state.max_steps:
            than = "finite" if self.stop_best is None else f"better than {self.stop_best:.4g}"
            self.ended = f"{stop.metric} was not {than} in {self.waited} measurements"
            self.say(f"step {step}: {self.ended}: the run ends here (train.stop_when)")
            control.should_training_stop = control.should_save = True

    def agree(self) -> None:
        """Every process takes what the main one found. Called by every process, after training."""
        if self.trainer.accelerator.num_processes > 1:
            self.best_step, self.best, self.ended = gather_object([(self.best_step, self.best, self.ended)])[0]

    def _figures(self) -> list[str | None]:
        return [self.keep, self.stop.metric if self.stop else None]

    def state_dict(self) -> dict[str, Any]:
        return {"figures": self._figures(), **{name: getattr(self, name) for name in _KEPT}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["figures"] != self._figures():
            return  # resumed with other figures: they are compared from here on
        for name in _KEPT:
            setattr(self, name, state[name])
        self.trainer.kept_step = self.best_step


def is_better(figure: str, value: float, best: float | None, least: float = 0.0) -> bool:
    """Losses are better where they are lower, all others where they are higher. NaN is never better."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - least if figure.endswith("_loss") else value > best + least
