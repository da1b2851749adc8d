"""What staleness costs in learning: grpo/tiny_sums with rollouts that are 0 and 4 steps old, by seeds.

    python benchmarks/staleness.py FOLDER [--seeds N] [--staleness S ...] [--steps N]

The weak model is trained once, and served by `counterpoint serve --enable-lora` in a process of its own; each run
learns an adapter of rank 16 from rollouts of that server, and samples its held-out sums eight times an effort at the
end. What FOLDER has already is not run again. Printed: the share of right answers, and the mean difference to the first
staleness with its lower 95 % bound, over pairs of equal seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

T_95 = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 12: 1.796, 16: 1.753}
"""Student's t that 5 % exceed, by the number of pairs."""
KEY = "benchmark"


def counterpoint(*words: str) -> list[str]:
    return [sys.executable, "-P", "-c", "from counterpoint.recipes.cli import main; raise SystemExit(main())", *words]


def weak_model(folder: Path) -> Path:
    if not (done := sorted(folder.glob("weak/tiny_weak-*/model/model.safetensors"))):
        command = counterpoint("train", "sft/tiny_weak", f"output={folder / 'weak'}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        done = sorted(folder.glob("weak/tiny_weak-*/model/model.safetensors"))
    return done[-1].parent


def answers(run: Path) -> dict[str, float] | None:
    """Shares of right answers at the start and the end; None for a run that has not ended."""
    if not (run / "report.json").is_file():
        return None
    lines = [json.loads(line) for line in (run / "eval" / "metrics.jsonl").read_text().splitlines()]
    return {line["who"]: line["right_answers"] for line in lines}


def trained(folder: Path, model: Path, url: str, staleness: int, seed: int, steps: int) -> dict[str, float]:
    output = folder / f"staleness-{staleness}" / f"seed-{seed}"
    for run in sorted(output.glob("tiny_sums-*"), reverse=True):
        if (done := answers(run)) is not None:
            return done
    command = counterpoint(
        "train", "grpo/tiny_sums", f"model.name={model}", "lora.enabled=true", "lora.rank=16", "rollout.engine=server",
        f"rollout.server.url={url}", f"rollout.staleness={staleness}", "train.learning_rate=2e-3",
        f"train.steps={steps}", f"seed={seed}", f"eval.every={steps}", "eval.samples=8", f"output={output}",
    )  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = answers(sorted(output.glob("tiny_sums-*"))[-1])
    assert found is not None, f"{output}: the run has no evaluation at its end"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8, choices=sorted(T_95))
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    folder = args.folder.absolute()
    os.environ |= {"COUNTERPOINT_SERVE_KEY": KEY, "COUNTERPOINT_SERVER_KEY": KEY}
    model = weak_model(folder)
    serve = counterpoint("serve", str(model), "--enable-lora", "--port", "0", "--device", "cpu", "--batch", "64")
    found: dict[int, list[float]] = {staleness: [] for staleness in args.staleness}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            print("seed  " + "  ".join(f"staleness {each}" for each in args.staleness), flush=True)
            for seed in range(args.seeds):
                each = [trained(folder, model, url, staleness, seed, args.steps) for staleness in args.staleness]
                for staleness, run in zip(args.staleness, each, strict=True):
                    found[staleness].append(run["tuned"])
                print(f"{seed:4}  " + "  ".join(f"{run['base']:.3f} to {run['tuned']:.3f}" for run in each), flush=True)
        finally:
            server.terminate()
    first = found[args.staleness[0]]
    for staleness in args.staleness[1:]:
        differences = [late - now for late, now in zip(found[staleness], first, strict=True)]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        print(
            f"staleness {staleness}: {statistics.mean(found[staleness]):.3f} for {statistics.mean(first):.3f}, "
            f"difference {mean:+.3f}, lower 95 % bound {mean - T_95[len(differences)] * error:+.3f}"
        )


if __name__ == "__main__":
    main()
