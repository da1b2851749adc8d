"""Sample a checkpoint at each effort, check every channel, score what has a truth, and compare with its base.

Killed at any moment, the same command continues where it was: samples are kept as they come.

examples:
  counterpoint evaluate runs/quickstart-20260101-120000
  counterpoint evaluate runs/quickstart-20260101-120000 --quick
  counterpoint evaluate adapter/ eval.prompts=my_prompts.jsonl eval.samples=4
  counterpoint evaluate runs/quickstart-20260101-120000 --config eval/guard
  counterpoint evaluate openai/gpt-oss-20b --config eval/reasoning --out evaluations/20b
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from counterpoint.recipes.commands.argument_types import count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from counterpoint.configs.model_section import ModelSettings
    from counterpoint.configs.schema import EvaluateRun
    from counterpoint.train.checkpoints.find import Found
    from counterpoint.train.evals.checkpoint_samples import Planned
    from counterpoint.train.evals.findings import Findings
    from counterpoint.train.evals.journal import Row
    from counterpoint.train.evals.report_data import Report
    from counterpoint.train.evals.runner import Done

DEFAULT = "eval/channels"
QUICK = 16
"""Items of each task of `--quick`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="a run folder, checkpoint, adapter, model folder, or name")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings, as in a run file")
    parser.add_argument("--config", default=DEFAULT, help="run file of recipe evaluate (default %(default)s)")
    parser.add_argument("--base", metavar="MODEL", help="compare with this model, not with the checkpoint's own base")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the results (default: next to or in the checkpoint)")
    parser.add_argument(
        "--quick", action="store_true", help=f"a first look: {QUICK} items of each task, once, at medium effort"
    )
    parser.add_argument("--processes", type=count, metavar="N", help="processes that share the samples (one a GPU)")
    parser.add_argument("--shard", metavar="R/N", help="draw the R-th of N shares alone (0/4), without a report")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.configs.errors import ConfigError
    from counterpoint.configs.load import load_run
    from counterpoint.configs.schema import EvaluateRun
    from counterpoint.data.formats.registry import check_format
    from counterpoint.recipes.commands.places import check_checkpoint, check_places

    given = [args.checkpoint, *args.settings] if args.checkpoint and "=" in args.checkpoint else args.settings
    settings = load_run(args.config, given, check_format=check_format)
    if not isinstance(settings, EvaluateRun):
        raise ConfigError(
            f"{args.config}: its recipe is {settings.recipe}: `evaluate` takes one with `recipe: evaluate`"
        )
    name = settings.checkpoint if given is not args.settings else args.checkpoint
    named, model = name or settings.checkpoint or settings.model.adapter, settings.model
    for each in (named, args.base):
        if each is not None:
            check_checkpoint(each)
    check_places(settings, trains=False)

    from counterpoint.recipes.commands.evaluate_run import of_run
    from counterpoint.train.checkpoints.find import find_checkpoint

    own_base = model if named and "name" in model.model_fields_set else None
    found = as_asked(find_checkpoint(named or model.name, own_base), model)
    completed = of_run(settings, found)
    settings = completed.settings
    print("".join(f"{notice}\n" for notice in completed.notices), end="", file=sys.stderr)
    folder = Path(args.out) if args.out else _folder(found, settings, args.config)
    if args.quick:
        settings = _few(settings)
        folder = folder if args.out else folder.with_name(f"{folder.name}-quick")
    plans = _plans(settings, found, args.base, folder, completed.inherited)
    if args.shard is not None:
        return _share(plans, args.shard)
    rows = _rows(plans, args, settings, folder)
    _write(folder, _report(found, settings, plans, rows, completed.notices))
    return 0


def as_asked(found: Found, model: ModelSettings) -> Found:
    """The checkpoint with what section `model` sets of its base. ConfigError for what the checkpoint itself decides."""
    from dataclasses import replace

    from counterpoint.configs.errors import ConfigError

    chosen = model.model_fields_set - {"name", "adapter"}
    trained = found.run is not None or found.adapter is not None
    for key in sorted(chosen & ({"init", "revision"} if found.run else {"init"} if trained else set())):
        raise ConfigError(f"model.{key}: {found.source} was trained on a base of its own: leave it out")
    return replace(found, base=found.base.model_copy(update={key: getattr(model, key) for key in chosen}))


def _few(settings: EvaluateRun) -> EvaluateRun:
    """The suite with the first items of each task, sampled once at medium effort."""
    from counterpoint.train.evals.tasks import task_settings

    few = {"samples": 1, "efforts": ("medium",)}
    tasks = [
        task.model_copy(update={**few, "size": min(task.size or QUICK, QUICK)}) for task in task_settings(settings.eval)
    ]
    return settings.model_copy(update={"eval": settings.eval.model_copy(update={"tasks": tuple(tasks)})})


def _folder(found: Found, settings: EvaluateRun, config: str) -> Path:
    """`evaluation` in the checkpoint, or next to other results; a suite of its own has a folder of its own."""
    from pathlib import Path

    place = Path(found.source).expanduser()
    suite = "" if config == DEFAULT and settings.name == Path(DEFAULT).name else f"-{settings.name}"
    return place / f"evaluation{suite}" if place.is_dir() else Path(settings.output) / f"evaluation-{place.name}{suite}"


