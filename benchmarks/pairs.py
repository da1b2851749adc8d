"""A step of learning from pairs, and from rated completions: our packed tree rows against TRL's padded ones.

    python benchmarks/pairs.py [--losses sigmoid kto] [--repeat 2] [--rows 4] [--prompt 128] [--median 48]
                               [--longest 160]

The reference's pass, and forward and backward pass of the loss of one step, with LoRA on attention and experts, by
turns, least of all repeats; the peak is what torch allocates above model and gradients. `trl`: transformers' model as
TRL's DPOTrainer or KTOTrainer trains it; `trl, lean`: the same trainer on our attention and experts. Losses are
compared before anything is timed, of a model that has moved from its reference.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from counterpoint.configs.preference_section import RATED_LOSSES, DpoSettings
from counterpoint.data.dataset.pairs import Pair, Rated
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.preference_trainer import PreferenceTrainer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.plan.trial_steps import allocated_peak

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from policy import model_of  # pyright: ignore[reportMissingImports]
from trl_preferences import batch_of, oracle  # pyright: ignore[reportMissingImports]

Step = Callable[[], float]


def rows_of(rated: bool, rows: int, prompt: int, median: int, longest: int) -> list[Any]:
    """Pairs with a prompt each, or the same completions rated one by one."""
    draw = random.Random(0)

    def ids(n: int) -> list[int]:
        return [draw.randrange(1, 190_000) for _ in range(n)]

    pairs = []
    for _ in range(rows):
        up, down = (min(longest, max(8, round(draw.lognormvariate(0, 0.8) * median))) for _ in range(2))
        pairs.append(Pair("", "given", ids(prompt), ids(up), ids(down), [1] * up, [1] * down))
    if not rated:
        return pairs
    return [
        row
        for pair in pairs
        for row in (
            Rated("", "wanted", pair.prompt_ids, pair.chosen_ids, pair.chosen_mask, True),
            Rated("", "wanted", pair.prompt_ids, pair.rejected_ids, pair.rejected_mask, False),
        )
    ]


def ours(loaded: LoadedModel, rows: list[Any], dpo: DpoSettings, folder: Path) -> Step:
    args = TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=len(rows), use_cpu=True, report_to="none"
    )
    loop = LoopSettings(folder / "checkpoints")
    trainer = PreferenceTrainer(loaded, args, rows, dpo, 10**6, loop, Identity({}, "", len(rows)))
    trainer.model_wrapped = trainer.model
    inputs = {"numbers": torch.arange(len(rows))}
    return lambda: float(trainer.training_step(loaded.model.train(), inputs))


def theirs(loaded: LoadedModel, rows: list[Any], dpo: DpoSettings, folder: Path) -> Step:
    trainer = oracle(loaded, folder, dpo, len(rows))
    batch = batch_of(loaded, rows)

    def step() -> float:
        loss = trainer.loss(batch)
        loss.backward()
        return float(loss.detach())

    return step


def moved(loaded: LoadedModel) -> None:
    """Move the adapter that trains away from its reference."""
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name and ".default." in name:
                noise = torch.Generator().manual_seed(len(name))
                parameter += torch.randn(parameter.shape, generator=noise) * 0.02


def compared(name: str, args: argparse.Namespace, folder: Path) -> None:
    """Prints the table of one loss."""
    dpo = DpoSettings(losses=(name,))  # pyright: ignore[reportArgumentType]
    rows = rows_of(name in RATED_LOSSES, args.rows, args.prompt, args.median, args.longest)
    models = {side: model_of("reference" if side == "trl" else "lean") for side in ("ours", "trl", "trl, lean")}
    sides = {side: (ours if side == "ours" else theirs)(loaded, rows, dpo, folder) for side, loaded in models.items()}
    for loaded in models.values():
        moved(loaded)
    losses = {side: step() for side, step in sides.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-5 * max(1.0, *losses.values()), losses
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(args.repeat):
        for side, step in sides.items():
            began = time.perf_counter()
            step()
            seconds[side] = min(seconds[side], time.perf_counter() - began)
    peaks = {side: allocated_peak(step, torch.device("cpu")) for side, step in sides.items()}
    print(f"{name}: {len(rows)} rows, prompts of {args.prompt} tokens, losses {losses}")
    for side in sides:
        times, more = seconds[side] / seconds["ours"], peaks[side] / peaks["ours"]
        print(
            f"| {side} | {seconds[side]:.2f} s | {times:.1f} | {peaks[side] / 2**20:,.0f} MiB | {more:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["sigmoid", "kto"])
    for name, value in (("repeat", 2), ("rows", 4), ("prompt", 128), ("median", 48), ("longest", 160)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.losses:
            compared(name, args, Path(folder))


if __name__ == "__main__":
    main()
