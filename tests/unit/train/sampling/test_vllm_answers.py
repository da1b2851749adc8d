"""Answers of a real vLLM 0.32 (tests/vllm_exchanges.py), read without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from json_server import JsonHandler, serving
from vllm_exchanges import PROMPT, RECORDED, REQUESTS

from counterpoint.configs.errors import RunError
from counterpoint.train.sampling.server import Server, ServerFailedError

EXCHANGES: list[dict[str, Any]] = json.loads(RECORDED.read_text())


class Player(ThreadingHTTPServer):
    """Answers what was recorded for the same request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(JsonHandler):
    def do_GET(self) -> None:  # noqa: N802 (http.server calls it so)
        self.play(None)

    def do_POST(self) -> None:  # noqa: N802 (http.server calls it so)
        self.play(self.asked())

    def play(self, body: dict[str, Any] | None) -> None:
        (found,) = [each for each in EXCHANGES if (each["path"], each["body"]) == (self.path, body)]
        self.reply(found["answer"], found["status"])


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Player()) as player:
        yield Server(f"http://127.0.0.1:{player.server_port}/v1")


def body(number: int) -> dict[str, Any]:
    found = REQUESTS[number][1]
    assert found is not None
    return found


def test_our_requests_are_those_that_were_recorded() -> None:
    """A changed request has to be recorded again."""
    assert [[each["path"], each["body"]] for each in EXCHANGES] == json.loads(json.dumps(REQUESTS))


def test_the_server_and_its_model_are_named(server: Server) -> None:
    assert (server.version(), server.models()) == ("0.32.0", ["base"])


def test_samples_have_their_ids_and_log_probabilities(server: Server) -> None:
    cut = server.completed(body(2))
    assert (cut.ids, cut.finish_reason) == ([200005, 17196, 200008], "length")
    assert cut.logprobs == pytest.approx([0.0, -0.6671, 0.0], abs=1e-4)
    stopped = server.completed(body(3))
    assert (stopped.ids, stopped.finish_reason) == ([173781], "stop")
    assert stopped.logprobs == pytest.approx([-0.00053], abs=1e-5)


def test_given_tokens_are_scored(server: Server) -> None:
    scores = server.scores("base", PROMPT)
    assert scores[0] is None
    assert len(scores) == len(PROMPT)
    assert all(score is not None and score < 0 for score in scores[1:])


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (5, ServerFailedError, "status 404: .*`counterpoint-00000000-1-000000000000` does not exist"),
        (6, RunError, "status 400: .*201088 is out of vocabulary"),
        (7, RunError, "status 400: .*max_model_len=1024"),
    ],
)
def test_what_it_refuses_is_told(server: Server, number: int, error: type[RunError], said: str) -> None:
    with pytest.raises(RunError, match=said) as found:
        server.completed(body(number))
    assert type(found.value) is error


def test_an_adapter_that_is_not_there_is_told(server: Server) -> None:
    with pytest.raises(ServerFailedError, match="No adapter found for /nowhere/adapter"):
        server.load_adapter("away", Path("/nowhere/adapter"))
    with pytest.raises(ServerFailedError, match="'away' cannot be found"):
        server.unload_adapter("away")
