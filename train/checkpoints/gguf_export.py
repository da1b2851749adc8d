"""A GGUF file of merged weights, by llama.cpp's own converter.

The converter is not part of any package: it is `convert_hf_to_gguf.py` of a copy of llama.cpp, which is given by its
path and run in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from counterpoint.configs.errors import ModelError

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
GGUF_FILE = "model.gguf"
MAGIC = b"GGUF"
GET = "git clone --depth 1 https://github.com/ggml-org/llama.cpp"


def find_converter(given: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The converter's file: `given` or $LLAMA_CPP (the script, or the folder that holds it), and its package there.

    ModelError with what to do where one of the two is missing.
    """
    named = given or environment.get(VARIABLE)
    if not named:
        raise ModelError(f"--to gguf needs llama.cpp's converter: `{GET}`, then --converter llama.cpp (or ${VARIABLE})")
    path = Path(named).expanduser()
    script = path / SCRIPT if path.is_dir() else path
    if not script.is_file():
        raise ModelError(f"{script}: there is no such file: `{GET}`, then --converter llama.cpp")
    if find_spec("gguf") is None:
        raise ModelError("--to gguf: the package gguf is not installed: pip install 'counterpoint[gguf]'")
    return script


def convert(script: Path, source: Path, target: Path) -> None:
    """Run the converter on a folder of merged bf16 weights. ModelError with its last line where it fails."""
    command = [sys.executable, str(script), str(source), "--outfile", str(target), "--outtype", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:300]
        raise ModelError(f"{script.name} failed ({said}): take a copy of llama.cpp that knows gpt-oss, or --to bf16")
    with target.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{script.name} wrote no GGUF file: take a newer copy of llama.cpp, or --to bf16")
