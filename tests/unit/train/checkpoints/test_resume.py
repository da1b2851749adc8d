"""A run that was interrupted, in whatever way, resumes bit for bit as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from forks import TINY_RUN, Forks
from transformers import TrainerCallback

from counterpoint.train.checkpoints.resume import newest_complete
from counterpoint.train.run.signals import StopSignal

# 24 rows, 4 a step: 6 steps an epoch. Saves fall inside and at the end of epochs, and inside windows of the log.
OPTIONS = {"steps": 14, "every": 3, "log_every": 2}


class Jobs:
    """Runs of tiny_run.py in forked processes; `whole` is a run without a fault, made once."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.folder = forks, folder
        self.whole: dict[str, dict[str, Any]] = {}

    def run(self, folder: Path, **options: Any) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        self.last = self.forks.start(f"{TINY_RUN}:forked", str(folder), options, folder=folder)
        return self.last.wait()

    def unbroken(self, **options: Any) -> dict[str, Any]:
        key = json.dumps(options, sort_keys=True)
        if key not in self.whole:
            folder = self.folder / str(len(self.whole))
            assert self.run(folder, **options) == 0, self.last.told()
            self.whole[key] = json.loads((folder / "result.json").read_text())
        return self.whole[key]

    def assert_goes_on(self, folder: Path, **options: Any) -> int:
        """Resumes the run in `folder`; what it logs and its last weights are those of an unbroken one. Its start."""
        assert self.run(folder, resume=True, **options) == 0, self.last.told()
        resumed = json.loads((folder / "result.json").read_text())
        whole = self.unbroken(**options)
        assert resumed["weights"] == whole["weights"]
        assert resumed["logs"] == [log for log in whole["logs"] if log["step"] > resumed["from"]]
        return resumed["from"]


@pytest.fixture(scope="module")
def jobs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(forks, tmp_path_factory.mktemp("whole"))


# A save makes 11 calls of fsync (7 files, their folder, its parent, the marker, the folder), one of rename and replace.
PHASES = [
    ("phase", "save_model", "adapter_model.safetensors"),
    ("phase", "_save_optimizer_and_scheduler", "optimizer.pt"),
    ("phase", "_save_optimizer_and_scheduler", "scheduler.pt"),
    ("phase", "_save_rng_state", "rng_state.pth"),
    ("phase", "save_to_json", "trainer_state.json"),
    ("call", "fsync", 13),
    ("call", "rename", 2),
    ("call", "fsync", 20),
    ("call", "replace", 2),
    ("call", "fsync", 22),
]


@pytest.mark.parametrize("fault", PHASES, ids=lambda f: "-".join(map(str, f[1:])))
def test_kill_in_every_phase_of_the_second_save(jobs: Jobs, tmp_path: Path, fault: tuple[Any, ...]) -> None:
    assert jobs.run(tmp_path, fault=fault, **OPTIONS) == -9
    whole, _ = newest_complete(tmp_path)
    assert whole is not None
    # The last call of fsync comes after the marker is in place.
    assert whole.step == (6 if fault == ("call", "fsync", 22) else 3)
    assert jobs.assert_goes_on(tmp_path, **OPTIONS) == whole.step


@pytest.mark.parametrize("step", [2, 4, 8, 13])
def test_kill_in_a_step(jobs: Jobs, tmp_path: Path, step: int) -> None:
    assert jobs.run(tmp_path, fault=("step", step, signal.SIGKILL), **OPTIONS) == -9
    assert jobs.assert_goes_on(tmp_path, **OPTIONS) == step // 3 * 3


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_steps_of_one_run(jobs: Jobs, tmp_path: Path, kills: int) -> None:
    draw = random.Random(0)
    options = {**OPTIONS, "steps": 2 * kills, "every": 1, "keep": 2}
    step = 0
    for _ in range(kills):
        step = draw.randint(step, min(step + 4, 2 * kills - 2))
        assert jobs.run(tmp_path, resume=True, fault=("step", step, signal.SIGKILL), **options) == -9
    assert jobs.assert_goes_on(tmp_path, **options) == step


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [4, 5])
def test_a_signal_saves_within_the_step(jobs: Jobs, tmp_path: Path, number: int, code: int, step: int) -> None:
    """Step 5 is the last of an epoch: its checkpoint is at the boundary."""
    assert jobs.run(tmp_path, fault=("step", step, number), **OPTIONS) == code
    stopped = json.loads((tmp_path / "result.json").read_text())
    assert stopped["from"] == 0
    assert jobs.assert_goes_on(tmp_path, **OPTIONS) == step + 1


@pytest.mark.parametrize("options", [{"lora": False}, {"accumulation": 1, "batch": 5}, {"every": 1}], ids=str)
def test_other_runs_go_on_as_well(jobs: Jobs, tmp_path: Path, options: dict[str, Any]) -> None:
    options = {**OPTIONS, **options}
    half = {**options, "accumulation": options.get("accumulation", 2)}
    fault = ("step", 7, signal.SIGKILL) if half["accumulation"] > 1 else ("call", "rename", 3)
    assert jobs.run(tmp_path, fault=fault, **options) == -9
    assert jobs.assert_goes_on(tmp_path, **options) == {3: 6, 1: 7}[options["every"]]


def test_a_damaged_checkpoint_is_passed_over(jobs: Jobs, tmp_path: Path) -> None:
    assert jobs.run(tmp_path, fault=("step", 7, signal.SIGKILL), **OPTIONS) == -9
    optimizer = tmp_path / "checkpoints" / "step-000006" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert jobs.assert_goes_on(tmp_path, **OPTIONS) == 3


