"""The server engine against a small server of the test's own: what it asks, what it takes, what it does with faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from counterpoint.configs.errors import ModelError, RunError
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.sampling.expert_routes import encoded
from counterpoint.train.sampling.pool import ServerPool
from counterpoint.train.sampling.server import KEY_VARIABLE
from counterpoint.train.sampling.truncation import WHOLE, Truncation

Connect = Callable[..., ServerPool]


class Fake(ThreadingHTTPServer):
    """Answers each prompt with its own ids backwards; `faults` are statuses to give first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.change: dict[str, Any] = {}
        self.changes: list[dict[str, Any]] = []
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
            **(self.server.changes.pop(0) if self.server.changes else self.server.change),
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


@pytest.fixture
def engine(server: Fake) -> Iterator[Callable[..., ServerPool]]:
    made: list[ServerPool] = []

    def connected(
        logprobs: bool = False, truncation: Truncation = WHOLE, routes: bool = False, **settings: Any
    ) -> ServerPool:
        options: dict[str, Any] = {"logprobs": logprobs, "truncation": truncation, "routes": routes, "pause": 0}
        made.append(ServerPool.connected(ServerSettings(url=server.url, **settings), **options))
        return made[-1]

    yield connected
    for pool in made:
        pool.close()


def test_ids_go_in_and_out(server: Fake, engine: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    found = engine(parallel=3).sample([[1, 2], [3, 4, 5, 6, 7], [8]], 4, 0.7, seed=[11, 12, 2**62])
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
    engine(truncation=Truncation(0.9, 50, 0.01)).sample([[1]], 4)
    assert {name: server.asked[-1][name] for name in ("top_p", "top_k", "min_p")} == {
        "top_p": 0.9, "top_k": 50, "min_p": 0.01,
    }  # fmt: skip


def test_one_seed_is_derived_for_each_prompt(server: Fake, engine: Connect) -> None:
    engine(model="mine").sample([[1], [1]], 4, seed=5)
    assert len({body["seed"] for body in server.asked}) == 2
    assert {body["model"] for body in server.asked} == {"mine"}
    assert server.keys == [None, None]


def test_a_stop_token_that_the_server_left_out_is_put_back(server: Fake, engine: Connect) -> None:
    server.change = {"token_ids": [5], "stop_reason": CALL}
    assert engine().sample([[1]], 4)[0].ids == [5, CALL]


def test_log_probabilities_come_along(server: Fake, engine: Connect) -> None:
    assert engine().sample([[1]], 4)[0].logprobs is None
    made = engine(logprobs=True)
    assert made.sample([[1, 2]], 4)[0].logprobs == [-0.25] * 3
    assert server.asked[-1]["logprobs"] == 0
    server.change = {"logprobs": {"token_logprobs": [None]}, "token_ids": [5], "stop_reason": CALL}
    assert made.sample([[1]], 4)[0].logprobs == [None, None]
    server.change = {"logprobs": None}
    with pytest.raises(ModelError, match="no log-probabilities"):
        made.sample([[1]], 4)


def test_the_experts_of_tokens_come_along(server: Fake, engine: Connect) -> None:
    routes = np.arange(12, dtype=np.uint8).reshape(6, 1, 2)
    proof = {"routed_experts": encoded(routes[:2])}
    with pytest.raises(RunError, match="--enable-return-routed-experts"):
        engine(routes=True)
    server.changes = [proof]
    with pytest.raises(ModelError, match="--enable-return-routed-experts"):
        engine(routes=True).sample([[1, 2]], 4)
    server.changes, server.change = [proof], {"routed_experts": encoded(routes[:4])}
    (found,) = engine(routes=True).sample([[1, 2]], 4)
    assert np.array_equal(found.routes, routes[:4])  # type: ignore[arg-type]
    first = {
        "token_ids": [7],
        "finish_reason": "length",
        "stop_reason": None,
        "routed_experts": encoded(9 + routes[:2]),
    }
    then = {"token_ids": [8, RETURN], "routed_experts": encoded(routes[:4])}
    server.changes = [proof, first, then]
    (found,) = engine(routes=True, chunk_tokens=1).sample([[1, 2]], 3)
    assert (found.ids, [body["prompt"] for body in server.asked[-2:]]) == ([7, 8, RETURN], [[1, 2], [1, 2, 7]])
    wanted = np.concatenate([9 + routes[:2], routes[2:4]])
    assert np.array_equal(found.routes, wanted), "tokens that are read again keep the experts of their sampling"  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [0, 429, 500, 503])
def test_a_failed_request_is_made_again(server: Fake, engine: Connect, fault: int) -> None:
    made = engine()
    server.faults = [fault, fault]
    assert made.sample([[9]], 4)[0].ids == [9, RETURN]
    assert len(server.asked) == 3


def test_a_server_that_stays_down_is_told(server: Fake, engine: Connect) -> None:
    made = engine(retries=1)
    server.faults = [503] * 9
    with pytest.raises(RunError, match=r"503.*no room"):
        made.sample([[9], [8]], 4)
    with pytest.raises(RunError, match=r"server\.url"):
        ServerPool.connected(ServerSettings(url="http://127.0.0.1:9/v1", retries=0))


def test_a_refused_request_is_not_made_again(server: Fake, engine: Connect) -> None:
    made = engine()
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
def test_answers_that_cannot_be_checked_are_refused(
    server: Fake, engine: Connect, change: dict[str, Any], told: str
) -> None:
    server.change = change
    with pytest.raises(ModelError, match=told):
        engine().sample([[9]], 4)
