"""Sample a checkpoint at each effort, check every channel, score what has a truth, and compare with its base.

Killed at any moment, the same command goes on where it was: samples are kept as they come.

examples:
  counterpoint evaluate runs/quickstart-20260101-120000
  counterpoint evaluate adapter/ eval.prompts=my_prompts.jsonl eval.samples=4
  counterpoint evaluate openai/gpt-oss-20b --config eval/channels --out evaluations/20b
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from counterpoint.configs.schema import EvaluateRun
    from counterpoint.train.checkpoints.find import Found
    from counterpoint.train.evals.journal import Row
    from counterpoint.train.evals.report import Report, Side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="a run folder, checkpoint, adapter, model folder, or name")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings, as in a run file")
    parser.add_argument("--config", default="eval/channels", help="run file of recipe evaluate (default %(default)s)")
    parser.add_argument("--base", metavar="MODEL", help="compare with this model, not with the checkpoint's own base")
    parser.add_argument("--out", metavar="FOLDER", help="folder of the results (default: beside or in the checkpoint)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.configs.errors import ConfigError
    from counterpoint.configs.load import load_run
    from counterpoint.configs.schema import EvaluateRun
    from counterpoint.train.checkpoints.find import find_checkpoint

    given = [args.checkpoint, *args.settings] if args.checkpoint and "=" in args.checkpoint else args.settings
    settings = load_run(args.config, given)
    if not isinstance(settings, EvaluateRun):
        raise ConfigError(
            f"{args.config}: its recipe is {settings.recipe}: `evaluate` takes one with `recipe: evaluate`"
        )
    name = settings.checkpoint if given is not args.settings else args.checkpoint
    found = find_checkpoint(name or settings.checkpoint or settings.model.name)
    settings = _prompts_of_the_run(settings, found)
    folder = Path(args.out) if args.out else _folder(found, settings)
    sides = _sides(settings, found, args.base, folder)
    report = _report(found, settings, sides)
    _write(folder, report)
    return 0


def _prompts_of_the_run(settings: EvaluateRun, found: Found) -> EvaluateRun:
    """A run is measured on the prompts that its own hook had, unless others are named."""
    chosen = settings.eval
    if found.run is None or chosen.prompts is not None or chosen.tasks:
        return settings
    hook = found.run.eval
    kept = {"prompts": hook.prompts, "max_new_tokens": hook.max_new_tokens, "temperature": hook.temperature}
    changed = {name: value for name, value in kept.items() if name not in chosen.model_fields_set or name == "prompts"}
    return settings.model_copy(update={"eval": chosen.model_copy(update=changed)})


def _folder(found: Found, settings: EvaluateRun) -> Path:
    from pathlib import Path

    place = Path(found.source).expanduser()
    return place / "evaluation" if place.is_dir() else Path(settings.output) / f"evaluation-{place.name}"


def _sides(settings: EvaluateRun, found: Found, base: str | None, folder: Path) -> list[Side]:
    """The checkpoint, and its base: another model, or the same one with the adapter off."""
    from dataclasses import replace

    from counterpoint.train.checkpoints.find import find_checkpoint
    from counterpoint.train.evals.report import BASE, TUNED, Side

    tuned = Side(TUNED, _sampled(settings, found, folder / TUNED))
    if base is not None:
        return [tuned, Side(BASE, _sampled(settings, find_checkpoint(base), folder / BASE))]
    if found.adapter is None or not settings.eval.base:
        return [tuned]
    return [tuned, Side(BASE, _sampled(settings, replace(found, adapter=None), folder / BASE))]


def _sampled(settings: EvaluateRun, found: Found, folder: Path) -> list[Row]:
    """Every sample of one model, drawn now or found from before."""
    from counterpoint.data.build import render_settings
    from counterpoint.data.harmony.render import Renderer, RenderSettings
    from counterpoint.train.checkpoints.find import open_checkpoint
    from counterpoint.train.evals.plan import plan
    from counterpoint.train.evals.runner import run_plan
    from counterpoint.train.evals.scorers import Scorers
    from counterpoint.train.evals.tasks import build_tasks
    from counterpoint.train.loop.progress import Progress
    from counterpoint.train.model.load import device_of
    from counterpoint.train.rollout.engines import make_engine

    loaded = open_checkpoint(found, device_of(settings.device))
    rendering = render_settings(found.run.data) if found.run is not None else RenderSettings()
    tasks = build_tasks(settings.eval)
    draws = plan(tasks, Renderer(loaded.vocabulary, rendering), settings.seed)
    adapter = str(found.adapter) if found.adapter else None
    engine = make_engine(settings.eval, loaded=loaded, model=found.base.name, adapter=adapter)
    progress = Progress()
    identity = {"model": found.base.model_dump(mode="json"), "adapter": adapter, "engine": settings.eval.engine}
    with Scorers(settings.eval.scorer_seconds) as scorers:
        rows = run_plan(
            draws, engine, folder, loaded.vocabulary, scorers,
            batch=settings.eval.batch, identity=identity, progress=lambda done: progress.show(_line(folder.name, done)),
        )  # fmt: skip
    assert rows is not None, "one process holds the whole plan"
    return rows


def _line(name: str, done: Any) -> str:
    left = "" if done.seconds_left is None else f", {done.seconds_left:.0f} s left"
    return f"{name}: {done.done}/{done.total} samples, {done.tokens_per_second:,.0f} tok/s{left}"


def _report(found: Found, settings: EvaluateRun, sides: list[Side]) -> Report:
    from counterpoint.train.evals.report import Report

    prompts = ", ".join(task.name or task.type for task in settings.eval.tasks) or settings.eval.prompts or "probes"
    facts = [
        ("checkpoint", found.source),
        ("base", found.base.name),
        ("prompts", prompts),
        ("seed", str(settings.seed)),
    ]
    return Report(title=found.source, tuned=sides[0], base=sides[1] if len(sides) > 1 else None, facts=facts)


def _write(folder: Path, report: Report) -> None:
    import json

    from counterpoint.train.evals.page import page_of
    from counterpoint.train.evals.report import verdict

    (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page_of(report), encoding="utf-8")
    print("\n".join(verdict(report)))
    print(f"\nreport   {folder / 'report.html'}\nsamples  {folder / 'tuned'}")
    tuned, base = report.shown.numbers.correct, report.base.numbers.correct if report.base else None
    before = f" (base {base.share:.2f})" if base is not None else ""
    print(f"channel-correct: {tuned.share:.2f}{before}")
