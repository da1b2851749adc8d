"""What the scripts share that run inside a server's environment: requests on stdin, answers on stdout.

They use nothing but the standard library and the server.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

Ids = Callable[[dict[str, Any]], list[int]]


def version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def answer_requests(apis: dict[str, tuple[dict[str, str], Ids]]) -> None:
    """Every request of stdin through every API. apis: by name, the head of its answers, and request -> prompt ids,
    which raises what the server would."""
    out = sys.stdout
    requests = [json.loads(line) for line in sys.stdin]
    for api, (head, ids_of) in apis.items():
        print(json.dumps({"api": api, **head}), file=out)
        for line in requests:
            answer: dict[str, Any]
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    answer = {"ids": list(ids_of(line["request"]))}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
            print(json.dumps({"api": api, "id": line["id"], **answer}), file=out)
