"""Several servers as one engine, over real samplers: chunks, servers that die, hang, fail, join and leave."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from json_server import serving
from sampling_server import Handler, SamplingServer

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.pool import NoServerError, ServerPool
from counterpoint.train.sampling.sample import Sampled, sample_seed

PROMPTS = [[200006, 1428, 200008, 16 + n, 659, 220, 17, 30, 200007, 200006, 173781] for n in range(4)]
FULL_STOP = 13
STOPS = (FULL_STOP, *STOP_IDS)
Connect = Callable[..., ServerPool]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[SamplingServer, SamplingServer]]:
    with serving(SamplingServer()) as one, serving(SamplingServer()) as two:
        yield one, two


@pytest.fixture
def one(both: tuple[SamplingServer, SamplingServer]) -> SamplingServer:
    both[0].forget()
    return both[0]


@pytest.fixture
def two(both: tuple[SamplingServer, SamplingServer]) -> SamplingServer:
    both[1].forget()
    return both[1]


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def connect(told: list[str]) -> Iterator[Connect]:
    made: list[ServerPool] = []

    def connected(*servers: SamplingServer | Empty, logprobs: bool = False, **settings: Any) -> ServerPool:
        where = {"url": [each.url for each in servers]} if servers else {}
        whole = ServerSettings.model_validate({"timeout": 20.0, "wait": 20.0, **where, **settings})
        pool = ServerPool.connected(whole, tell=told.append, warn=told.append, logprobs=logprobs, poll=0.05, pause=0)
        made.append(pool)
        if servers:
            until(lambda: len(pool.members) == len(servers))
        return pool

    yield connected
    for pool in made:
        pool.close()


class Empty(ThreadingHTTPServer):
    """Lists a model, and is soon gone."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.names: dict[str, Path] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def drawn(pool: ServerPool, tokens: int = 12, stops: tuple[int, ...] = STOPS) -> list[Sampled]:
    return pool.sample(PROMPTS, tokens, 1.0, [7 + n for n in range(len(PROMPTS))], stops)


@pytest.mark.parametrize(("stops", "reason"), [(STOPS, "stop"), (STOP_IDS, "length")], ids=["stop", "length"])
def test_a_long_completion_is_asked_for_in_chunks_and_reads_as_one(
    one: SamplingServer, connect: Connect, stops: tuple[int, ...], reason: str
) -> None:
    whole = drawn(connect(one, logprobs=True), 24, stops)
    assert len(one.asked) == len(PROMPTS), "one chunk is one request"
    assert [body["seed"] for body in sorted(one.asked, key=lambda body: body["prompt"])] == [7 + n for n in range(4)]
    one.asked.clear()
    found = drawn(connect(one, logprobs=True, chunk_tokens=5), 24, stops)
    assert {body["max_tokens"] for body in one.asked} == ({5, 4} if reason == "length" else {5})
    for n, (sample, other) in enumerate(zip(found, whole, strict=True)):
        assert sample.ids[:5] == other.ids[:5], "the first chunk has the seed of the whole"
        asked = [body for body in one.asked if body["prompt"][: len(PROMPTS[n])] == PROMPTS[n]]
        assert [body["seed"] for body in asked] == [
            7 + n,
            *(sample_seed(7 + n, "chunk", k) for k in range(1, len(asked))),
        ]
        assert len(asked) > 1
        assert (sample.finish_reason, other.finish_reason) == (reason, reason)
        assert (sample.ids[-1] in stops, len(sample.ids) == 24) == (reason == "stop", reason == "length")
        scores = one._scores(one.model, [*PROMPTS[n], *sample.ids])[len(PROMPTS[n]) - 1 :]
        assert sample.logprobs == pytest.approx(scores, abs=1e-4), "each is of its own chunk, none is lost or doubled"


def test_which_server_answers_changes_nothing(one: SamplingServer, two: SamplingServer, connect: Connect) -> None:
    alone = drawn(connect(one, chunk_tokens=5))
    pool = connect(one, two, chunk_tokens=5, parallel=1)
    assert drawn(pool) == alone
    assert two.asked


def test_where_servers_are_full_the_lowest_turn_goes_first_and_then_the_earliest(
    one: SamplingServer, connect: Connect
) -> None:
    pool = connect(one, parallel=1)
    one.working.clear()
    with ThreadPoolExecutor(6) as threads:
        asked = []
        for n, turn in enumerate((5, 4, 2, 3, 2, 1)):
            asked.append(threads.submit(pool.sample, PROMPTS[:1], 3, 1.0, [n], STOPS, None, turn))
            # The first is at the server, the second waits for room, and the others wait for that one.
            until(lambda n=n: one.asked and pool._door._held == (n > 0) and len(pool._door._waiting) == max(0, n - 1))
        one.working.set()
        found = [each.result()[0] for each in asked]
    assert [body["seed"] for body in one.asked] == [0, 1, 5, 2, 4, 3]
    assert found == pool.sample(PROMPTS[:1] * 6, 3, 1.0, list(range(6)), STOPS)


