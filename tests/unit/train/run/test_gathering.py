"""Two processes, one of which samples for longer than the timeout of the run's own group of processes."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from forks import Forks

from counterpoint.configs.train_section import LaunchSettings
from counterpoint.train.run.gathering import patient_gather


def process(folder: str, sampling_timeout: float) -> int:
    """The second process samples for 2 seconds, twice; a step of training may take 1."""
    rank = int(os.environ["RANK"])
    PartialState(cpu=True, timeout=timedelta(seconds=1))
    gather = patient_gather(LaunchSettings(sampling_timeout=sampling_timeout).sampling_timeout)
    told: dict[str, object] = {}
    for name, collect in (("sampled", gather), ("step", gather_object)):
        time.sleep(2 * rank)
        try:
            told[name] = collect([rank, name])
        except (RuntimeError, dist.DistBackendError) as error:
            told[name] = "timed out" if "imed out" in str(error) else "lost"
            break
    (Path(folder) / f"{rank}.json").write_text(json.dumps(told))
    return 0


def told(forks: Forks, folder: Path, sampling_timeout: float) -> dict[str, object]:
    folder.mkdir()
    group = forks.group(f"{__file__}:process", str(folder), sampling_timeout, folder=folder)
    assert [fork.wait() for fork in group] == [0, 0], "".join(fork.told() for fork in group)
    return json.loads((folder / "0.json").read_text())


@pytest.mark.slow
def test_what_is_sampled_is_waited_for_longer_than_a_step(forks: Forks, tmp_path: Path) -> None:
    found = told(forks, tmp_path / "patient", sampling_timeout=60)
    assert found == {"sampled": [0, "sampled", 1, "sampled"], "step": "timed out"}
    assert told(forks, tmp_path / "impatient", sampling_timeout=1) == {"sampled": "timed out"}


def test_a_process_alone_waits_for_none() -> None:
    assert patient_gather(1)([1, 2]) == [1, 2]
