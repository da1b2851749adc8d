"""The 8-bit optimizers, where their packages are installed: bit for bit over a resume, and as large as planned."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.schema import SftRun
from counterpoint.train.loop.optimizers import PACKAGES, prepare_optimizer
from counterpoint.train.loop.training_arguments import sft_arguments
from counterpoint.train.plan.estimate import Estimate
from counterpoint.train.plan.memory import Batch

SCRIPT = Path(__file__).parents[1] / "tiny_run.py"
OPTIONS = {"steps": 8, "every": 3, "log_every": 2, "lora": False}
# What tests/conftest.py knows a missing package by.
BOTH = [pytest.param(name, id=package) for name, package in PACKAGES.items()]
TORCHAO = [pytest.param("adamw_torch_8bit", id="torchao")]


def run(folder: Path, processes: int = 1, environment: dict[str, str] | None = None, **options: Any) -> tuple[int, Any]:
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    result = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), json.dumps({**OPTIONS, **options})],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    path = folder / "result.json"
    return result.returncode, json.loads(path.read_text()) if path.is_file() else result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", BOTH)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    code, whole = run(tmp_path / "whole", optim=optimizer)
    assert code == 0, whole
    code, _ = run(tmp_path / "broken", optim=optimizer, fault=("step", 4, signal.SIGKILL))
    assert code == -signal.SIGKILL
    code, resumed = run(tmp_path / "broken", optim=optimizer, resume=True)
    assert code == 0, resumed
    assert resumed["from"] == 3
    assert resumed["weights"] == whole["weights"]
    assert resumed["logs"] == [log for log in whole["logs"] if log["step"] > 3]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", TORCHAO)
def test_a_sharded_run_trains_as_one_process_does(tmp_path: Path, optimizer: str) -> None:
    short = {"optim": optimizer, "steps": 3, "log_every": 1, "n_rows": 25}
    code, one = run(tmp_path / "one", batch=4, **short)
    assert code == 0, one
    code, two = run(tmp_path / "two", 2, batch=2, fsdp2=True, **short)
    assert code == 0, two
    assert two["sharded"]
    assert [log["loss"] for log in two["logs"]] == pytest.approx([log["loss"] for log in one["logs"]], rel=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", TORCHAO)
def test_a_missing_compiler_is_told(tmp_path: Path, optimizer: str) -> None:
    away = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code, told = run(tmp_path, environment=away, optim=optimizer)
    assert code == 1
    assert "train.optimizer: adamw_torch_8bit: torchao 0" in told
    assert "does not run on this cpu (InvalidCxxCompiler" in told


@pytest.fixture
def clean_overrides() -> Iterator[None]:
    """bitsandbytes remembers parameters that are not in 8 bits by their address, for the whole process."""
    yield
    if importlib.util.find_spec("bitsandbytes") is not None:
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().initialize()


@pytest.mark.slow
@pytest.mark.usefixtures("clean_overrides")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", BOTH)
def test_its_state_is_as_large_as_planned(tiny_run: Any, tmp_path: Path, optimizer: str, dtype: torch.dtype) -> None:
    shape = {**tiny_run.CONFIG, "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 64}
    torch.manual_seed(0)
    config = GptOssConfig(**shape)
    config._attn_implementation = "eager"
    model: Any = GptOssForCausalLM(config).to(dtype)
    trainer = tiny_run.make(tmp_path / "run", model=model, steps=1, optim=optimizer, rate=1e-3)
    trainer._save_checkpoint = lambda *_: None
    trainer.train()
    config.save_pretrained(tmp_path)
    settings = SftRun.model_validate(
        {
            "recipe": "sft", "data": {"train": "x.jsonl"}, "train": {"optimizer": optimizer},
            "model": ModelSettings(name=str(tmp_path), dtype=str(dtype).removeprefix("torch.")),
            "lora": LoraSettings(enabled=False),
        }
    )  # fmt: skip
    estimate = Estimate.of(settings, Batch(1, 8, 8), "cpu")
    planned = estimate.moment_bytes * estimate.shape.trainable
    assert state_size(trainer.optimizer) == pytest.approx(planned, rel=0.02)


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the moments, without the tables that turn codes into numbers."""
    total = 0
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and name != "step" and not name.startswith("qmap"):
                parts = [value.codes, value.scale] if hasattr(value, "codes") else [value]
                total += sum(part.nbytes for part in parts)
    return total


@pytest.mark.parametrize(("optimizer", "package"), PACKAGES.items())
def test_a_missing_package_is_told(optimizer: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ConfigError, match=rf"{optimizer} needs {package}: pip install 'counterpoint\[{package}\]'"):
        prepare_optimizer(optimizer, "cpu")


def test_adamw_needs_nothing() -> None:
    prepare_optimizer("adamw", "cpu")


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [("adamw", "adamw_torch"), ("adamw_8bit", "adamw_8bit"), ("adamw_torch_8bit", "adamw_torch_8bit")],
)
def test_what_transformers_calls_it(tmp_path: Path, optimizer: str, name: str) -> None:
    train = {"optimizer": optimizer, "device": "cpu"}
    run = SftRun.model_validate({"recipe": "sft", "data": {"train": "x.jsonl"}, "train": train})
    assert sft_arguments(run, tmp_path, 10).optim == name
