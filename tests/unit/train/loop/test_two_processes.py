"""Two processes (gloo, CPU) train as one does, save together, and resume on another number of processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import CLI, TINY_RUN, Forks, wait_for
from safetensors.torch import load_file

from counterpoint.configs.errors import ModelError
from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
from counterpoint.train.checkpoints.shards import SHARDS
from counterpoint.train.export.exporter import export

SHARDED = f"{TINY_RUN}:sharded_command"
# 24 rows, which every number of processes shares out evenly: else the end of a pass repeats rows, so that all can step.
OPTIONS = {"steps": 8, "every": 3, "log_every": 2, "n_rows": 25}


class Runs:
    """Runs of tiny_run.py on so many processes; `whole` is the one on one process, made once."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.folder = forks, folder
        self.made: dict[str, dict[str, Any]] = {}

    def __call__(self, folder: Path, processes: int, code: int = 0, **options: Any) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        options = {**OPTIONS, "batch": 4 // processes, "accumulation": 2, **options}
        group = self.forks.group(f"{TINY_RUN}:forked", str(folder), options, folder=folder, processes=processes)
        codes = wait_for(group)
        assert any(codes) == (code != 0), "".join(fork.told() for fork in group)
        path = folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def whole(self, **options: Any) -> dict[str, Any]:
        key = json.dumps(options, sort_keys=True)
        if key not in self.made:
            self.made[key] = self(self.folder / str(len(self.made)), 1, **options)
        return self.made[key]


@pytest.fixture(scope="module")
def run(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(forks, tmp_path_factory.mktemp("whole"))


def recipe(forks: Forks, folder: Path, function: str, *settings: str) -> Path:
    """The run folder of `counterpoint train quickstart SETTINGS` in two processes."""
    folder.mkdir(exist_ok=True)
    arguments = ["train", "quickstart", "tracking.wandb=off", "output=.", "launch.processes=2", *settings]
    group = forks.group(function, arguments, folder=folder)
    assert wait_for(group) == [0, 0], "".join(fork.told() for fork in group)
    return next(path.parent for path in folder.glob("*/run.json"))


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], first: int = 0) -> None:
    expected = [log for log in theirs["logs"] if log["step"] > first]
    assert len(ours["logs"]) == len(expected)
    for a, b in zip(ours["logs"], expected, strict=True):
        assert a.keys() == b.keys()
        assert all(a[key] == pytest.approx(b[key], rel=2e-5) for key in a)


