"""vLLM: the prompts of its render server, which needs no weights and no GPU, and its parser of completions.

An argument `url=http://host:port` asks a server that runs already (`vllm launch render`).
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "adapting"))
from protocol import Json, Unsupported, serve

BUILTINS = ("python", "browser.search", "browser.open", "browser.find")


def started() -> str:
    """The address of a render server that this process started; the date is pinned, as vLLM's setting has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"VLLM_SYSTEM_START_DATE": "2025-06-28", "VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1"}
    command = [str(Path(sys.executable).with_name("vllm")), "launch", "render", os.environ["GPT_OSS_FOLDER"]]
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "m"]
    server = subprocess.Popen([*command, *options], env={**os.environ, **own}, stdout=2)
    atexit.register(server.terminate)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return f"http://127.0.0.1:{port}"
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    raise SystemExit("the render server did not start")


URL = next((a.removeprefix("url=") for a in sys.argv if a.startswith("url=")), None) or started()


def request(case: Json, stop: int) -> Json:
    """As a client sends a conversation back: its thoughts in the field that the version reads."""
    row = case["row"]
    messages = []
    for said in row["messages"][:stop]:
        message = {key: value for key, value in said.items() if key != "thinking"}
        if said.get("thinking") is not None:
            message |= {"reasoning": said["thinking"], "reasoning_content": said["thinking"]}
        messages.append(message)
    extra = {key: row[key] for key in ("response_format",) if key in row}
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {"model": "m", "messages": messages, "reasoning_effort": case["effort"], **tools, **extra}


def prompts(case: Json) -> Json:
    if case["row"].get("builtin_tools"):
        raise Unsupported("its chat API declares no built-in tools")
    found: list[list[int] | None] = []
    refused: dict[str, str] = {}
    for stop in case["at"]:
        body = json.dumps(request(case, stop)).encode()
        head = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{URL}/v1/chat/completions/render", body, head)
        try:
            found.append(json.load(urllib.request.urlopen(asked, timeout=60))["token_ids"])
        except urllib.error.HTTPError as error:
            found.append(None)
            refused = {"refused": json.load(error).get("error", {}).get("message", "")[:200]}
    return {"prompts": found, **refused}


serve("vllm", prompts=prompts)
