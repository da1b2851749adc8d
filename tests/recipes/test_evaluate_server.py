"""`counterpoint evaluate` on a server that answers `/v1/completions` with token ids; no weights anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonHandler, serving

from counterpoint.data.harmony.vocabulary import STOP_IDS, load_vocabulary
from counterpoint.recipes.cli import main

SAID = "<|channel|>analysis<|message|>One more.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"


class Sums(ThreadingHTTPServer):
    """Adds one to the number that the user names; at low effort it leaves the analysis out."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []


class Handler(JsonHandler):
    server: Sums  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:  # noqa: N802 (http.server calls it so)
        self.reply({"data": [{"id": "openai/gpt-oss-20b"}]})

    def do_POST(self) -> None:  # noqa: N802 (http.server calls it so)
        body = self.asked()
        self.server.asked.append(body)
        text = load_vocabulary().decode(body["prompt"])
        number = int(text.rpartition("<|start|>user<|message|>")[2].partition(" ")[0])
        said = SAID.format(number + 1)
        if "Reasoning: low" in text:
            said = said.partition("<|start|>assistant")[2]
        ids = load_vocabulary().encode_with_specials(said)
        choice = {"token_ids": ids, "prompt_token_ids": body["prompt"], "finish_reason": "stop", "stop_reason": ids[-1]}
        self.reply({"choices": [choice]})


@pytest.fixture
def server() -> Iterator[Sums]:
    with serving(Sums()) as fake:
        yield fake


def test_a_server_is_measured_on_channels_and_answers(
    server: Sums, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"messages": [{"role": "user", "content": f"{n} + 1?"}], "answer": n + 1} for n in range(4)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"http://127.0.0.1:{server.server_port}/v1"
    command = ["evaluate", "openai/gpt-oss-20b", "eval.engine=server", f"eval.server.url={url}"]
    command += ["eval.prompts=sums.jsonl", "eval.samples=2", "--out", "out"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "The gpt-oss-20b model is right on every channel in 24 of 24 samples" in out
    assert "Right answers: 1.00 of 24." in out
    assert out.splitlines()[-1] == "channel-correct: 1.00"
    assert len(server.asked) == 24
    assert all(body["stop_token_ids"] == list(STOP_IDS) for body in server.asked)
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert told["base"] is None
    assert told["tuned"]["label"] == "gpt-oss-20b"
    assert told["tuned"]["efforts"]["low"]["with_analysis"]["count"] == 0
    assert told["tuned"]["effort"]["choice"] == {"interactive": "low", "agentic": "low", "offline": "low"}
    assert main(command) == 0
    assert len(server.asked) == 24, "nothing is asked for twice"
