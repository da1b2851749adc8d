"""benchmarks/gpu.py, as a machine runs it that has torch, transformers and peft and no installation of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_modules import benchmark_module
from tree import ROOT

from counterpoint.configs.model_section import LoraSettings

ABSENT = ("pydantic", "trl", "datasets", "orjson", "openai_harmony", "rich", "wandb", "jsonschema")
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.path[0] = {str(ROOT / "benchmarks")!r}
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_the_cuda_forms_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, "--device", "cpu", "--tiny", "--emulate"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OUT": str(tmp_path)}
    run = subprocess.run(
        [*command, "--parts", "env,attention,norm,loss"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [record["name"] for record in results if record["result"] == "measured"] == ["env"]
    passed = [record["name"] for record in results if record["result"] == "pass"]
    assert len(passed) == len(results) - 1 == 27
    assert run.stdout.splitlines()[-1].startswith("27 passed, 0 failed, 0 known failures, 1 measurements, ")


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    """On a CPU, with all packages; those whose kernels need a GPU say so."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"]
    run = subprocess.run(command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    measured = {record["name"].partition(",")[0] for record in results if record["result"] == "measured"}
    assert {"env", "kernels", "sampling bf16", "sampling mxfp4", "step mxfp4 checkpointing=true 64"} <= measured


def test_its_lora_is_what_the_settings_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pydantic is missing they cannot be asked; each setting that came later broke the parts with models."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    lora = vars(benchmark_module("gpu_model").LORA)
    assert lora == LoraSettings(rank=16, alpha=32.0).model_dump()


@pytest.mark.parametrize(
    ("name", "failed", "cuda_forms", "result", "code"),
    [
        ("norm", [], True, "pass", 0),
        ("norm", ["dx"], True, "fail", 1),
        ("loss", ["dx_row"], True, "known", 0),
        ("loss", ["dx_row", "loss"], True, "fail", 1),
        ("loss", [], True, "unexpected pass", 0),
        ("loss", [], False, "pass", 0),
        ("loss", ["dx_row"], False, "fail", 1),
    ],
)
def test_a_failure_is_known_for_its_numbers_and_forms_alone(
    name: str, failed: list[str], cuda_forms: bool, result: str, code: int
) -> None:
    results = benchmark_module("gpu_results")
    results.KNOWN["loss"] = results.KnownFailure("fault 2", "it is rounded too early", frozenset({"dx", "dx_row"}))
    record = {"name": name, **results.judged(name, failed, cuda_forms)}
    assert record["result"] == result
    assert ("fault 2" in record.values()) == (result in ("known", "unexpected pass"))
    assert results.exit_code([record, {"name": "env", "result": "measured"}]) == code
    assert ("take its entry out of KNOWN" in results.table([record], 1.0)) == (result == "unexpected pass")
