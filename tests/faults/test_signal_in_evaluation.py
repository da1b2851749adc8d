"""A signal in an evaluation that would take long, and evaluations that several processes share."""

from __future__ import annotations

import json
import signal
import time

import pytest
from faulty import Place, begun, losses, newest
from forks import CLI, Fork

LONG = ("train.steps=100000", "train.checkpoint_every=1000", "eval.at_end=false")
HOURS = ("eval.samples=20000", "eval.max_new_tokens=64")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_in_a_long_evaluation_is_honoured_within_seconds(place: Place, name: str) -> None:
    """The evaluation after step 2 would take hours; no checkpoint is due."""
    number = signal.Signals[name]
    run = begun(place, *LONG, *HOURS, "eval.every=2", step=2)
    time.sleep(0.5)
    began = time.monotonic()
    run.send(number)
    assert run.wait() == 128 + number, run.told()
    assert time.monotonic() - began < 15
    assert newest(place) == ["step-000002"]
    assert "the evaluation at step 2 is left out: a signal came" in run.told()
    assert "stopped after step 2, with a checkpoint; continue with" in run.told()


def test_a_signal_in_the_evaluation_before_the_first_step(place: Place) -> None:
    run = place.start("train", "my.yaml", *HOURS, "eval.at_start=true")
    run.until("6 steps")
    time.sleep(0.5)
    began = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.wait() == 143, run.told()
    assert time.monotonic() - began < 15
    assert "stopped before the first step: the same command starts it again" in run.told()
    assert newest(place) == []
    told = place(
        "train",
        "my.yaml",
        "eval.at_end=false",
        "--resume",
        "auto",
    )
    assert "step 6/6" in told


@pytest.mark.slow
def test_a_signal_in_the_last_evaluation_leaves_the_result(place: Place) -> None:
    run = begun(place, *HOURS, step=6)
    time.sleep(0.5)
    began = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.wait() == 0, run.told()
    assert time.monotonic() - began < 20
    assert (place.run / "adapter" / "complete.json").is_file()
    assert json.loads((place.run / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_while_held_out_rows_are_read(place: Place, processes: int) -> None:
    rows = (place.folder / "rows.jsonl").read_text()
    (place.folder / "valid.jsonl").write_text(rows * 300)  # so many batches that the signal falls among them
    settings = (*LONG, "data.valid=valid.jsonl", "eval.every=2")
    runs = [place.start("train", "my.yaml", *settings)] if processes == 1 else group(place, *settings)
    runs[0].until("\nstep 2/")
    time.sleep(0.5)
    began = time.monotonic()
    for run in runs:
        run.send(signal.SIGTERM)
    assert {run.wait() for run in runs} == {143}, runs[0].told() + runs[-1].told()
    assert time.monotonic() - began < 15
    assert "the held-out data at step 2 is left out: a signal came" in runs[0].told()
    assert newest(place) == ["step-000002"]
    assert not any("valid_loss" in line for line in losses(place.run))


GRPO = """
recipe: grpo
extends: grpo/tiny_sums
model: {init: random}
output: runs
data: {valid: {type: arithmetic, size: 1500, seed: 9}}
rollout: {action_tokens: 60, completion_tokens: 60}
rewards: [{type: channel}]
grpo: {group: 4}
train: {steps: 100000, batch_rows: 4, checkpoint_every: 1000, log_every: 1, on_no_learning: warn, device: cpu, threads: 1}
eval: {at_start: false, at_end: false, every: 2}
tracking: {wandb: "off"}
"""


def test_a_signal_while_held_out_prompts_are_sampled(place: Place) -> None:
    """The held-out prompts after step 2 would take long; no checkpoint is due."""
    (place.folder / "grpo.yaml").write_text(GRPO)
    run = place.start("train", "grpo.yaml")
    run.until("\nstep 2/")
    time.sleep(0.5)
    began = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.wait() == 143, run.told()
    assert time.monotonic() - began < 15
    assert "the held-out data at step 2 is left out: a signal came" in run.told()
    assert newest(place) == ["step-000002"]


def group(place: Place, *settings: str) -> list[Fork]:
    return place.forks.group(
        CLI, ["train", "my.yaml", "launch.processes=2", "train.batch_rows=1", *settings], folder=place.folder
    )


def test_all_processes_share_an_evaluation(place: Place, whole: Place) -> None:
    """And draw the samples that one draws."""
    prompts = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": n + 1} for n in range(5)]
    (place.folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    place("train", "my.yaml", "name=one", "train.steps=1", "eval.at_start=true", "eval.samples=3")
    processes = group(place, "name=two", "train.steps=1", "eval.at_start=true", "eval.samples=3")
    assert [process.wait() for process in processes] == [0, 0], processes[0].told() + processes[1].told()
    one, two = (next((place.folder / "runs").glob(f"{name}-*")) for name in ("one", "two"))
    for name in ("step-000000-base.jsonl", "step-000001-tuned.jsonl"):
        lines = [[json.loads(line) for line in (run / "eval" / name).read_text().splitlines()] for run in (one, two)]
        assert len(lines[0]) == 15
        if "base" in name:  # later the weights differ in the last bits
            assert lines[0] == lines[1]
        assert [line["id"] for line in lines[0]] == [line["id"] for line in lines[1]]


@pytest.mark.slow
def test_a_signal_to_all_processes_in_an_evaluation(place: Place) -> None:
    processes = group(place, *LONG, *HOURS, "eval.every=2")
    processes[0].until("\nstep 2/")
    time.sleep(2)
    began = time.monotonic()
    for process in processes:
        process.send(signal.SIGTERM)
    assert [process.wait() for process in processes] == [143, 143], processes[0].told() + processes[1].told()
    assert time.monotonic() - began < 30
    assert newest(place) == ["step-000002"]
