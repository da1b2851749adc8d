from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from counterpoint.configs.errors import RunError
from counterpoint.train.evals.hook import ChannelEval
from counterpoint.train.loop.base_trainer import StatefulCallback, StepCallback
from counterpoint.train.loop.callbacks import AttachmentProof, RunLog
from counterpoint.train.loop.held_out import HeldOut
from counterpoint.train.run.folder import RunFolder
from counterpoint.train.run.progress import Progress


class Told:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []

    def scalars(self, step: int, values: Any) -> None:
        self.values.append((step, dict(values)))

    def table(self, step: int, name: str, columns: Any, rows: Any) -> None: ...

    def close(self) -> None: ...


def test_every_log_line_goes_to_folder_tracker_and_terminal(tiny_run: ModuleType, tmp_path: Path) -> None:
    told, out = Told(), io.StringIO()
    with RunFolder(tmp_path) as folder:
        log = RunLog(folder, told, Progress(out))
        trainer = tiny_run.make(tmp_path, steps=6, every=3, log_every=2, callbacks=[log], logging_first_step=True)
        trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    assert [(step, values) for step, values in told.values] == [
        (line["step"], {k: v for k, v in line.items() if k != "step"}) for line in lines
    ]
    wanted = {
        "step", "loss", "loss_analysis", "loss_commentary", "loss_final", "grad_norm", "learning_rate", "epoch",
        "tokens", "trained_tokens", "tokens_per_second", "trained_tokens_per_second",
    }  # fmt: skip
    assert all(set(line) == wanted for line in lines)
    shown = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in shown] == ["step 1/6", "step 2/6", "step 4/6", "step 6/6"]
    assert all(line.endswith(" left") for line in shown)
    written = (tmp_path / "log.txt").read_text()
    assert "checkpoint of step 3" in written
    assert "checkpoint of step 6" in written


def test_what_works_after_a_step_is_a_step_callback() -> None:
    """The base trainer asks by protocol: a renamed `after_step` would leave an evaluation out in silence."""
    for kind in (HeldOut, ChannelEval):
        assert issubclass(kind, StepCallback)
        assert not issubclass(kind, StatefulCallback)
        assert inspect.signature(kind.after_step).parameters == inspect.signature(StepCallback.after_step).parameters
    assert not issubclass(AttachmentProof, StepCallback)


def test_frozen_adapters_are_refused_before_the_first_step(tiny_run: ModuleType, tmp_path: Path) -> None:
    model = tiny_run.tiny_model()
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            parameter.requires_grad = False
    trainer = tiny_run.make(tmp_path, model=model, callbacks=[AttachmentProof()])
    with pytest.raises(RunError, match="attention in layers 0-1: it would not train"):
        trainer.train()


def test_adapters_without_gradient_are_refused_after_the_first_real_step(tiny_run: ModuleType, tmp_path: Path) -> None:
    model = tiny_run.tiny_model()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "v_proj" in name:
            parameter.register_hook(torch.zeros_like)
    trainer = tiny_run.make(tmp_path, model=model, callbacks=[AttachmentProof()])
    with pytest.raises(RunError, match="still zero after the first step: attention in layers 0-1"):
        trainer.train()
    # Warm-up begins with a rate of 0: the proof waits for the step after it.
    assert trainer.state.global_step == 1
    answers = iter([False, False, True])
    trainer = tiny_run.make(tmp_path, model=model, callbacks=[AttachmentProof(lambda: next(answers))])
    with pytest.raises(RunError, match="still zero"):
        trainer.train()
    assert trainer.state.global_step == 3


def test_full_fine_tuning_has_nothing_to_prove(tiny_run: ModuleType, tmp_path: Path) -> None:
    tiny_run.make(tmp_path, lora=False, steps=2, callbacks=[AttachmentProof()]).train()