def test_state_of_callbacks_guard_and_meter_goes_on(tiny_run: ModuleType, tmp_path: Path) -> None:
    class Counter(TrainerCallback):
        def __init__(self) -> None:
            self.seen = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    first, second = Counter(), Counter()
    trainer = tiny_run.make(tmp_path, steps=6, every=3, callbacks=[first])
    trainer.train()
    folder = tmp_path / "checkpoints" / "step-000003"
    again = tiny_run.make(tmp_path / "again", steps=6, every=5, callbacks=[second])
    again.train(resume_from_checkpoint=str(folder))
    assert first.seen == second.seen == 6
    assert list(trainer.spikes.losses) == list(again.spikes.losses)
    assert (trainer.meter.total_tokens, trainer.meter.trained_tokens) == (
        again.meter.total_tokens,
        again.meter.trained_tokens,
    )
    # The interval of the new process holds, not the checkpoint's.
    assert [p.name for p in sorted((tmp_path / "again" / "checkpoints").iterdir())] == ["step-000005", "step-000006"]


class Evaluation(TrainerCallback):
    """Notes which checkpoints exist when it is called; at `step` it does what it is given."""

    def __init__(self, folder: Path, step: int = -1, act: Any = None) -> None:
        self.folder, self.step, self.act = folder, step, act
        self.seen: list[tuple[int, list[str]]] = []

    def after_step(self, args: Any, state: Any, control: Any) -> None:
        self.seen.append((state.global_step, sorted(p.name for p in (self.folder / "checkpoints").glob("step-*"))))
        if state.global_step == self.step:
            self.act(control)


def test_a_step_is_saved_before_it_is_evaluated(tiny_run: ModuleType, tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    tiny_run.make(tmp_path, steps=4, every=2, callbacks=[evaluation]).train()
    assert evaluation.seen == [
        (1, []),
        (2, ["step-000002"]),
        (3, ["step-000002"]),
        (4, ["step-000002", "step-000004"]),
    ]


@pytest.mark.parametrize("steps", [4, 6])
def test_a_finished_run_is_evaluated_and_not_trained(tiny_run: ModuleType, tmp_path: Path, steps: int) -> None:
    """Step 4 is inside an epoch, step 6 at the end of one."""
    trainer = tiny_run.make(tmp_path, steps=steps, every=steps)
    trainer.train()
    evaluation = Evaluation(tmp_path)
    again = tiny_run.make(tmp_path, steps=steps, every=steps, callbacks=[evaluation], model=tiny_run.tiny_model(9))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / f"step-{steps:06d}"))
    assert [step for step, _ in evaluation.seen] == [steps]
    assert again.curve.logs == []
    assert again.state.global_step == steps
    weights = tiny_run.weights_of(trainer)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny_run.weights_of(again).items())


def test_a_resumed_run_first_evaluates_where_it_begins(tiny_run: ModuleType, tmp_path: Path) -> None:
    tiny_run.make(tmp_path, steps=6, every=3).train()
    evaluation = Evaluation(tmp_path)
    again = tiny_run.make(tmp_path / "again", steps=6, every=9, callbacks=[evaluation])
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "step-000003"))
    assert [step for step, _ in evaluation.seen] == [3, 4, 5, 6]


def test_a_signal_during_an_evaluation_ends_the_run_there(tiny_run: ModuleType, tmp_path: Path) -> None:
    with StopSignal() as stop:
        evaluation = Evaluation(tmp_path, 3, lambda control: os.kill(os.getpid(), signal.SIGTERM))
        trainer = tiny_run.make(tmp_path, steps=6, every=5, callbacks=[evaluation], stop=stop)
        trainer.train()
        assert trainer.stopped
    assert stop.exit_code == 143
    assert evaluation.seen[-1][0] == trainer.state.global_step == 3
    whole, _ = newest_complete(tmp_path)
    assert whole is not None
    assert whole.step == 3


def test_no_evaluation_after_a_signal(tiny_run: ModuleType, tmp_path: Path) -> None:
    with StopSignal() as stop:
        evaluation = Evaluation(tmp_path)
        callbacks = [tiny_run.Signal(2, signal.SIGTERM), evaluation]
        trainer = tiny_run.make(tmp_path, steps=6, every=5, callbacks=callbacks, stop=stop)
        trainer.train()
    assert [step for step, _ in evaluation.seen] == [1, 2]
    assert trainer.state.global_step == 3


def test_a_threshold_of_the_evaluation_saves_and_stops(tiny_run: ModuleType, tmp_path: Path) -> None:
    def stop(control: Any) -> None:
        control.should_save = control.should_training_stop = True

    trainer = tiny_run.make(tmp_path, steps=6, every=5, callbacks=[Evaluation(tmp_path, 2, stop)])
    trainer.train()
    assert trainer.state.global_step == 2
    assert not trainer.stopped
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_nothing_in_a_checkpoint_runs_code(tiny_run: ModuleType, tmp_path: Path) -> None:
    tiny_run.make(tmp_path, steps=1).train()
    folder = tmp_path / "checkpoints" / "step-000001"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "complete.json", "loop_state.json", "optimizer.pt",
        "rng_state.pth", "scheduler.pt", "trainer_state.json",
    }  # fmt: skip
    torch.load(folder / "optimizer.pt", weights_only=True)
    torch.load(folder / "scheduler.pt", weights_only=True)
