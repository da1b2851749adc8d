"""Runs adapters: each in an environment of its own, in a process of its own. The standard library alone.

    python run.py PEER ANSWERS.jsonl [SETTING ...]     answers of one peer, which `score.py` reads

A peer is a folder of `peers/`: `adapter.py`, `how.md`, `requirements.txt`, and `no-deps.txt` for packages that are
installed without what they require (their requirements hold CUDA, which no adapter needs).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SUITE = Path(__file__).resolve().parent
SHARED = "shared"
"""The environment of `peers/shared.txt`: PyTorch, which the others see and do not install again."""


class RunError(Exception):
    """A peer cannot run; the message says why and what to do."""


@dataclass
class Run:
    """What one adapter answered: by case id, with the versions that it named and how long it took, in seconds."""

    versions: dict[str, str]
    answers: dict[str, Json]
    seconds: float


def peers(suite: Path = SUITE) -> list[str]:
    return sorted(path.parent.name for path in (suite / "peers").glob("*/adapter.py"))


def questions(cases: Mapping[str, Json]) -> list[Json]:
    """What an adapter sees of each case: nothing that tells the right answer."""
    hidden = ("actions", "property", "status", "why", "valid", "expect", "code", "group")
    lines: list[Json] = []
    for case in cases.values():
        line = {key: value for key, value in case.items() if key not in hidden}
        if "actions" in case:
            line["at"] = [action["at"] for action in case["actions"] if not action["optional"]]
        lines.append(line)
    return lines


def python_of(peer: str, environments: Path) -> Path:
    """The interpreter of a peer: this one for what needs no package, else that of its environment. RunError where the
    environment is not there."""
    if not (SUITE / "peers" / peer / "requirements.txt").exists():
        return Path(sys.executable)
    python = environments / peer / "bin" / "python"
    if not python.exists():
        raise RunError(f"{peer}: no environment in {environments / peer}: run again with --install")
    return python


def install(peer: str, environments: Path, newest: bool = False) -> float:
    """Makes the environment of a peer, anew where there is one; returns the seconds. newest: versions are not kept to
    those of its files. RunError where pip fails."""
    folder = SUITE / "peers" / peer
    if not (folder / "requirements.txt").exists():
        return 0.0
    start = time.monotonic()
    shared = environments / SHARED
    if not (shared / "bin" / "python").exists():
        venv.create(shared, with_pip=True)
        _pip(shared, ["-r", str(SUITE / "peers" / f"{SHARED}.txt")], SHARED)
    venv.create(environments / peer, with_pip=True, clear=True)
    _packages(environments / peer).joinpath("shared.pth").write_text(f"{_packages(shared)}\n")
    for file, options in (("requirements.txt", []), ("no-deps.txt", ["--no-deps"])):
        if (folder / file).exists():
            lines = (line.partition("#")[0].strip() for line in (folder / file).read_text("utf-8").splitlines())
            wanted = [line.partition("==")[0] if newest else line for line in lines if line]
            _pip(environments / peer, [*options, *wanted], peer)
    return time.monotonic() - start


def _packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))


def _pip(environment: Path, arguments: Sequence[str], peer: str) -> None:
    if not arguments:
        return
    command = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:] or ["pip failed"]
        raise RunError(f"{peer}: {last[0]}")


def ask(
    peer: str,
    cases: Mapping[str, Json],
    *,
    environments: Path,
    checkpoint: Path,
    arguments: Sequence[str] = (),
    prompts: bool = False,
    timeout: float = 900,
) -> Run:
    """Runs the adapter of `peer` on `cases`. checkpoint: a folder as `tokenizer.py` writes it. prompts: asks for what a
    server puts before the model, in place of training examples. RunError where it dies or takes longer than `timeout`
    seconds."""
    command = [str(python_of(peer, environments)), str(SUITE / "peers" / peer / "adapter.py")]
    told = {
        **os.environ,
        "GPT_OSS_FOLDER": str(checkpoint),
        "TIKTOKEN_ENCODINGS_BASE": str(checkpoint),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in questions(cases))
    start = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(["prompts"] if prompts else []), *arguments],
            input=lines.encode(),
            capture_output=True,
            env=told,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{peer}: no end after {timeout:.0f} s") from None
    seconds = time.monotonic() - start
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise RunError(f"{peer}: its adapter ended with {done.returncode}: {said[0][:300]}")
    answers = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    versions = next((answer["versions"] for answer in answers if "versions" in answer), {})
    return Run(versions, {answer.pop("id"): answer for answer in answers if "id" in answer}, seconds)


def reference(name: str, run: Run, cases: Mapping[str, Json]) -> Json:
    """A reference file: prompts as lists of messages, each stored once."""
    table: dict[tuple[int, ...], int] = {}
    prompts: dict[str, list[list[int] | None]] = {}
    refused: dict[str, str] = {}
    for id_, case in cases.items():
        answer = run.answers.get(id_, {"error": "no answer"})
        if "prompts" not in answer:
            refused[id_] = answer.get("unsupported", answer.get("error", ""))
            continue
        made = iter(answer["prompts"])
        parts: list[list[int] | None] = []
        for action in case["actions"]:
            ids = None if action["optional"] else next(made)
            parts.append(None if ids is None else [table.setdefault(m, len(table)) for m in _split(ids)])
        prompts[id_] = parts
        if "refused" in answer:
            refused[id_] = answer["refused"]
    return {
        "name": name,
        "versions": run.versions,
        "messages": [*map(list, table)],
        "prompts": prompts,
        "refused": refused,
    }


def _split(ids: Sequence[int]) -> list[tuple[int, ...]]:
    starts = [at for at, id_ in enumerate(ids) if id_ == 200006 or at == 0]
    return [tuple(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


def reference_text(stored: Json) -> str:
    """The file of a reference: one line a message, one a case."""
    small = (",", ":")
    messages = ",\n".join(json.dumps(ids, separators=small) for ids in stored["messages"])
    prompts = ",\n".join(f"{json.dumps(id_)}:{json.dumps(p, separators=small)}" for id_, p in stored["prompts"].items())
    refused = ",\n".join(f"{json.dumps(id_)}:{json.dumps(why)}" for id_, why in stored["refused"].items())
    head = json.dumps({"name": stored["name"], "versions": stored["versions"]})[1:-1]
    return f'{{{head},\n"messages":[\n{messages}\n],\n"prompts":{{\n{prompts}\n}},\n"refused":{{\n{refused}\n}}}}\n'


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in peers():
        print(f"usage: python run.py PEER ANSWERS.jsonl [SETTING ...]; peers: {', '.join(peers())}", file=sys.stderr)
        return 2
    checkpoint = os.environ.get("GPT_OSS_FOLDER")
    if checkpoint is None:
        print("GPT_OSS_FOLDER is not set: write the folder with tokenizer.py", file=sys.stderr)
        return 2
    sys.path.insert(0, str(SUITE))
    from score import Suite

    suite = Suite(SUITE)
    environments = Path(os.environ.get("CONFORMANCE_ENVIRONMENTS", SUITE / "environments"))
    try:
        run = ask(
            arguments[0], suite.cases, environments=environments, checkpoint=Path(checkpoint), arguments=arguments[2:]
        )
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    rows = ({"id": id_, **answer} for id_, answer in run.answers.items())
    Path(arguments[1]).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    print(f"{arguments[0]}: {len(run.answers)} answers in {run.seconds:.1f} s, {run.versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
