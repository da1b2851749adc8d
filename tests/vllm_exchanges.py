"""Requests of ours to a vLLM server and what it answers, recorded: tests without vLLM read real answers.

    python tests/vllm_exchanges.py http://localhost:8000 > tests/golden/served/vllm-0.32.0-exchanges.json

asks the server of tests/vllm_server.py; tests/recipes/test_real_vllm_server.py holds the file to a server that runs.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.server import Wanted, completion_body
from counterpoint.train.sampling.truncation import Truncation

RECORDED = Path(__file__).parent / "golden" / "served" / "vllm-0.32.0-exchanges.json"
PROMPT = [200006, 1428, 200008, 2578, 220, 3020, 326, 220, 1161, 13, 200007, 200006, 173781]
"""<|start|>user<|message|>Add 34 and 25.<|end|><|start|>assistant"""

REQUESTS: list[tuple[str, dict[str, Any] | None]] = [
    ("/version", None),
    ("/v1/models", None),
    ("/v1/completions", completion_body("base", PROMPT, 3, 0.7, 11, STOP_IDS, Wanted(Truncation(0.9, 40, 0.01), logprobs=True))),
    ("/v1/completions", completion_body("base", [*PROMPT, 200005, 17196, 200008, 3020, 200002, 200006], 2, 0, 0, [173781], Wanted(logprobs=True))),
    ("/v1/completions", {"model": "base", "prompt": PROMPT, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}),
    ("/v1/completions", completion_body("counterpoint-00000000-1-000000000000", PROMPT, 1, 0, 0, STOP_IDS)),
    ("/v1/completions", completion_body("base", [201088], 1, 0, 0, STOP_IDS)),
    ("/v1/completions", completion_body("base", PROMPT, 5000, 0, 0, STOP_IDS)),
    ("/v1/load_lora_adapter", {"lora_name": "away", "lora_path": "/nowhere/adapter", "is_3d_lora_weight": True}),
    ("/v1/unload_lora_adapter", {"lora_name": "away"}),
]  # fmt: skip


def exchanges(server: str) -> list[dict[str, Any]]:
    """path, body, status and answer of each request; an answer that is not JSON as text."""
    found: list[dict[str, Any]] = []
    for path, body in REQUESTS:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{server}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            said = json.loads(text)
        except ValueError:
            said = text
        found.append({"path": path, "body": body, "status": status, "answer": said})
    return found


def shape(value: Any) -> Any:
    """Names, kinds and lengths of an answer, without its numbers and texts."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


if __name__ == "__main__":
    json.dump(exchanges(sys.argv[1]), sys.stdout, indent=1)
