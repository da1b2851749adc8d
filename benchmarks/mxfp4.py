"""What of a light adapter survives an export in MXFP4, by rounding: the table of docs/models.md, from shipped commands.

    python benchmarks/mxfp4.py base FOLDER                    # quickstart, exported with its experts on the grid
    python benchmarks/mxfp4.py light FOLDER --seed 0          # a new form of the final, learned at a small rate
    python benchmarks/mxfp4.py export FOLDER --seed 0 --rounding calibrated --prompts 400
    python benchmarks/mxfp4.py table FOLDER

The base gives sums as "21 + 28 = 49."; the light run teaches "21 + 28 is 49." on other rows of the same kind. loss: on
rows of `data.valid`, which the gate takes too. form: share of greedy finals in the new form. The rest is the gate's.
Everything goes into FOLDER, a line of JSON an export into FOLDER/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from counterpoint.configs.model_section import ModelSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.recipes.cli import main as counterpoint
from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
from counterpoint.train.export.gate import base_experts_only, score
from counterpoint.train.export.rows import Row, run_rows
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.sampling.sample import Sampler

sys.path.insert(0, str(Path(__file__).parent / "examples"))
N_TRAIN, N_VALID, N_FORMS = 400, 60, 96
TOKENS = 64


def main() -> None:
    options = _options()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if options.part == "base":
        _base(folder)
    elif options.part == "light":
        _light(folder, options)
    elif options.part == "export":
        _export(folder, options)
    else:
        _table(folder)


def _base(folder: Path) -> None:
    _run(["train", "quickstart", f"output={folder}", "name=quick", "tracking.wandb=off"])
    quick = sorted(folder.glob("quick-*"))[-1]
    _run(["export", str(quick), "--to", "mxfp4", "--rounding", "nearest", "--out", str(folder / "base")])


def _light(folder: Path, options: argparse.Namespace) -> None:
    _write_rows(folder, options)
    run = {
        "recipe": "sft",
        "seed": options.seed,
        "output": str(folder),
        "name": f"light{options.name}-{options.seed}",
        "model": {"name": str(folder / "base"), "base": "mxfp4"},
        "lora": {"rank": 16, "alpha": 32},
        "data": {"train": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl"), "max_tokens": 512},
        "train": {
            "steps": options.steps, "batch_rows": 8, "learning_rate": options.rate, "device": "cpu", "threads": 1,
        },
        "eval": {
            "prompts": str(folder / "prompts.jsonl"), "at_start": False, "at_end": False, "max_new_tokens": TOKENS,
        },
        "tracking": {"wandb": "off"},
    }  # fmt: skip
    if options.aware is not None:
        run["train"] |= {"quantization_aware": "mxfp4", "quantization_from": options.aware}
    path = folder / f"light{options.name}-{options.seed}.yaml"
    path.write_text(yaml.safe_dump(run))
    _run(["train", str(path)])


def _write_rows(folder: Path, options: argparse.Namespace) -> None:
    from make import eval_rows, quickstart_rows

    def rows(seed: int, count: int) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        while len(made) < count:
            made += [_in_new_form(row) for row in quickstart_rows(random.Random(seed + len(made)))]
        return made[:count]

    prompts: list[dict[str, Any]] = []
    for seed in range(1000):
        if len(prompts) >= options.prompts:
            break
        prompts += [{**row, "id": f"{seed}-{n}"} for n, row in enumerate(eval_rows(random.Random(9000 + seed)))]
    for name, content in (
        ("train", rows(1_000_000, N_TRAIN)),
        ("valid", rows(2_000_000, N_VALID)),
        ("prompts", prompts[: options.prompts]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def _in_new_form(row: dict[str, Any]) -> dict[str, Any]:
    messages = [
        {**m, "content": m["content"].replace(" = ", " is ")} if m["role"] == "assistant" and m.get("content") else m
        for m in row["messages"]
    ]
    return {**row, "messages": messages}


def _export(folder: Path, options: argparse.Namespace) -> None:
    name = f"light{options.name}-{options.seed}"
    run = sorted(each for each in folder.glob(f"{name}-*") if each.is_dir())[-1]
    out = folder / f"{name}.{options.rounding or 'own'}"
    rounding = ["--rounding", options.rounding] if options.rounding else []
    prompts = ["--prompts", str(options.prompts)]
    _run(["export", str(run), "--to", "mxfp4", "--limit", "9", "--out", str(out), *rounding, *prompts])
    manifest = json.loads((out / "manifest.json").read_text())
    exported = load_model(ModelSettings(name=str(out), base="mxfp4"))
    rows = run_rows(find_checkpoint(str(run)).run, exported.vocabulary).held_out
    result: dict[str, Any] = {"run": name, "rounding": options.rounding or "own", "manifest": manifest}
    result |= _live(run, rows, folder)
    result["loss"]["exported"], result["form"]["exported"] = loss(exported, rows), form(exported, folder)
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(name, result["rounding"], result["loss"], result["form"])


def _live(run: Path, rows: Sequence[Row], folder: Path) -> dict[str, dict[str, float]]:
    """Loss and form of the live model, its base, and it with the base's experts; kept in the run folder."""
    kept = run / "live.json"
    if not kept.is_file():
        live = open_checkpoint(str(run))
        found = {"loss": {"live": loss(live, rows)}, "form": {"live": form(live, folder)}}
        with live.model.disable_adapter():
            found["loss"]["base"], found["form"]["base"] = loss(live, rows), form(live, folder)
        with base_experts_only(live.model):
            found["loss"]["base's experts"] = loss(live, rows)
            found["form"]["base's experts"] = form(live, folder)
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def loss(loaded: LoadedModel, rows: Sequence[Row]) -> float:
    """Mean over trained tokens, in nats."""
    targets = np.concatenate([loaded.vocabulary_map.rows(ids[trained]) for ids, trained in rows])
    found = score(loaded, rows).log_probs_TV
    return -float(found[torch.arange(len(found)), torch.from_numpy(targets.astype(np.int64))].mean())


