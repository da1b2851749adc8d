"""Servers that `train` starts beside itself: `vllm` here is a small program that answers /v1/models, as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import GrpoRun
from counterpoint.recipes.commands.train_servers import devices_of, needs_servers, server_command

VLLM = f"""#!{sys.executable}
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
print("started", flush=True)
if os.environ.get("BROKEN"):
    print("ValueError: no such model", flush=True)
    sys.exit(1)
with open(os.environ["SEEN"], "a") as file:
    file.write(json.dumps([os.getpid(), port, sys.argv[1:], os.environ["CUDA_VISIBLE_DEVICES"]]) + "\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{{"data": []}}')
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
# What it does in place of the command line: the first argument is a program of Python.
RUNS = """
import sys
from counterpoint.configs.load import load_run
from counterpoint.recipes import cli
from counterpoint.recipes.commands import train_servers
from counterpoint.recipes.commands.launch import SIGNALS
import os
settings = load_run("grpo/gpt_oss_20b_servers", [f"launch.serve.port={sys.argv[2]}", f"output={sys.argv[3]}",
    f"launch.serve.command={sys.argv[4]}", "launch.processes=1", "launch.serve.servers=2", "launch.strategy=ddp"])
train_servers.sys.executable = sys.argv[5]
try:
    sys.exit(train_servers.train_with_servers(settings, [sys.argv[1]], os.environ, SIGNALS))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(9)
"""


class Place:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.vllm, self.python = folder / "vllm", folder / "python"
        self.vllm.write_text(VLLM)
        # `-m counterpoint.recipes.cli PROGRAM` runs PROGRAM.
        self.python.write_text(f'#!/bin/bash\nexec {sys.executable} -c "$3"\n')
        for each in (self.vllm, self.python):
            each.chmod(0o755)

    def start(self, program: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUNS, textwrap.dedent(program), str(self.port), str(self.folder / "runs"),
             str(self.vllm), str(self.python)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "4,5,6,7", "SEEN": str(self.folder / "seen"), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def seen(self) -> list[Any]:
        path = self.folder / "seen"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def none_left(self) -> bool:
        def alive(pid: int) -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            return True

        until = time.monotonic() + 20
        while any(alive(pid) for pid, *_ in self.seen) and time.monotonic() < until:
            time.sleep(0.05)
        return not any(alive(pid) for pid, *_ in self.seen)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    while True:  # two neighbours
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port > 64000:
                continue
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return Place(tmp_path, port)


def test_servers_have_gpus_of_their_own_and_end_with_the_run(place: Place) -> None:
    run = place.start("""
        import os, sys
        print("trains on", os.environ["CUDA_VISIBLE_DEVICES"], os.environ["COUNTERPOINT_SERVERS_STARTED"], flush=True)
        sys.exit(3)
    """)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 3
    assert "trains on 4 1" in said
    assert "all answer after" in said
    found = sorted((port, gpu) for _, port, _, gpu in place.seen)
    assert found == [(place.port, "5"), (place.port + 1, "6")]
    assert place.none_left()


def test_a_server_that_dies_is_started_again_and_a_signal_is_passed_on(place: Place) -> None:
    run = place.start("""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saves", flush=True), sys.exit(143)))
        print("trains", flush=True)
        time.sleep(60)
    """)
    assert run.stdout is not None
    while run.stdout.readline() != "trains\n":
        assert run.poll() is None
    os.kill(place.seen[0][0], signal.SIGKILL)
    until = time.monotonic() + 30
    while len(place.seen) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    dead, _, again = place.seen
    if dead[1] != again[1]:
        dead = place.seen[1]
    assert dead[1:] == again[1:]
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "saves" in said
    assert "died (started): it is started again" in said
    assert place.none_left()


def test_a_server_that_does_not_start_ends_the_run_with_what_it_wrote(place: Place) -> None:
    run = place.start("print('trains')", BROKEN="1")
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 9
    assert "RunError: launch.serve: a server ended before it answered" in said
    assert "ValueError: no such model" in said
    assert "trains" not in said


def settings(*given: str) -> GrpoRun:
    found = load_run("grpo/gpt_oss_20b_servers", given)
    assert isinstance(found, GrpoRun)
    return found


def test_the_command_is_vllms(tmp_path: Path) -> None:
    run = settings("rollout.routes=replay", "launch.serve.arguments=[--kv-cache-dtype, fp8]", "launch.serve.gpus=2")
    command = server_command(run, "vllm", 8100)
    assert command[:3] == ["vllm", "serve", "openai/gpt-oss-20b"]
    options = dict(zip(command[3::2], command[4::2], strict=False))
    assert (options["--host"], options["--port"]) == ("127.0.0.1", "8100")
    assert "--enable-return-routed-experts" in command
    assert command[-2:] == ["--kv-cache-dtype", "fp8"]
    longest = run.data.max_tokens + run.rollout.completion_tokens
    assert command[command.index("--max-model-len") + 1] == str(longest)
    for given, tokens in (
        ("eval.max_new_tokens=9000", 9000),
        ("eval.tasks=[{type: arithmetic, max_new_tokens: 9001}]", 9001),
        ("eval={tools: {python: true}, completion_tokens: 9002}", 9002),
        ("eval.tasks=[{type: file, path: rows.jsonl, completion_tokens: 9003}]", 9003),
    ):
        longer = server_command(settings(given), "vllm", 8100)
        assert longer[longer.index("--max-model-len") + 1] == str(run.data.max_tokens + tokens), given
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[command.index("--max-lora-rank") + 1] in {"8", "16", "32"}


def test_gpus_are_told_where_they_are_too_few() -> None:
    run = settings("launch.processes=4", "launch.serve.servers=2", "launch.serve.gpus=2")
    own, theirs = devices_of(run, {}, lambda: 8)
    assert (own, theirs) == (["0", "1", "2", "3"], [["4", "5"], ["6", "7"]])
    with pytest.raises(ConfigError, match=r"need 8 GPUs, and this machine has 6: lower launch\.processes"):
        devices_of(run, {}, lambda: 6)
    assert needs_servers(run, {})
    assert not needs_servers(run, {"COUNTERPOINT_SERVERS_STARTED": "1"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["rollout.engine=transformers", "launch.strategy=ddp"], "`launch.serve` is for `rollout.engine: server`"),
        (["launch.nodes=2"], "`launch.serve` starts servers on one machine"),
        (["rollout.server.url=http://gpu1:8000/v1"], "leave `rollout.server.url` and `url_file` out"),
    ],
)
def test_what_does_not_go_together_is_told(given: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(*given)
    assert told in str(error.value)
