from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import TrainerControl

from counterpoint.configs.train_section import StopSettings, TrainSettings
from counterpoint.train.loop.best import KeepBest, is_better

STOP = TrainSettings(keep_best="channel_correct", stop_when=StopSettings(metric="valid_loss", patience=2, least=0.1))


@pytest.mark.parametrize(
    ("figure", "value", "best", "better"),
    [
        ("valid_loss", 1.0, None, True),
        ("valid_loss", 0.8, 0.85, False),
        ("valid_easy_loss", 0.7, 0.85, True),
        ("channel_correct", 0.9, 0.85, False),
        ("valid_margin", 1.0, 0.85, True),
        ("valid_loss", math.nan, None, False),
        ("valid_reward", math.inf, 0.5, False),
    ],
)
def test_which_figure_is_better_by_more_than_a_tenth(figure: str, value: float, best: float, better: bool) -> None:
    assert is_better(figure, value, best, least=0.1) == better


def test_its_state_goes_through_a_checkpoint_and_a_step_measured_again_counts_once(
    tiny_run: ModuleType, tmp_path: Path
) -> None:
    trainer = tiny_run.make(tmp_path, steps=9)
    trainer.state.max_steps = 9
    told: list[str] = []

    def after(best: KeepBest, step: int, **measured: float) -> TrainerControl:
        trainer.state.global_step, control = step, TrainerControl()
        trainer.measured.update(measured)
        best.after_step(trainer.args, trainer.state, control)
        return control

    first = KeepBest(trainer, STOP, told.append)
    assert after(first, 1, channel_correct=0.5, valid_loss=2.0).should_save
    assert not after(first, 2).should_save
    assert not after(first, 3, channel_correct=0.4, valid_loss=1.95).should_save
    state: dict[str, Any] = json.loads(json.dumps(first.state_dict()))

    again = KeepBest(trainer, STOP, told.append)
    again.load_state_dict(state)
    assert (again.best_step, trainer.kept_step) == (1, 1)
    assert not after(again, 3, channel_correct=0.4, valid_loss=1.95).should_training_stop
    assert told == []
    control = after(again, 4, channel_correct=0.6, valid_loss=1.99)
    assert (control.should_training_stop, again.best_step, again.best) == (True, 4, 0.6)
    assert told == ["step 4: valid_loss was not better than 2 in 2 measurements: the run ends here (train.stop_when)"]

    other = KeepBest(trainer, TrainSettings(keep_best="right_calls"), told.append)
    other.load_state_dict(state)
    assert other.best is None
