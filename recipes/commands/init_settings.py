"""The run file that `init` writes: settings for what it saw, each with its reason, on a shipped run file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from counterpoint.configs.load import load_run
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import DataSettings, SftRun
from counterpoint.data.counts.lines import by_count
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.commands.init_look import Look
from counterpoint.recipes.commands.plan_data import work_of
from counterpoint.train.model.load import load_vocabulary_of
from counterpoint.train.plan.estimate import GIB, Estimate, changes_to_fit

FEW_ROWS, HOLD_OUT_FROM, FEWEST_STEPS = 500, 20, 50
MOST_BAD = 0.5
"""A larger share of bad rows is another format, or another kind of file, rather than a file with faults."""
LONGEST_ROW, LONGEST_SAMPLE = 8192, 2048
Reasoned = dict[str, tuple[Any, str]]
"""Setting -> its value and the reason."""


@dataclass(frozen=True)
class Target:
    """model: as of `model.name`. memory: GiB of one GPU, None for a CPU."""

    model: str
    memory: float | None
    gpus: int

    @property
    def tiny(self) -> bool:
        return self.memory is None


def check_bad_rows(found: Look, data: DataSettings) -> None:
    """DataError where more rows are bad than `data.bad_rows_limit` or, where that is not given, MOST_BAD allows."""
    given = "bad_rows_limit" in data.model_fields_set
    found.counter.check_bad_rows(data.bad_rows_limit if given else MOST_BAD, _files(data))


def run_file(found: Look, data: DataSettings, target: Target, out: Path, prompts: Path | None) -> str:
    """The text of the run file `out`. prompts: the file of them, None where there are too few rows for one."""
    extends = _extends(found, target)
    values = {
        **_data(found, data, target),
        **_launch(target, extends),
        **_evaluation(found, data, target, prompts),
    }
    values |= _steps(found, target, extends, values)
    values |= _to_fit(target, extends, values)
    return _text(found, data, target, out, extends, values)


def _files(data: DataSettings) -> str:
    return ", ".join(source.path for source in data.train)


def _extends(found: Look, target: Target) -> str:
    if target.tiny:
        return "quickstart" if found.use == "sft" else "dpo/tiny_format"
    size = "120b" if "120b" in target.model else "20b"
    several = "_multi_gpu" if target.gpus > 1 and (found.use == "sft" or size == "20b") else ""
    return f"{found.use}/gpt_oss_{size}_lora{several}"


def _data(found: Look, data: DataSettings, target: Target) -> Reasoned:
    sources = [source.model_dump(exclude_defaults=True) for source in data.train]
    plain = [source["path"] if set(source) == {"path"} else source for source in sources]
    out: Reasoned = {"data.train": (plain[0] if len(plain) == 1 else plain, "")}
    for name in sorted(data.model_fields_set - {"train"}):
        out[f"data.{name}"] = (data.model_dump(mode="json", exclude_unset=True)[name], "as you gave it")
    bad, rows = found.counter.n_bad, found.counter.rows
    if bad > data.bad_rows_limit * rows:
        reason = f"{bad:,} of {rows:,} rows are bad and left out; once they are mended, take this line out"
        out["data.bad_rows_limit"] = (math.ceil(100 * bad / rows) / 100, reason)
    if not found.thinks and "missing_thinking" not in data.model_fields_set:
        reason = f"{found.thoughtless:,} rows show no thinking: they teach to answer at once, at effort low alone"
        out["data.missing_thinking"] = ("effort_low", f"{reason} (or final_body, or thinking by recipe: distill)")
    if found.use == "dpo" and target.tiny:
        out["dpo.negatives"] = ([], "your rows are pairs: none are built")
    if found.longest and "max_tokens" not in data.model_fields_set:
        longest = max(_tokens(found, data, target))
        limit = min(LONGEST_ROW, 256 * math.ceil(longest / 256))
        over = "" if longest <= limit else "; longer ones are left out, or need more memory"
        out["data.max_tokens"] = (limit, f"the longest row has {longest:,} tokens{over}")
    if found.rows >= HOLD_OUT_FROM and not data.valid:
        share = "2%" if found.rows >= FEW_ROWS else "5%" if found.rows >= 100 else "10%"
        out["data.valid"] = (share, "held out by prompt and seed: their loss (`valid_loss`) shows when more steps hurt")
    return out


def _tokens(found: Look, data: DataSettings, target: Target) -> list[int]:
    renderer = Renderer(load_vocabulary_of(ModelSettings(name=target.model)), data)
    return [len(renderer.tree(row)[0].ids) for row in found.longest]


def _evaluation(found: Look, data: DataSettings, target: Target, prompts: Path | None) -> Reasoned:
    if prompts is None:
        return {}
    renderer = Renderer(load_vocabulary_of(ModelSettings(name=target.model)), data)
    longest = 1
    for row, _, _ in found.asked:
        for example in renderer.examples(row)[-1:]:
            longest = max(longest, int((example.weights > 0).sum()))
    limit = min(LONGEST_SAMPLE, max(128 if target.tiny else 1024, 64 * math.ceil(2 * longest / 64)))
    room = "" if target.tiny else ", and room for thought at high effort"
    told = f"{len(found.asked)} of your rows, which training leaves out (data.overlap): the report judges your task"
    judged = f"; {found.judged} have a truth, a call or a short answer, the others are judged by their channels"
    out: Reasoned = {
        "eval.prompts": (str(prompts), told + (judged if found.judged < len(found.asked) else "")),
        "eval.max_new_tokens": (limit, f"the longest answer among them has {longest:,} tokens: twice that{room}"),
    }
    if not found.thinks and data.missing_thinking in ("keep", "effort_low"):
        out["eval.efforts"] = (["low"], "what these rows teach; at the others an answer without thinking is a fault")
    return out


def _launch(target: Target, extends: str) -> Reasoned:
    shipped: Any = load_run(extends)
    if shipped.launch.processes == target.gpus:
        return {}
    out: Reasoned = {"launch.processes": (target.gpus, "one a GPU")}
    if target.gpus == 1 and shipped.launch.strategy != "ddp":
        out["launch.strategy"] = ("ddp", "one GPU has nothing to share out")
    return out


def _steps(found: Look, target: Target, extends: str, values: Reasoned) -> Reasoned:
    """Passes over the rows, and rows a step, such that a short file has enough steps to learn from."""
    if target.tiny:
        steps = max(250, min(400, math.ceil(20 * found.rows / 16)))
        passes = f"{16 * steps / found.rows:.3g} passes: the tiny model is small and begins far away"
        return {"train.steps": (steps, passes), "eval.every": (max(1, steps // 4), "")}
    out: Reasoned = {}
    run = _loaded(extends, values)
    steps = work_of(run).steps or 0
    if steps < FEWEST_STEPS and isinstance(run, SftRun):
        reason = f"steps of an epoch as shipped: {steps}"
        out["train.accumulation"] = (1, reason)
        out["data.pack_tokens"] = (run.data.max_tokens, "as short as the rows allow, for more steps")
        steps = work_of(_loaded(extends, values | out)).steps or 1
    elif steps < FEWEST_STEPS:
        out["train.accumulation"] = (4, f"steps of an epoch as shipped: {steps}")
        steps = work_of(_loaded(extends, values | out)).steps or 1
    epochs = max(1, min(3, math.ceil(FEWEST_STEPS / max(1, steps))))
    if found.use == "sft" and found.rows < FEW_ROWS:
        epochs = max(2, epochs)
    if epochs > 1:
        out["train.epochs"] = (
            epochs,
            f"{found.rows:,} rows are few; watch `valid_loss`: it rises where this is too much",
        )
    total = steps * epochs
    out["eval.every"] = (max(1, total // 5), f"five times in {total:,} steps")
    out["train.checkpoint_every"] = (max(1, total // 5), "")
    return out


def _to_fit(target: Target, extends: str, values: Reasoned) -> Reasoned:
    if target.memory is None:
        return {}
    run = _loaded(extends, values)
    estimate = Estimate.of(run, work_of(run).batch, "cuda")
    budget = target.memory * GIB
    changes = None if estimate.fits(budget) else changes_to_fit(estimate, budget)
    reason = f"by `plan`: {estimate.memory.total / GIB:.1f} GiB without it, more than {target.memory:g} GiB hold"
    return {key: (value, reason) for key, value in changes or ()}


def _loaded(extends: str, values: Reasoned) -> Any:
    return load_run(extends, [f"{key}={_yaml(value)}" for key, (value, _) in values.items()])


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return text.removesuffix("\n...").strip()


def _text(found: Look, data: DataSettings, target: Target, out: Path, extends: str, values: Reasoned) -> str:
    where = "this CPU, the embedded tiny model" if target.tiny else f"{target.gpus} x {target.memory:g} GiB"
    shipped = f"`counterpoint configs validate {out} --print` prints every setting"
    lines = [
        f"# {_files(data)} on {where}; written by `counterpoint init`",
        "#",
        f"# {found.rows:,} usable rows ({by_count(found.counter.formats)}), {found.counter.n_bad:,} bad ones.",
        f"# What is not here comes from {extends}; {shipped}.",
        f"extends: {extends}",
    ]
    if not found.asked:
        lines.insert(3, "# The shipped prompts are sampled: pairs, or too few rows, give none of their own.")
    if not target.tiny and target.model != load_run(extends).model.name:
        values = {"model.name": (target.model, ""), **values}
    sections: dict[str, list[str]] = {}
    for key, (value, reason) in values.items():
        section, _, name = key.partition(".")
        body = sections.setdefault(section, [])
        body += [f"  # {reason}"] if reason else []
        body.append(f"  {name}: {_yaml(value)}")
    for section, body in sections.items():
        lines += ["", f"{section}:", *body]
    return "\n".join(lines) + "\n"
