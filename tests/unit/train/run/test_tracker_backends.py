"""TensorBoard and MLflow as they are installed: the same names and values as given, tables, settings, and resuming."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.train_section import TrackingSettings
from counterpoint.train.run.tracker_backends import MLFLOW_RUN, MLFLOW_STORE, TENSORBOARD
from counterpoint.train.run.tracking import CLOSE_SECONDS, NoTracker, Trackers, start_tracker

SECRET = "hf_abcdefghijklmnopqrstuvwxyz"
CONFIG = {"lora": {"rank": 16, "layers": None}, "data": {"train": f"https://user:{SECRET}@host/x"}}
GIVEN = {
    "loss": 1.25,
    "rewards/answer/zero_variance": 0.5,
    "valid_loss": 2.0,
    "adapter/parameters/experts.gate_up": 9.0,
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their imports alone take longer than a run waits for on a busy machine."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in CLOSE_SECONDS:
        monkeypatch.setitem(CLOSE_SECONDS, name, 600.0)


def track(folder: Path, steps: dict[int, dict[str, float]], first_step: int = 0, **settings: Any) -> list[str]:
    """What a run would be told while it gives these numbers."""
    warned: list[str] = []
    folder.mkdir(exist_ok=True)
    section = TrackingSettings(wandb="off", **settings)
    tracker = start_tracker(section, folder, CONFIG, warned.append, first_step)
    for step, values in steps.items():
        tracker.scalars(step, values)
    tracker.table(max(steps), "eval/samples", ["prompt", "text"], [["a|b", f"with {SECRET}"], ["c", None]])
    tracker.close()
    return warned


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / TENSORBOARD))
    found.Reload()
    return found


def test_tensorboard_has_the_names_and_values(tmp_path: Path) -> None:
    assert track(tmp_path / "run", {1: GIVEN, 2: {"loss": 1.0}}, tensorboard=True) == []
    found = events(tmp_path / "run")
    assert set(found.Tags()["scalars"]) == set(GIVEN)
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 1.25), (2, 1.0)]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert set(texts) == {"settings/text_summary", "eval/samples/text_summary"}
    assert '"rank": 16' in texts["settings/text_summary"]
    assert texts["eval/samples/text_summary"].splitlines()[2] == "| a\\|b | with [hidden] |"
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert SECRET.encode() not in written


def test_tensorboard_of_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    track(run, {step: {"loss": float(step)} for step in range(1, 6)}, tensorboard=True)
    track(run, {step: {"loss": 10.0 * step} for step in range(4, 7)}, first_step=3, tensorboard=True)
    shown = [(event.step, event.value) for event in events(run).Scalars("loss")]
    assert shown == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]


def test_mlflow_has_the_names_and_values(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = tmp_path / "run"
    assert track(run, {1: GIVEN, 2: {"loss": 1.0}}, mlflow=True, project="mine", group="both", tags=("new",)) == []
    client = MlflowClient(tracking_uri=f"sqlite:///{run / MLFLOW_STORE}")
    experiment = client.get_experiment_by_name("mine")
    (only,) = client.search_runs([experiment.experiment_id])
    assert (only.info.run_name, only.info.status) == ("run", "FINISHED")
    assert only.data.metrics == {**GIVEN, "loss": 1.0}
    assert [(m.step, m.value) for m in client.get_metric_history(only.info.run_id, "loss")] == [(1, 1.25), (2, 1.0)]
    assert only.data.params["lora.rank"] == "16"
    assert only.data.params["lora.layers"] == "null"
    assert SECRET not in only.data.params["data.train"]
    assert only.data.tags.items() >= {"group": "both", "new": ""}.items()
    (table,) = run.glob("mlflow/**/step-000002.json")
    assert SECRET not in table.read_text()
    assert "[hidden]" in table.read_text()
    # A resumed run goes on in it.
    track(run, {3: {"loss": 0.5}}, first_step=2, mlflow=True, project="mine")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.run_id == (run / MLFLOW_RUN).read_text().strip()
    assert [m.step for m in client.get_metric_history(only.info.run_id, "loss")] == [1, 2, 3]


def test_mlflow_refuses_no_name_of_a_reward(tmp_path: Path) -> None:
    assert track(tmp_path / "run", {1: {"rewards/my (own) réward/mean": 1.0}}, mlflow=True) == []


def test_mlflow_without_its_server_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (told,) = track(tmp_path / "run", {1: GIVEN}, mlflow=True)
    assert told.startswith("mlflow: ")
    assert told.endswith("the run continues without it (tracking.mlflow: false silences this)")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_what_is_not_installed_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    (told,) = track(tmp_path / "run", {1: GIVEN}, **{name: True})
    assert told.startswith(f"{name}: ModuleNotFoundError: ")
    assert f"pip install 'counterpoint[{name}]'" in told


def test_several_trackers_are_one_and_none_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(start_tracker(TrackingSettings(wandb="off"), tmp_path, {}, print), NoTracker)
    for module in ("torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    warned: list[str] = []
    both = start_tracker(
        TrackingSettings(wandb="off", tensorboard=True, mlflow=True), tmp_path, {}, warned.append
    )  # fmt: skip
    assert isinstance(both, Trackers)
    both.scalars(1, GIVEN)
    both.close()
    assert {line.partition(":")[0] for line in warned} == {"tensorboard", "mlflow"}
