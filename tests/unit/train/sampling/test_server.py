"""The server engine against a small server of the test's own: what it asks, what it takes, what it does with faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.configs.errors import ConfigError, ModelError, RunError
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.sampling.expert_routes import encoded
from counterpoint.train.sampling.server import KEY_VARIABLE, ServerEngine
from counterpoint.train.sampling.truncation import Truncation


class Fake(ThreadingHTTPServer):
    """Answers each prompt with its own ids backwards; `faults` are statuses to give first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.change: dict[str, Any] = {}
        self.adapters: list[tuple[str, dict[str, Any]]] = []
        self.refuses: str | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Fake  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/version":
            self.reply(200, {"version": "0.14.1"})
        else:
            self.reply(200, {"data": [{"id": "openai/gpt-oss-20b"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("_adapter"):
            self.server.adapters.append((self.path, body))
            told = self.server.refuses
            self.reply(400 if told else 200, told or "Success: done")
            return
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            fault = self.server.faults.pop() if self.server.faults else 200
        if fault == 0:
            self.connection.close()
            return
        if fault != 200:
            self.reply(fault, {"error": {"message": "no room"}})
            return
        ids = body["prompt"][::-1]
        long = len(ids) > body["max_tokens"]
        choice = {
            "token_ids": ids[: body["max_tokens"]] if long else [*ids, RETURN],
            "prompt_token_ids": body["prompt"],
            "finish_reason": "length" if long else "stop",
            "stop_reason": None if long else RETURN,
            "logprobs": {"token_logprobs": [-0.25] * (body["max_tokens"] if long else len(ids) + 1)},
            **self.server.change,
        }
        self.reply(200, {"choices": [choice]})

    def reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Fake]:
    fake = Fake()
    thread = threading.Thread(target=fake.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    fake.shutdown()
    fake.server_close()


def engine(server: Fake, **settings: Any) -> ServerEngine:
    made = ServerEngine.connected(ServerSettings(url=server.url, **settings))
    made.pause = 0
    return made


def test_ids_go_in_and_out(server: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    found = engine(server, parallel=3).sample([[1, 2], [3, 4, 5, 6, 7], [8]], 4, 0.7, seed=[11, 12, 2**62])
    assert [s.ids for s in found] == [[2, 1, RETURN], [7, 6, 5, 4], [8, RETURN]]
    assert [s.finish_reason for s in found] == ["stop", "length", "stop"]
    asked = sorted(server.asked, key=lambda body: body["prompt"])
    assert asked[0] == {
        "model": "openai/gpt-oss-20b", "prompt": [1, 2], "max_tokens": 4, "temperature": 0.7, "seed": 11,
        "stop_token_ids": [RETURN, CALL], "ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False,
        "n": 1,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }  # fmt: skip
    assert asked[2]["seed"] == 2**62
    assert set(server.keys) == {"Bearer sesame"}
    replace(engine(server), truncation=Truncation(0.9, 50, 0.01)).sample([[1]], 4)
    assert {name: server.asked[-1][name] for name in ("top_p", "top_k", "min_p")} == {
        "top_p": 0.9, "top_k": 50, "min_p": 0.01,
    }  # fmt: skip


def test_one_seed_is_derived_for_each_prompt(server: Fake) -> None:
    engine(server, model="mine").sample([[1], [1]], 4, seed=5)
    assert len({body["seed"] for body in server.asked}) == 2
    assert {body["model"] for body in server.asked} == {"mine"}
    assert server.keys == [None, None]


def test_a_stop_token_that_the_server_left_out_is_put_back(server: Fake) -> None:
    server.change = {"token_ids": [5], "stop_reason": CALL}
    assert engine(server).sample([[1]], 4)[0].ids == [5, CALL]


def test_log_probabilities_come_along(server: Fake) -> None:
    made = engine(server)
    assert made.sample([[1]], 4)[0].logprobs is None
    made.logprobs = True
    assert made.sample([[1, 2]], 4)[0].logprobs == [-0.25] * 3
    assert server.asked[-1]["logprobs"] == 0
    server.change = {"logprobs": {"token_logprobs": [None]}, "token_ids": [5], "stop_reason": CALL}
    assert made.sample([[1]], 4)[0].logprobs == [None, None]
    server.change = {"logprobs": None}
    with pytest.raises(ModelError, match="no log-probabilities"):
        made.sample([[1]], 4)


def test_the_experts_of_tokens_come_along(server: Fake) -> None:
    made = replace(engine(server), routes=True)
    with pytest.raises(ModelError, match="--enable-return-routed-experts"):
        made.sample([[1, 2]], 4)
    routes = np.arange(8, dtype=np.uint8).reshape(4, 1, 2)
    server.change = {"routed_experts": encoded(routes)}
    (found,) = made.sample([[1, 2]], 4)
    assert np.array_equal(found.routes, routes)  # type: ignore[arg-type]


def test_adapters_are_loaded_under_new_names(server: Fake, tmp_path: Path) -> None:
    made = engine(server)
    assert made.version() == "0.14.1"
    made.load_adapter(tmp_path / "a", 0)
    made.load_adapter(tmp_path / "b", 1)
    made.unload_adapter(0)
    assert server.adapters == [
        ("/v1/load_lora_adapter", {"lora_name": "counterpoint-0", "lora_path": str(tmp_path / "a")}),
        ("/v1/load_lora_adapter", {"lora_name": "counterpoint-1", "lora_path": str(tmp_path / "b")}),
        ("/v1/unload_lora_adapter", {"lora_name": "counterpoint-0"}),
    ]
    made.sample([[1]], 4)
    assert server.asked[-1]["model"] == "counterpoint-1"
    made.named("counterpoint-7").sample([[1]], 4)
    assert (server.asked[-1]["model"], made.model) == ("counterpoint-7", "counterpoint-1")
    follower = engine(server)
    follower.load_adapter(tmp_path / "b", 1, lead=False)
    assert (follower.model, len(server.adapters)) == ("counterpoint-1", 3)
    server.refuses = "no such endpoint"
    with pytest.raises(ConfigError, match=r"--enable-lora.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        made.load_adapter(tmp_path / "c", 2)
    server.refuses = "The lora adapter has already been loaded."
    engine(server).load_adapter(tmp_path / "c", 2)


@pytest.mark.parametrize("fault", [0, 429, 500, 503])
def test_a_failed_request_is_made_again(server: Fake, fault: int) -> None:
    made = engine(server)
    server.faults = [fault, fault]
    assert made.sample([[9]], 4)[0].ids == [9, RETURN]
    assert len(server.asked) == 3


def test_a_server_that_stays_down_is_told(server: Fake) -> None:
    made = engine(server, retries=1)
    server.faults = [503] * 9
    with pytest.raises(RunError, match=r"503.*no room"):
        made.sample([[9], [8]], 4)
    with pytest.raises(RunError, match=r"server\.url"):
        ServerEngine.connected(ServerSettings(url="http://127.0.0.1:9/v1", retries=0))


def test_a_refused_request_is_not_made_again(server: Fake) -> None:
    made = engine(server)
    server.faults = [400]
    with pytest.raises(RunError, match=r"400.*no room"):
        made.sample([[9]], 4)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"token_ids": None}, "no token ids"),
        ({"prompt_token_ids": [1, 1]}, "other prompt"),
        ({"token_ids": [1], "stop_reason": None}, "which token"),
        ({"token_ids": ["a"]}, "no token ids"),
    ],
)
def test_answers_that_cannot_be_checked_are_refused(server: Fake, change: dict[str, Any], told: str) -> None:
    server.change = change
    with pytest.raises(ModelError, match=told):
        engine(server).sample([[9]], 4)
