"""Ask a running endpoint whether it serves what was trained: prompts id for id, the adapter, stop tokens, calls.

examples:
  counterpoint verify http://localhost:8000 --checkpoint my-export
  counterpoint verify localhost:8000 data.serving=vllm_0_30

vLLM, SGLang, llama.cpp and Ollama are asked in their own ways, and what one cannot tell is said. Without a checkpoint
the prompts alone are compared, as `data` settings say they were trained. Exit code: 0 nothing differs, 1 something
does, 2 nothing could be told. A key of the server is read from COUNTERPOINT_SERVER_KEY.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterpoint.train.serving.probes import Serving
    from counterpoint.train.serving.verify import Finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server, with or without /v1")
    parser.add_argument(
        "settings", nargs="*", metavar="data.key=value", help="settings of training, without a checkpoint"
    )
    parser.add_argument("--checkpoint", metavar="FOLDER", help="an export, with its serving.json; or a run folder")
    parser.add_argument("--model", metavar="NAME", help="model of the server (its first adapter, or its first)")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of one request (120)")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    from counterpoint.configs.errors import RunError
    from counterpoint.data.harmony.vocabulary import load_vocabulary
    from counterpoint.data.pages.visible import visible_line
    from counterpoint.train.serving.endpoint import KINDS, Endpoint
    from counterpoint.train.serving.verify import exit_code, verify

    serving = _serving(args.checkpoint, args.settings)
    try:
        endpoint = Endpoint(args.url, args.model, args.timeout)
    except RunError as error:
        print(visible_line(str(error), 600), file=sys.stderr)
        return 2
    findings: list[Finding] = []
    if not args.json:
        server = f"{KINDS[endpoint.kind]} {endpoint.version}, model {endpoint.model}"
        print(visible_line(f"{server}; trained for {serving.opening.serving}"))
    for finding in verify(endpoint, serving, load_vocabulary()):
        findings.append(finding)
        if not args.json:
            print(f"{finding.verdict:<11} {finding.question:<18} {visible_line(finding.detail, 600)}", flush=True)
    code = exit_code(findings)
    if args.json:
        told = {"server": endpoint.kind, "version": endpoint.version, "model": endpoint.model, "exit": code}
        print(json.dumps({**told, "findings": [finding.as_dict() for finding in findings]}, ensure_ascii=False))
    return code


def _serving(checkpoint: str | None, settings: list[str]) -> Serving:
    from pathlib import Path

    from counterpoint.configs.data_section import RenderSettings
    from counterpoint.configs.errors import ConfigError
    from counterpoint.configs.load import load_run
    from counterpoint.data.harmony.vocabulary import load_vocabulary
    from counterpoint.train.serving.probes import SERVING_FILE, Serving, probes_of

    for setting in settings:
        if not setting.startswith("data."):
            raise ConfigError(f"{setting}: of the settings only data.* say how prompts were trained: leave it out")
    vocabulary = load_vocabulary()
    if checkpoint is not None and (Path(checkpoint) / SERVING_FILE).is_file():
        if settings:
            raise ConfigError(f"{settings[0]}: {checkpoint} says how it was trained: leave the settings out")
        serving = Serving.read(Path(checkpoint))
        if serving.vocabulary != vocabulary.fingerprint:
            raise ConfigError(
                f"{checkpoint}: its model has a vocabulary of its own, which no server has: nothing to verify"
            )
        return serving
    if checkpoint is not None:
        from counterpoint.train.checkpoints.find import find_checkpoint

        run = find_checkpoint(checkpoint).run
        if run is None:
            raise ConfigError(f"{checkpoint}: no {SERVING_FILE} and no run there: give an export or a run folder")
        opening = RenderSettings.of(run.data)
    else:
        values = {"recipe": "sft", "data": {"train": ["-"]}}
        opening = RenderSettings.of(load_run(None, settings, values).data)  # type: ignore[attr-defined]
    return Serving(opening, vocabulary.fingerprint, probes_of(opening, vocabulary))
