"""Before anything heavy: what a run file trains, its tokens and steps, whether it fits into memory and disk, its time.

counterpoint plan sft/gpt_oss_20b_lora data.train=mine.jsonl
counterpoint plan my.yaml --device cuda --memory 48 --tokens-per-second 9000
counterpoint plan quickstart --measure

Of `recipe: distill`, which trains nothing: memory of the model and of the samples that are drawn at a time.
Needs neither weights nor a GPU. Exit code 1 where the run does not fit the device."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from counterpoint.configs.errors import ConfigError
from counterpoint.recipes.commands.argument_types import positive

if TYPE_CHECKING:
    from counterpoint.configs.schema import DistillRun, TrainingRun
    from counterpoint.recipes.commands.plan_data import Work
    from counterpoint.train.plan.estimate import Change, Estimate
    from counterpoint.train.plan.trial_steps import Measured

GIB = 1 << 30
MEASURED_STEPS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a run file, or a built-in name (`counterpoint configs ls`)")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that replace the run file's")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="plan for this device, whether it is here or not")
    parser.add_argument("--memory", type=positive, metavar="GIB", help="memory of the device (found where it is here)")
    parser.add_argument("--tokens-per-second", type=positive, metavar="N", help="rate from which the time follows")
    parser.add_argument("--measure", action="store_true", help="train a few steps on this machine for rate and memory")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.measure:
        # torch's memory profiler talks about itself.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    from counterpoint.configs.load import load_run
    from counterpoint.configs.schema import DistillRun, TrainingRun
    from counterpoint.data.formats.registry import check_name

    settings: Any = load_run(args.config, args.settings, check_format=check_name)
    if isinstance(settings, DistillRun):
        return _distill(settings, args)
    if not isinstance(settings, TrainingRun):
        raise ConfigError(f"{args.config}: `recipe: {settings.recipe}` trains nothing, so there is nothing to plan")

    from counterpoint.recipes.commands.plan_data import work_of
    from counterpoint.train.checkpoints.start import with_start
    from counterpoint.train.plan.estimate import Estimate

    settings = with_start(settings)
    work = work_of(settings)
    estimate = Estimate.of(settings, work.batch, device_type(settings, args.device))
    budget = args.memory * GIB if args.memory else _memory_here(estimate.device)
    measured = _measure(settings, work, estimate, budget) if args.measure else None
    rate = args.tokens_per_second or (measured.tokens_per_second if measured else None)
    fits = budget is None or estimate.fits(budget)
    if args.json:
        print(json.dumps(_as_dict(estimate, work, budget, rate, measured)))
    else:
        print("\n".join(_lines(estimate, work, budget, rate, measured)))
    return 0 if fits else 1


def _distill(settings: DistillRun, args: argparse.Namespace) -> int:
    """Whether the model and its samples fit; tokens a second and steps are of training."""
    from counterpoint.recipes.commands.plan_distill import memory_of, most_at_a_time, width_of
    from counterpoint.train.model.load import device_of
    from counterpoint.train.plan.estimate import USABLE

    if args.measure or args.tokens_per_second:
        raise ConfigError("--measure, --tokens-per-second: `recipe: distill` trains nothing: leave them out")
    wanted = args.device or settings.device
    device = device_of("auto").type if wanted == "auto" else wanted
    width, lines = width_of(settings)
    memory = memory_of(settings, device, settings.distill.batch, width)
    budget = args.memory * GIB if args.memory else _memory_here(device)
    most = None if budget is None else most_at_a_time(settings, device, width, USABLE * budget)
    fits = most is None or most >= settings.distill.batch
    parts = {name: size for name, size in memory.parts() if size}
    if args.json:
        made = {"model": settings.model.name, "device": device, "width": width, "fits": fits, "largest_batch": most}
        print(json.dumps({**made, "memory": {**parts, "peak": memory.total}}))
        return 0 if fits else 1
    print("\n".join([f"model    {settings.model.name} on {device}", *_titled("data", lines)]))
    print(f"memory   {_size(memory.total)} while {settings.distill.batch} samples of {width:,} tokens are drawn")
    print("\n".join(f"         {name:<12}{_size(size):>10}" for name, size in parts.items()))
    if budget is not None:
        told = f"yes, up to distill.batch={most}" if fits else f"no; distill.batch={most} would" if most else "no"
        print(f"fits     {_size(budget)}: {told}")
    return 0 if fits else 1


def device_type(settings: TrainingRun, wanted: str | None) -> str:
    """What the run file says, which may be a device of another machine; `auto` is what is here."""
    from counterpoint.train.model.load import device_of

    chosen = wanted or settings.train.device
    return device_of("auto").type if chosen == "auto" else chosen


def _memory_here(device: str) -> float | None:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _lines(
    estimate: Estimate, work: Work, budget: float | None, rate: float | None, measured: Measured | None
) -> list[str]:
    from counterpoint.train.plan.estimate import CARDS

    run, shape, memory = estimate.run, estimate.shape, estimate.memory
    number = "bfloat16" if estimate.itemsize == 2 else "float32"
    base = "MXFP4 experts, the rest " if run.model.base == "mxfp4" else ""
    lines = [f"model    {run.model.name} by {shape.origin}, {base}{number} on {estimate.device}"]
    lines += _titled("full" if shape.full else "lora", shape.table.text().splitlines())
    lines += _titled("data", work.lines)
    parts = [(name, size) for name, size in memory.parts() if size]
    where = f" on each of {estimate.processes} processes" if estimate.processes > 1 else ""
    lines.append(f"memory   {_size(memory.total)}{where} at its peak, {memory.moment}")
    lines += [f"         {name:<12}{_size(size):>10}" for name, size in parts]
    if measured is not None:
        above = memory.total - memory.weights - memory.adapter
        lines.append(f"         measured above model and adapter: {_size(measured.above)} (estimate {_size(above)})")
    elif estimate.device == "cuda":
        lines.append(
            "         counted from the sizes of tensors and of the flash kernel's scratch; assumed: 0.9 GiB for"
        )
        lines.append("         CUDA, 3 % of activations lost to gaps. Nothing of it was measured on a GPU")
    cards = {} if budget is None else {f"this {'GPU' if estimate.device == 'cuda' else 'machine'}": budget}
    if estimate.device == "cuda":
        cards |= {name: size * GIB for name, size in CARDS.items()}
    if estimate.pinned_bytes:
        lines.append(f"host     {_size(estimate.pinned_bytes)} of pinned memory{where}, for train.activation_offload")
    if estimate.device == "cuda":
        kept = f"of at most {_size(estimate.kept_bytes)} at a time, less where less memory is free"
        lines.append(f"         sampling by this process keeps keys and values {kept}")
    lines += _titled("fits", [_fit(estimate, name, size) for name, size in cards.items()])
    if estimate.host_bytes:
        each = run.launch.processes
        lines.append(
            f"host     {_size(each * estimate.host_bytes)} of a machine's main memory: "
            + (f"{each} rollout processes" if each > 1 else "the rollout process")
            + " (rollout.staleness); what tools and rewards start comes on top"
        )
    kept = run.train.keep_checkpoints
    lines.append(
        f"disk     {_size(estimate.disk_bytes)}: {_size(estimate.checkpoint_bytes)} a checkpoint, {kept} kept and one "
        f"being written, and the result"
    )
    return [*lines, f"time     {_time(work, rate, measured is not None)}"]


def _titled(title: str, lines: Any) -> list[str]:
    return [f"{title if n == 0 else '':<9}{line}" for n, line in enumerate(lines)]


def _fit(estimate: Estimate, name: str, budget: float) -> str:
    from counterpoint.train.plan.estimate import changes_to_fit

    head = f"{name:<13}({_size(budget)})  "
    if estimate.fits(budget):
        return f"{head}yes, with rows of up to {estimate.longest_row(budget):,} tokens"
    changes = changes_to_fit(estimate, budget)
    if changes is None:
        return f"{head}no, and no change of these settings makes it fit"
    return f"{head}no; {_spelled(changes)} makes it {_size(estimate.changed(changes).memory.total)}"


def _spelled(changes: list[Change]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in changes)


def _time(work: Work, rate: float | None, measured: bool) -> str:
    if rate is None:
        return "not known: give --tokens-per-second, or --measure on the machine that will train"
    source = "measured here with random weights" if measured else "as stated"
    if work.tokens is None:
        return f"{rate:,.0f} tokens a second ({source}); how many there are is not known"
    seconds = work.tokens / rate
    spelled = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"
    return f"{spelled}: {work.tokens:,} tokens at {rate:,.0f} a second ({source}), without evaluations"


def _as_dict(
    estimate: Estimate, work: Work, budget: float | None, rate: float | None, measured: Measured | None
) -> dict[str, Any]:
    from counterpoint.train.plan.estimate import CARDS, changes_to_fit

    budgets = {name: size * GIB for name, size in CARDS.items()} if estimate.device == "cuda" else {}
    if budget is not None:
        budgets["here"] = int(budget)
    return {
        "model": estimate.run.model.name,
        "device": estimate.device,
        "parameters": estimate.shape.base,
        "trainable": {row.kind: row.parameters for row in estimate.shape.table.rows},
        "steps": work.steps,
        "tokens": work.tokens,
        "largest_batch": asdict(work.batch),
        "memory": {**dict(estimate.memory.parts()), "peak": estimate.memory.total, "moment": estimate.memory.moment},
        "pinned_bytes": estimate.pinned_bytes,
        "fits": {name: estimate.fits(size) for name, size in budgets.items()},
        "changes": {
            name: None if found is None else dict(found)
            for name, size in budgets.items()
            if not estimate.fits(size)
            for found in [changes_to_fit(estimate, size)]
        },
        "host_bytes": estimate.host_bytes * estimate.run.launch.processes,
        "checkpoint_bytes": estimate.checkpoint_bytes,
        "disk_bytes": estimate.disk_bytes,
        "seconds": None if rate is None or work.tokens is None else work.tokens / rate,
        "measured": None if measured is None else asdict(measured),
    }


def _measure(settings: TrainingRun, work: Work, estimate: Estimate, budget: float | None) -> Measured:
    """A few steps of the run's largest rows. ConfigError where that cannot be done here."""
    from counterpoint.configs.schema import SftRun
    from counterpoint.train.model.load import device_of

    if not isinstance(settings, SftRun) or not work.rows:
        raise ConfigError("--measure: only a run of recipe sft whose data is there can be measured: leave it out")
    if settings.model.base == "mxfp4":
        raise ConfigError("--measure: its random weights are never packed: leave it out, or plan with model.base=bf16")
    if estimate.device == "cuda" and device_of("auto").type != "cuda":
        raise ConfigError("--measure: there is no GPU on this machine: leave it out, or take --device cpu")
    if budget is not None and not estimate.fits(budget):
        raise ConfigError(
            f"--measure: the run needs {_size(estimate.memory.total)}, more than is here: change it first"
        )
    few = settings.train.model_copy(update={"steps": MEASURED_STEPS, "device": estimate.device})
    model = settings.model.model_copy(update={"init": "random"})
    with tempfile.TemporaryDirectory() as folder:
        return _measured_steps(settings.model_copy(update={"train": few, "model": model}), work, Path(folder))


def _measured_steps(settings: Any, work: Work, folder: Path) -> Measured:
    from counterpoint.data.layout.collate import Collator
    from counterpoint.recipes.steps import load_trainable
    from counterpoint.train.checkpoints.resume import Identity
    from counterpoint.train.loop.sft_trainer import CounterpointTrainer
    from counterpoint.train.loop.training_arguments import loop_settings, sft_arguments
    from counterpoint.train.plan.trial_steps import measured_training

    loaded = load_trainable(settings)
    rows = sorted(work.rows, key=lambda row: len(row), reverse=True)
    rows = rows[: settings.train.batch_rows * settings.train.accumulation * MEASURED_STEPS]
    mapping = loaded.vocabulary_map
    args = replace(sft_arguments(settings, folder, len(rows)), train_sampling_strategy="sequential")
    trainer = CounterpointTrainer(
        loaded.model,
        args,
        rows,
        Collator(None if mapping.is_identity else mapping.rows, loaded.pad_row),
        loop_settings(settings, folder),
        Identity({}, "", 1),
    )
    cast(Any, trainer)._save_checkpoint = lambda *_: None
    return measured_training(trainer)


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.1f} MiB"
