"""TensorBoard and MLflow as backends of train/run/tracking.py, by their own clients.

transformers' callbacks for both would give the metrics other names (`train/loss`), leave out what is measured beside
the trainer, write its arguments unredacted, and raise in the run where a server is gone.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counterpoint.configs.train_section import TrackingSettings

TENSORBOARD, MLFLOW_STORE, MLFLOW_RUN = "tensorboard", "mlflow.db", "mlflow_run.txt"
_TABLE_CELL = 2000
_PARAMETERS, _PARAMETER = 100, 500
_NOT_IN_NAMES = re.compile(r"[^0-9A-Za-z_\-. :/]")
"""What MLflow refuses in names of metrics."""


class TensorBoardBackend:
    """Scalars and, as texts in Markdown, tables."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        self.writer.add_text(name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines), step)


@contextmanager
def tensorboard(run_folder: Path, config: Mapping[str, Any], first_step: int) -> Iterator[TensorBoardBackend]:
    """first_step: of a run that resumes; later steps of earlier files are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run_folder / TENSORBOARD), purge_step=first_step + 1 if first_step else None)
    if not first_step:
        writer.add_text("settings", "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines()))
    yield TensorBoardBackend(writer)
    writer.close()


class MlflowBackend:
    """One run of MLflow, by its client: nothing of its global state is touched."""

    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(time.time() * 1000)
        metrics = [Metric(_NOT_IN_NAMES.sub("_", name), float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = {column: [row[n] for row in rows] for n, column in enumerate(columns)}
        text = json.dumps({"step": step, "columns": columns, "data": data}, ensure_ascii=False)
        self.client.log_text(self.run, text, f"{_NOT_IN_NAMES.sub('_', name)}/step-{step:06d}.json")


@contextmanager
def mlflow(settings: TrackingSettings, run_folder: Path, config: Mapping[str, Any]) -> Iterator[MlflowBackend]:
    """A new run, or the one that the run folder already has."""
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

    place = run_folder.resolve()
    local = not os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(tracking_uri=f"sqlite:///{place / MLFLOW_STORE}" if local else None)
    known = place / MLFLOW_RUN
    if known.is_file():
        run = known.read_text(encoding="utf-8").strip()
        client.update_run(run, status="RUNNING")
    else:
        found = client.get_experiment_by_name(settings.project)
        artifacts = (place / "mlflow").as_uri() if local else None
        experiment = found.experiment_id if found else client.create_experiment(settings.project, artifacts)
        tags = {**({"group": settings.group} if settings.group else {}), **dict.fromkeys(settings.tags, "")}
        run = client.create_run(experiment, run_name=run_folder.name, tags=tags).info.run_id
        known.write_text(f"{run}\n", encoding="utf-8")
        parameters = [Param(name, value[:_PARAMETER]) for name, value in _flat(config)]
        for start in range(0, len(parameters), _PARAMETERS):
            client.log_batch(run, params=parameters[start : start + _PARAMETERS])
    yield MlflowBackend(client, run)
    client.set_terminated(run)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """`lora.rank` and its value, of every setting."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _cell(value: Any) -> str:
    return str(value)[:_TABLE_CELL].replace("|", "\\|").replace("\n", " ")