def form(loaded: LoadedModel, folder: Path) -> float:
    """Share of greedy finals in the new form, of prompts that do not ask for JSON and need no call."""
    asked = [item for item in read_conversations([str(folder / "prompts.jsonl")]) if isinstance(item, Conversation)]
    plain = [c for c in asked if "JSON" not in c.messages[-1].content and "call" not in c.metadata][:N_FORMS]
    renderer = Renderer(loaded.vocabulary)
    sampled = Sampler(loaded).sample([renderer.prompt(c) for c in plain], TOKENS)
    finals = [parse_completion(each.ids, loaded.vocabulary, finish_reason=each.finish_reason).final for each in sampled]
    return sum(" is " in (final or "") for final in finals) / len(finals)


def _table(folder: Path) -> None:
    columns = ("run", "rounding", "R", "R_e", "change, s_W, s_H, e_H", "loss: live, base, exported", "form", "tasks")
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    for line in (folder / "results.jsonl").read_text().splitlines():
        each = json.loads(line)
        gate, experts = each["manifest"]["gate"], each["manifest"]["experts"][0]
        change = f"{100 * (experts['change'] / experts['base']) ** 0.5:.1f} %"
        shares = [change, *("-" if experts[k] is None else f"{experts[k]:.2f}" for k in ("s_W", "s_H", "e_H"))]
        ratios = [_interval(gate[name], "value", 1, ".3f") for name in ("ratio", "ratio_experts")]
        tasks = [f"{name} {_interval(v['difference'], 'value', 100, '+.1f')}" for name, v in gate["tasks"].items()]
        losses, forms = (
            ", ".join(f"{each[what][side]:.3f}" for side in ("live", "base", "exported")) for what in ("loss", "form")
        )
        cells = [each["run"], each["rounding"], *ratios, ", ".join(shares), losses, forms, "; ".join(tasks)]
        print("|", " | ".join(cells), "|")


def _interval(of: dict[str, Any], name: str, factor: float, form: str) -> str:
    value, low, high = (of[key] for key in (name, "low", "high"))
    shown = f"{factor * value:{form}}"
    return shown if low is None else f"{shown} ({factor * low:{form}} to {factor * high:{form}})"


def _run(arguments: list[str]) -> None:
    print("counterpoint", *arguments, flush=True)
    if code := counterpoint(arguments):
        raise SystemExit(code)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("base", "light", "export", "table"))
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="", help="of a variant of the light run")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--aware", type=float, help="quantization_from, with quantization_aware")
    parser.add_argument("--rounding", choices=("calibrated", "dithered", "nearest"))
    parser.add_argument("--prompts", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()
