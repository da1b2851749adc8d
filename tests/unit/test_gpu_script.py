"""benchmarks/gpu.py, as a machine runs it that has torch, transformers and peft and no installation of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_modules import benchmark_module
from tree import ROOT

ABSENT = ("pydantic", "trl", "datasets", "orjson", "openai_harmony", "rich", "wandb", "jsonschema")
START = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.path[0] = {str(ROOT / "benchmarks")!r}
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""


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
