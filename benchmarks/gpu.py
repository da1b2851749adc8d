"""A GPU's first minutes: every CUDA path against float64 or float32, then step time and memory at gpt-oss-20b's shape.

    python benchmarks/gpu.py                                   # on one GPU, under eight minutes
    python benchmarks/gpu.py --parts attention,experts,loss    # some of the parts
    python benchmarks/gpu.py --device cpu --tiny               # without one: the same parts on tiny shapes, CPU forms
    python benchmarks/gpu.py --device cpu --tiny --emulate     # CUDA forms, with stand-ins for kernels that CPUs lack

Each part runs in a process of its own (a device-side assert or a hang costs that part alone), with a time limit on a
GPU. It needs torch, transformers and peft alone, of the versions that the machine has, and no installation. Results: a
table, and $OUT/gpu.jsonl (or ./gpu.jsonl). The exit code is 0 where nothing failed but known failures, else 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gpu_results

ROOT = Path(__file__).resolve().parents[1]


class Part(NamedTuple):
    """A function of a module beside this one, and how many seconds it may take on a GPU."""

    module: str
    function: str
    seconds: int


PARTS = {
    "env": Part("gpu_times", "environment", 60),
    "attention": Part("gpu_operators", "attention", 60),
    "norm": Part("gpu_operators", "norm", 30),
    "experts": Part("gpu_operators", "experts", 120),
    "loss": Part("gpu_operators", "loss", 60),
    "model": Part("gpu_model", "parity", 120),
    "kernels": Part("gpu_kernels", "kernels", 120),
    "step_kernels": Part("gpu_times", "kernel_steps", 150),
    "step_bf16": Part("gpu_times", "bf16_steps", 150),
    "step_mxfp4": Part("gpu_times", "mxfp4_steps", 150),
    "layer": Part("gpu_times", "layer", 90),
    "layer_kernels": Part("gpu_times", "layer_kernels", 90),
    "long": Part("gpu_times", "long_steps", 120),
    "sampling": Part("gpu_times", "sampling", 120),
    "peer": Part("gpu_times", "peer_steps", 120),
}


def main() -> int:
    options = _options()
    _prepare_imports()
    for name in options.parts:
        importlib.import_module(PARTS[name].module)  # once, for all processes that are forked below
    began, results, path = time.perf_counter(), [], Path(os.environ.get("OUT", ".")) / "gpu.jsonl"
    for name in options.parts:
        start = time.perf_counter()
        left = options.budget - (start - began)
        if left < 10:
            results.append({"name": name, "result": "fail", "error": "left out: the budget is spent"})
            continue
        results += _in_own_process(name, options, min(PARTS[name].seconds, left) if options.device == "cuda" else left)
        gpu_results.write(results, path)
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
    gpu_results.write(results, path)
    print("\n" + gpu_results.table(results, time.perf_counter() - began))
    return gpu_results.exit_code(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes")
    parser.add_argument("--emulate", action="store_true", help="with --device cpu: the CUDA forms")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--budget", type=float, help="seconds for all parts, 460 on a GPU; later parts are left out")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}: use {', '.join(PARTS)}")
    if options.emulate and options.device != "cpu":
        parser.error("--emulate stands in for CUDA on a CPU: add --device cpu")
    options.budget = options.budget or (460 if options.device == "cuda" else 3600)
    return options


def _prepare_imports() -> None:
    """`counterpoint` from this checkout, installed or not, and torch's settings from the environment.

    Without pydantic an empty class stands in for the LoRA settings, which are named but not made here.
    """
    sys.path.insert(0, str(ROOT / ".typecheck"))
    if importlib.util.find_spec("pydantic") is None:
        settings: Any = ModuleType("counterpoint.configs.model_section")
        settings.LoraSettings = object
        sys.modules[settings.__name__] = settings
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not start CUDA before the fork
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _in_own_process(name: str, options: argparse.Namespace, limit: float) -> list[gpu_results.Record]:
    """What part `name` recorded, and a failure where it had to be killed or died."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "results.jsonl"
        process = multiprocessing.get_context("fork").Process(target=_part, args=(name, options, found))
        process.start()
        process.join(limit)
        late = process.is_alive()
        process.kill()
        process.join()
        results = gpu_results.read(found)
    if late or process.exitcode:
        why = f"killed after {limit:.0f} s" if late else f"ended with code {process.exitcode}"
        results.append({"name": name, "result": "fail", "error": f"{why}; what it found is above"})
    return results


def _part(name: str, options: argparse.Namespace, found: Path) -> None:
    import torch
    from gpu_bench import Bench

    bench = Bench(options.device, options.tiny, options.emulate, found)
    torch.manual_seed(0)
    if bench.tiny and not bench.cuda:
        torch.set_num_threads(1)  # threads would wait for each other longer than tiny shapes take
    if bench.emulate:
        importlib.import_module("gpu_emulation").emulate()
    try:
        getattr(importlib.import_module(PARTS[name].module), PARTS[name].function)(bench)
    except BaseException as error:
        bench.broken(name, error)
    sys.stdout.flush()
    os._exit(0)  # without a wait for CUDA's teardown


if __name__ == "__main__":
    sys.exit(main())
