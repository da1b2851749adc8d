"""Counterpoint: `counterpoint prepare` and `counterpoint check`; arguments are settings (`data.serving=vllm`)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
from protocol import Json, answer, cases, versions


def counterpoint(*arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "counterpoint.recipes.cli", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode > 1:
        raise SystemExit(f"counterpoint {arguments[0]} ended with {done.returncode}")
    return done.stdout


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write(path: Path, rows: list[Json]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def train(given: list[Json], folder: Path) -> None:
    rows, out, bad = folder / "rows.jsonl", folder / "out.jsonl", folder / "bad.jsonl"
    write(rows, [{**case["row"], "reasoning_effort": case["effort"]} for case in given])
    settings = [f"data.date={given[0]['date']}", "data.bad_rows_limit=1", "data.unanswered=keep"]
    # The cases ask how a row is written, also one whose call its schema refuses.
    settings += [f"data.bad_targets.{group}=keep" for group in ("tools", "arguments", "response_format", "text")]
    settings += sys.argv[1:]
    counterpoint("prepare", str(rows), "--format", "openai", "--out", str(out), "--quarantine", str(bad), *settings)
    found: list[list[Json]] = [[] for _ in given]
    for example in lines(out):
        at = int(example["source"].rpartition(":")[2]) - 1
        found[at].append({"ids": example["input_ids"], "mask": [int(w > 0) for w in example["weights"]]})
    refused = {int(row["source"].rpartition(":")[2]) - 1: row for row in lines(bad)}
    for at, case in enumerate(given):
        if found[at]:
            answer(case["id"], {"examples": found[at]})
        else:
            why = refused.get(at, {"kind": "no_example", "field": "", "what": ""})
            kind = "unsupported" if why["kind"] == "not_served" else "error"
            answer(case["id"], {kind: f"{why['kind']}: {why['field']}: {why['what']}"[:300]})


def read(given: list[Json], folder: Path) -> None:
    keys = ("tools", "builtin_tools", "response_format")
    rows = [{"tokens": case["ids"], **{key: case[key] for key in keys if key in case}} for case in given]
    write(folder / "completions.jsonl", rows)
    printed = counterpoint("check", str(folder / "completions.jsonl"), "--json", "--messages", "--no-policy")
    for case, line in zip(given, printed.splitlines(), strict=False):
        found = json.loads(line)
        codes = [violation["code"] for violation in found["violations"]]
        verdict = {"refused": True, "code": codes[0]} if codes else {"messages": found["messages"]}
        answer(case["id"], verdict)


versions("counterpoint")
every = list(cases())
with tempfile.TemporaryDirectory() as name:
    for part, handle in (([c for c in every if "row" in c], train), ([c for c in every if "ids" in c], read)):
        if part:
            handle(part, Path(name))
