"""A real vLLM server with adapters on a machine without a GPU, started in an environment that has vLLM."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("counterpoint", "configs", "data", "train", "recipes", "conformance")


@contextmanager
def adapter_server(model: Path, folder: Path, variables: dict[str, str]) -> Iterator[str]:
    """The URL of a server of `model` under the name `base`, in float32, while the context is open.

    This package is installed beside vLLM, as a user does, and the plugin that computes experts with adapters there
    (tests/vllm_cpu_experts.py). folder: for what it needs. variables: of its environment.
    """
    python = os.environ.get("COUNTERPOINT_VLLM", sys.executable)
    plugins = _plugins(python, folder)
    sys.path.insert(0, str(ROOT / "tests" / "golden" / "served"))
    try:
        make = importlib.import_module("make")
    finally:
        sys.path.pop(0)
    make.write_o200k(folder / "encodings")
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "base",
        "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16",
        "--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2",
        "--logprobs-mode", "processed_logprobs",
    ]  # fmt: skip
    given = {
        "PYTHONPATH": str(plugins), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "TIKTOKEN_ENCODINGS_BASE": str(folder / "encodings"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", **variables,
    }  # fmt: skip
    with make.running(command, given, "/health") as url:
        yield f"{url}/v1"


def _plugins(python: str, folder: Path) -> Path:
    """A folder for PYTHONPATH with this package, installed, and the plugin of experts."""
    source, target = folder / "source", folder / "plugins"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--target", str(target), str(source)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copyfile(ROOT / "tests" / "vllm_cpu_experts.py", target / "vllm_cpu_experts.py")
    about = target / "vllm_cpu_experts-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm_cpu_experts\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\ncpu_experts = vllm_cpu_experts:register\n")
    return target