def test_a_hung_server_is_out_in_time_and_joins_once_it_works(
    one: SamplingServer, two: SamplingServer, connect: Connect, told: list[str]
) -> None:
    wanted = drawn(connect(one))
    pool = connect(one, two, timeout=0.4, parallel=3)
    two.working.clear()
    assert drawn(pool) == wanted
    assert [member.server.url for member in pool.members] == [one.url]
    assert any(f"server {two.url} is out, 1 left" in line and "no answer within 0.4 s" in line for line in told)
    time.sleep(0.2)  # it answers /v1/models all the while
    assert len(pool.members) == 1
    two.working.set()
    until(lambda: len(pool.members) == 2)


def test_what_a_server_fails_at_another_does(
    one: SamplingServer, two: SamplingServer, connect: Connect, told: list[str]
) -> None:
    wanted = drawn(connect(one))
    pool = connect(one, two, parallel=1)
    two.faults.append(500)
    assert drawn(pool) == wanted
    assert any("status 500" in line and "is out, 1 left" in line for line in told)
    until(lambda: len(pool.members) == 2)


def test_a_request_that_every_server_fails_at_ends(one: SamplingServer, two: SamplingServer, connect: Connect) -> None:
    pool = connect(one, two, retries=2)
    one.poison = two.poison = PROMPTS[0]
    with pytest.raises(RunError, match=r"status 500.*injected"):
        pool.sample([PROMPTS[0]], 4)


def test_a_request_that_closing_cuts_is_no_fault_of_the_server(
    one: SamplingServer, two: SamplingServer, connect: Connect, told: list[str]
) -> None:
    pool = connect(one, two)
    one.working.clear()
    (member,) = [each for each in pool.members if each.server.url == one.url]
    pool.take_out(member, RunError("a reason"))
    until(lambda: one.asked)  # it has to sample before it counts again, and waits
    pool.close()
    one.working.set()
    for thread in threading.enumerate():
        if thread.name == f"server {member.name}":
            thread.join(20)
    assert not [line for line in told if "does not count" in line]


def test_none_left_is_told_in_one_line(connect: Connect) -> None:
    with serving(Empty()) as server:
        pool = connect(server, wait=0.2, retries=0)
    with pytest.raises(NoServerError, match=r"no server is left, for 0\.2 s \(`server\.wait`\): .*is the server there"):
        drawn(pool)


def test_a_closed_pool_asks_no_more(one: SamplingServer, connect: Connect) -> None:
    pool = connect(one)
    [member] = pool.members
    pool.close()
    with pytest.raises(RunError, match="closed"):
        member.server.models()
    one.forget()
    with pytest.raises(RunError):
        drawn(pool)
    assert not one.asked


def test_a_file_of_servers_is_read_again(
    one: SamplingServer, two: SamplingServer, connect: Connect, tmp_path: Path
) -> None:
    path = tmp_path / "servers.txt"
    with pytest.raises(ConfigError, match=r"server\.url_file.*name a file of addresses"):
        connect(url_file=str(path))
    path.write_text("# none yet\n\n")
    with pytest.raises(ConfigError, match=r"holds no address"):
        connect(url_file=str(path))
    path.write_text(f"{one.url}  # the first\n")
    pool = connect(url_file=str(path))
    wanted = drawn(pool)
    path.write_text(f"{one.url}\n{two.url}\n")
    until(lambda: len(pool.members) == 2)
    path.write_text(f"{two.url}\n")
    until(lambda: [member.server.url for member in pool.members] == [two.url])
    n = len(one.asked)
    assert drawn(pool) == wanted
    assert len(one.asked) == n
    path.unlink()
    time.sleep(0.2)
    assert len(pool.members) == 1


@pytest.mark.slow
def test_two_servers_are_killed_and_one_added_while_they_sample(
    request: pytest.FixtureRequest, forks: Any, one: SamplingServer, connect: Connect, tmp_path: Path, told: list[str]
) -> None:
    """Every sample is that of an undisturbed run, whatever died when."""
    ports = [free_port() for _ in range(4)]
    urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
    job = f"{Path(__file__).parents[3] / 'sampling_server.py'}:main"
    servers = [forks.start(job, port, folder=tmp_path) for port in ports[:3]]
    request.addfinalizer(lambda: [each.send(signal.SIGKILL) for each in servers if each.poll() is None])
    path = tmp_path / "servers.txt"
    path.write_text("\n".join(urls[:3]))
    settings = {"chunk_tokens": 4, "url_file": str(path), "parallel": 4}
    prompts = [PROMPTS[n % 4] for n in range(96)]
    undisturbed = connect(one, chunk_tokens=4).sample(prompts, 24, 1.0, list(range(96)))
    pool = connect(**settings)
    until(lambda: len(pool.members) == 3)
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(pool.sample, prompts, 24, 1.0, list(range(96)))
        until(lambda: any(member.in_progress for member in pool.members))
        servers[0].send(signal.SIGKILL)
        servers.append(forks.start(job, ports[3], folder=tmp_path))
        path.write_text("\n".join(urls))
        until(lambda: any(member.server.url == urls[3] for member in pool.members))
        servers[1].send(signal.SIGKILL)
        assert found.result(60) == undisturbed
    assert sum("is out" in line for line in told) >= 2
    until(lambda: {member.server.url for member in pool.members} == set(urls[2:]))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
