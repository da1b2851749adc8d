"""Seconds of CPU of a decoding step, by the lengths of the samples: this checkout beside another one.

    python benchmarks/decode.py [--against ../before] [--rounds 3]

A model of 24 M parameters on lean attention and experts, float32, one thread; random weights and prompts. The rounds
take turns, each a process of its own; the least of them counts.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = {"32 of 140 tokens": [140] * 32, "8 of 1,500": [1500] * 8, "1 of 3,000, 15 of 100": [3000, *[100] * 15]}
STEPS = 32


def child(case: str) -> None:
    """Prints seconds of reading the prompts, and of a step."""
    import numpy as np
    import torch

    from benchmarks.sampling import mid_size
    from counterpoint.train.adapters.implementations import use_implementations
    from counterpoint.train.sampling.sample import Sampler

    torch.set_num_threads(1)
    loaded: Any = mid_size()
    use_implementations(loaded.model)
    draw, ids = random.Random(0), loaded.vocabulary_map.ids(np.arange(50, 5000)).tolist()
    asked = [[draw.choice(ids) for _ in range(length)] for length in CASES[case]]
    sampler = Sampler(loaded, batch_tokens=1 << 30)
    marks: list[float] = []
    for new in (1, 1, 1 + STEPS):
        sampler.sample(asked, new)
        marks.append(time.process_time())
    read = marks[1] - marks[0]
    print(read, (marks[2] - marks[1] - read) / STEPS)


def measured(checkout: Path, case: str) -> tuple[float, float]:
    here = str(Path(__file__).resolve().parents[1])  # behind the checkout, which has another of everything but this
    code = f"import sys; sys.path.append({here!r}); import benchmarks.decode as decode; decode.child({case!r})"
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=checkout
    )
    read, step = out.stdout.split()[-2:]
    return float(read), float(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    sides = [here, *([args.against] if args.against else [])]
    print("| samples | read s | step ms | read s before | step ms before |\n|---|---|---|---|---|")
    for case in CASES:
        rounds = [[measured(side, case) for side in sides] for _ in range(args.rounds)]
        least = [(min(r[n][0] for r in rounds), min(r[n][1] for r in rounds)) for n in range(len(sides))]
        print(f"| {case} | " + " | ".join(f"{read:.2f} | {1000 * step:.1f}" for read, step in least) + " |", flush=True)


if __name__ == "__main__":
    main()