def _plans(
    settings: EvaluateRun, found: Found, base: str | None, folder: Path, inherited: bool = False
) -> dict[str, Planned]:
    """Of the checkpoint and of its base, where there is one: another model, the one it was trained from, or the same
    one with the adapter off."""
    from dataclasses import replace

    from counterpoint.train.checkpoints.find import find_checkpoint
    from counterpoint.train.evals.checkpoint_samples import planned
    from counterpoint.train.evals.report_data import BASE, TUNED

    compared: Found | None = None
    if base is not None:
        compared = find_checkpoint(base)
    elif settings.eval.base and settings.eval.engine != "server":
        if found.adapter is not None:
            compared = replace(found, adapter=None)
        elif found.run is not None and found.run.model.init == "pretrained":
            compared = replace(find_checkpoint(found.run.model.name, found.run.model), run=found.run)
    plans = {TUNED: planned(settings, found, folder / TUNED, inherited)}
    return plans if compared is None else {**plans, BASE: planned(settings, compared, folder / BASE, inherited)}


def _rows(
    plans: dict[str, Planned], args: argparse.Namespace, settings: EvaluateRun, folder: Path
) -> dict[str, list[Row]]:
    """Every sample of every side, drawn now or found from before."""
    from counterpoint.train.run.progress import Progress

    found = {who: plan.rows() for who, plan in plans.items()}
    gpus = _gpus(settings)
    count = args.processes or max(1, gpus)
    if count > 1 and any(rows is None for rows in found.values()):
        _spread(plans, args, folder, count, gpus >= count)
        found = {who: plan.rows() for who, plan in plans.items()}
    progress = Progress()
    out: dict[str, list[Row]] = {}
    for who, plan in plans.items():
        rows = found[who]
        if rows is None:
            rows = plan.draw(lambda done, who=who: progress.show(_line(who, done)))
        assert rows is not None, "one process holds the whole plan"
        out[who] = rows
    if progress.live:
        progress.say("")
    return out


def _gpus(settings: EvaluateRun) -> int:
    """GPUs that would each take a share; a server and vLLM share out by themselves."""
    if settings.eval.engine != "transformers" or settings.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def _spread(plans: dict[str, Planned], args: argparse.Namespace, folder: Path, count: int, gpus: bool) -> None:
    from counterpoint.recipes.commands.shards import run_shards
    from counterpoint.train.run.progress import Progress

    given = ["--config", args.config, "--out", str(folder)] + (["--base", args.base] if args.base else [])
    given += ["--quick"] if args.quick else []
    given += [text for text in (args.checkpoint, *args.settings) if text]
    total, progress, shown = sum(len(plan.draws) for plan in plans.values()), Progress(), -1

    def say(done: int) -> None:
        nonlocal shown
        if done != shown:
            progress.show(f"{count} processes  {_bar(done, total)} {done:,}/{total:,} samples")
            shown = done

    run_shards(given, count, folder, gpus, say)
    if progress.live:
        progress.say("")


def _share(plans: dict[str, Planned], text: str) -> int:
    """One share of every plan."""
    from counterpoint.configs.errors import RunError
    from counterpoint.recipes.commands.shards import is_orphan, share
    from counterpoint.train.evals.runner import Shard

    rank, world = share(text)
    for who, plan in plans.items():

        def shown(done: Done, who: str = who) -> None:
            if is_orphan():
                raise RunError("the command that started this share is gone: start it again, it continues")
            print(_line(who, done), flush=True)

        if plan.rows() is None:
            plan.draw(shown, Shard(rank, world))
    return 0


def _line(name: str, done: Done) -> str:
    from counterpoint.train.run.progress import clock

    left = "" if done.seconds_left is None else f"  {clock(done.seconds_left)} left"
    speed = f"  {done.tokens_per_second:,.0f} tok/s" if done.tokens_per_second else ""
    return f"{name:<5}  {_bar(done.done, done.total)} {done.done:,}/{done.total:,} samples{speed}{left}"


def _bar(done: int, total: int, width: int = 24) -> str:
    filled = width * done // max(1, total)
    return "━" * filled + "╌" * (width - filled)


def _report(
    found: Found,
    settings: EvaluateRun,
    plans: dict[str, Planned],
    rows: dict[str, list[Row]],
    notices: Sequence[str] = (),
) -> Report:
    from pathlib import PurePath

    from counterpoint.train.evals.report_data import BASE, TUNED, Report, Side

    trained = found.adapter is not None or found.run is not None
    tasks = plans[TUNED].tasks
    facts = [
        ("checkpoint", found.source),
        ("base", plans[BASE].found.base.name if BASE in plans else found.base.name),
        ("tasks", ", ".join(task.name for task in tasks)),
        ("engine", settings.eval.engine),
        ("seed", str(settings.seed)),
    ]
    return Report(
        title=PurePath(found.source).name or found.source,
        tuned=Side(TUNED if trained else PurePath(found.source).name, rows[TUNED]),
        base=Side(BASE, rows[BASE]) if BASE in rows else None,
        facts=facts,
        notes=[*notices, *(notice for task in tasks for notice in task.notices)],
        model=found.base.name,
    )


def _write(folder: Path, report: Report) -> Findings:
    from counterpoint.train.evals.publish import FIGURES, PAGE, write_report
    from counterpoint.train.evals.task_lines import task_lines

    findings = write_report(folder, report)
    print("\n".join(said.text for said in findings.verdict))
    advice = list(dict.fromkeys(findings.shown.advice.sentences.values()))
    print("\n".join(["", *advice]) if advice else "")
    print("".join(f"{line}\n" for line in task_lines(findings)), end="")
    print(f"report   {folder / PAGE}\nfigures  {folder / FIGURES}\nsamples  {folder / 'tuned'}")
    tuned, base = report.shown.numbers.correct, report.base.numbers.correct if report.base else None
    before = f" (base {base.share:.2f})" if base is not None else ""
    print(f"channel-correct: {tuned.share:.2f}{before}")
    return findings