def test_two_processes_train_as_one(run: Runs, tmp_path: Path) -> None:
    one = run.whole()
    two = run(tmp_path / "two", 2)
    assert_close(two, one)
    names = sorted(path.name for path in (tmp_path / "two" / "checkpoints" / "step-000008").iterdir())
    assert names == [
        "adapter_config.json", "adapter_model.safetensors", "complete.json", "loop_state.json", "optimizer.pt",
        "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt", "trainer_state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_resume_on_another_number_of_processes(run: Runs, tmp_path: Path, before: int, after: int) -> None:
    whole = run.whole()
    folder = tmp_path / "broken"
    run(folder, before, code=1, fault=("step", 4, signal.SIGTERM))
    (folder / "result.json").unlink()
    resumed = run(folder, after, resume=True)
    assert resumed["from"] == 5
    assert_close(resumed, whole, first=5)


@pytest.mark.slow
def test_a_sharded_run_resumes_sharded_and_says_so_where_it_is_not(run: Runs, tmp_path: Path) -> None:
    whole = run.whole()
    folder = tmp_path / "broken"
    run(folder, 2, code=1, fault=("step", 4, signal.SIGTERM), fsdp2=True)
    (folder / "result.json").unlink()
    with pytest.raises(AssertionError, match="it was written with fsdp2, and this run is ddp or one process"):
        run(folder, 1, resume=True)
    resumed = run(folder, 2, resume=True, fsdp2=True)
    assert resumed["from"] == 5
    assert_close(resumed, whole, first=5)


@pytest.mark.parametrize("fsdp2", [False, True], ids=["ddp", "fsdp2"])
def test_the_lean_path_trains_in_two_processes_as_in_one(run: Runs, tmp_path: Path, fsdp2: bool) -> None:
    # Two steps: the rows do not divide evenly, so at the end of a pass two processes repeat one.
    short = {"lean": True, "steps": 2, "log_every": 1}
    one = run.whole(**short)
    two = run(tmp_path / "two", 2, fsdp2=fsdp2, **short)
    assert two["sharded"] is fsdp2
    assert_close(two, one)
    for name, total in one["weights"].items():
        assert two["weights"][name] == pytest.approx(total, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_an_mxfp4_base_trains_in_two_processes_as_in_one_and_stays_packed(run: Runs, tmp_path: Path) -> None:
    packed = {"lean": True, "packed": True, "steps": 4, "every": 2, "log_every": 1}
    one = run.whole(**packed)
    # Two layers of 4 experts, 32 x 64 and 32 x 32 numbers of half a byte, and a byte of scale for each 32.
    assert one["packed_bytes"] == 2 * 4 * (32 * 64 + 32 * 32) * 17 // 32
    for name, fsdp2, share in (("ddp", False, 1), ("fsdp2", True, 2)):
        two = run(tmp_path / name, 2, fsdp2=fsdp2, **packed)
        assert two["sharded"] is fsdp2
        assert two["packed_bytes"] == one["packed_bytes"] // share
        assert_close(two, one)
        (tmp_path / name / "result.json").unlink()
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-000004")
        resumed = run(tmp_path / name, 2, fsdp2=fsdp2, resume=True, **packed)
        assert resumed["from"] == 2
        assert resumed["logs"] == two["logs"][2:]
    files = [tmp_path / name / "checkpoints" / "step-000004" / "adapter_model.safetensors" for name in ("ddp", "fsdp2")]
    ddp, fsdp2 = map(load_file, files)
    assert ddp.keys() == fsdp2.keys()
    assert all(torch.allclose(ddp[name], tensor, atol=1e-5) for name, tensor in fsdp2.items())


@pytest.mark.slow
def test_a_checkpoint_of_a_model_trained_in_full_and_in_parts_is_read_whole(forks: Forks, tmp_path: Path) -> None:
    run = recipe(
        forks, tmp_path, SHARDED, "train.steps=2", "train.checkpoint_every=1", "train.learning_rate=1e-3",
        "train.warmup_steps=0", "train.schedule=constant", "lora.enabled=false", "eval.prompts=example:sums_eval",
        "eval.every=2", "eval.samples=1", "eval.max_new_tokens=4", "launch.strategy=fsdp2",
    )  # fmt: skip
    first, last = (run / "checkpoints" / f"step-00000{step}" for step in (1, 2))
    final = load_file(run / "model" / "model.safetensors")
    loaded = open_checkpoint(find_checkpoint(str(last))).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in final.items())
    export(find_checkpoint(str(first)), "bf16", tmp_path / "merged")
    before = load_file(tmp_path / "merged" / "model.safetensors")
    assert any(not torch.equal(before[name].float(), tensor.bfloat16().float()) for name, tensor in final.items())

    command = ["evaluate", str(first), "eval.samples=1", "eval.max_new_tokens=4", "eval.base=false"]
    evaluated = forks.command(*command, "--out", "evaluated", folder=tmp_path)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr

    moved = tmp_path / "elsewhere"
    shutil.copytree(first, moved)
    with pytest.raises(ModelError, match=r"there is no run file of it: name it where it was written"):
        find_checkpoint(str(moved))
    found = find_checkpoint(str(last))
    (last / SHARDS / ".metadata").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(ModelError, match=r"pytorch_model_fsdp_0: cannot be read \(its index asks for posix.getcwd"):
        open_checkpoint(found)


@pytest.mark.slow
def test_a_sharded_run_is_evaluated_by_all_processes_as_a_whole_one(forks: Forks, tmp_path: Path) -> None:
    settings = (
        "train.steps=2", "train.batch_rows=4", "train.accumulation=1", "eval.every=1", "eval.samples=1",
        "eval.prompts=example:sums_eval", "eval.max_new_tokens=12", "eval.temperature=1.0",
    )  # fmt: skip
    written, adapters = {}, {}
    for strategy, function in (("ddp", CLI), ("fsdp2", SHARDED)):
        run = recipe(forks, tmp_path / strategy, function, *settings, f"launch.strategy={strategy}")
        adapters[strategy] = load_file(run / "adapter" / "adapter_model.safetensors")
        saved = load_file(run / "checkpoints" / "step-000002" / "adapter_model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in adapters[strategy].items())
        files = sorted((run / "eval").glob("step-*.jsonl"))
        written[strategy] = {file.name: file.read_text() for file in files}
    assert sorted(written["ddp"]) == [
        f"step-00000{i}-{who}.jsonl" for i, who in ((0, "base"), (1, "tuned"), (2, "tuned"))
    ]
    assert written["fsdp2"]["step-000000-base.jsonl"] == written["ddp"]["step-000000-base.jsonl"]
    assert all(
        len(text.splitlines()) == len(written["ddp"][name].splitlines()) for name, text in written["fsdp2"].items()
    )
