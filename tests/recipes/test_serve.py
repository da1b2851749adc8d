"""counterpoint serve: the endpoint of a checkpoint, asked over real HTTP while the command runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from counterpoint.recipes.cli import main
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.sampling.server import Server

ASKED = [{"role": "user", "content": "What is 12 + 15?"}]


def post(server: ChatServer, body: dict[str, Any], key: str = "sk-mine", **headers: str) -> dict[str, Any]:
    url = f"{server.root}/v1/chat/completions"
    head = {"Authorization": f"Bearer {key}", **headers}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), head), timeout=60) as reply:
        return json.load(reply)


def test_clients_say_how_they_are_sampled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, list[Any]] = {}

    def talk(server: ChatServer) -> None:
        def said(body: dict[str, Any], **headers: str) -> Any:
            answer = post(server, {"messages": ASKED, **body}, **headers)
            choice = answer["choices"][0]
            return choice["finish_reason"], choice["message"]["content"], answer["usage"]["completion_tokens"]

        told["greedy"] = [said({"temperature": 0}) for _ in range(2)]
        told["seeded"] = [said({"seed": seed}) for seed in (1, 1, 2)]
        told["drawn"] = [said({}) for _ in range(4)]
        told["short"] = [said({"max_tokens": 3})]
        told["longest"] = [said({"max_tokens": 4000, "stop": "nothing"})]
        first = post(server, {"messages": ASKED, "temperature": 0}, **{"X-Session-ID": "mine"})
        again = [*ASKED, first["choices"][0]["message"], {"role": "user", "content": "+ 1?"}]
        told["session"] = [said({"messages": again}, **{"X-Session-ID": "mine"})]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(server, {"messages": ASKED}, key="guess")

    monkeypatch.setenv("COUNTERPOINT_SERVE_KEY", "sk-mine")
    monkeypatch.setattr(ChatServer, "wait", talk)
    assert main(["serve", "tiny", "--port", "0", "--effort", "low", "--device", "cpu", "--max-new-tokens", "40"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("http://127.0.0.1:")
    assert "model tiny  (for evaluation, not for production)" in out
    assert "sk-mine" not in out
    assert told["greedy"][0] == told["greedy"][1]
    assert told["seeded"][0] == told["seeded"][1] != told["seeded"][2]
    assert len(set(told["drawn"])) > 1
    assert told["short"] == [("length", "", 3)]
    assert told["longest"][0][2] <= 40
    assert told["session"][0][2] > 0


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "tiny", "--port", str(port), "--device", "cpu"]) == 1
    assert capsys.readouterr().err == f"--port {port}: Address already in use: take another one\n"


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of `counterpoint serve tiny` in a process of its own."""
    command = "import sys; from counterpoint.recipes.cli import main; sys.exit(main())"
    serve = [sys.executable, "-P", "-c", command, "serve", "tiny", "--port", "0", "--device", "cpu", *options]
    environment = {**os.environ, "COUNTERPOINT_SERVE_KEY": "sesame"}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


def metrics(output: Path, name: str) -> list[dict[str, Any]]:
    (folder,) = output.glob(f"{name}-*")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_teacher_is_served_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`grpo` with the teacher in memory, and behind `counterpoint serve`: the same numbers."""
    monkeypatch.setenv("COUNTERPOINT_SERVER_KEY", "sesame")
    common = [
        "train", "grpo/tiny_teacher", "model.init=random", "train.steps=2", "train.device=cpu", "eval.at_start=false",
        "eval.at_end=false", "data.valid=[]", "rollout.action_tokens=12", f"output={tmp_path}",
    ]  # fmt: skip
    with served() as url:
        assert main([*common, "name=near"]) == 0
        behind = ["grpo.teacher.model=null", f"grpo.teacher.server.url={url}"]
        assert main([*common, *behind, "name=far"]) == 0
    told = [
        [row["teacher/reverse_kl"] for row in metrics(tmp_path, name) if "teacher/reverse_kl" in row]
        for name in ("near", "far")
    ]
    assert len(told[0]) == 2
    assert told[1] == pytest.approx(told[0], abs=1e-5)


@pytest.mark.slow
def test_rollouts_are_sampled_by_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`grpo` that samples in memory, and behind `counterpoint serve --enable-lora`: the same tokens, adapter by adapter."""
    monkeypatch.setenv("COUNTERPOINT_SERVER_KEY", "sesame")
    reward = tmp_path / "rewards.py"
    reward.write_text("def even(rollout):\n    return sum(id_ % 2 == 0 for id_ in rollout.completion.ids) / 24\n")
    common = [
        "train", "grpo/tiny_sums", f"rewards=[{{type: function, function: '{reward}:even'}}]", "lora.enabled=true", "train.steps=3", "train.batch_rows=16", "grpo.group=4",
        "train.learning_rate=1e-2", "train.log_every=1", "eval.at_start=false", "eval.at_end=false",
        "rollout.action_tokens=24", f"output={tmp_path}",
    ]  # fmt: skip
    with served("--enable-lora") as url:
        assert main([*common, "name=near"]) == 0
        assert main([*common, "rollout.engine=server", f"rollout.server.url={url}", "name=far"]) == 0
        listed = Server(url).models()
    assert [name.rsplit("-", 2)[1] for name in listed[1:]] == ["2"], "older adapters are unloaded"
    near, far = (
        [[row[key] for key in ("loss", "reward", "num_tokens")] for row in metrics(tmp_path, name) if "loss" in row]
        for name in ("near", "far")
    )
    assert len(near) == 3
    for one, other in zip(far, near, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
