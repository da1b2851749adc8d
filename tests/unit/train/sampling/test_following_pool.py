"""Adapters on servers: names, what is loaded when, the proof that they act, and the way over HTTP; true samplers."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from json_server import serving
from sampling_server import SamplingServer

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.schema import RolloutServerSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.sampling.adapter_files import AdapterFiles
from counterpoint.train.sampling.adapter_proof import OwnScores, why_refused
from counterpoint.train.sampling.following_pool import FollowingPool
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.vllm_resolver import (
    CACHE_VARIABLE,
    FILES,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    digest_of,
    fetch,
)

PROBE = [200006, 1428, 200008, 16, 659, 220, 17, 30, 200007, 200006, 173781]
Follow = Callable[..., FollowingPool]


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


class Trained:
    """The embedded model with an adapter that can be moved."""

    def __init__(self) -> None:
        loaded = load_model(ModelSettings())
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.loaded: LoadedModel = loaded.with_model(attach_lora(loaded.model, LoraSettings(rank=4)))

    def move(self, by: float) -> None:
        with torch.no_grad():
            for name, parameter in self.loaded.model.named_parameters():
                if "lora_B" in name:
                    torch.manual_seed(len(name))
                    parameter.add_(by * torch.randn(parameter.shape))

    def write(self, folder: Path) -> None:
        self.loaded.model.save_pretrained(str(folder))

    def sample(self, seed: int) -> list[int]:
        return Sampler(self.loaded).sample([PROBE], 6, 1.0, [seed])[0].ids


@pytest.fixture
def trained() -> Trained:
    return Trained()


@pytest.fixture
def follow(told: list[str], trained: Trained, tmp_path: Path) -> Iterator[Follow]:
    made: list[FollowingPool] = []

    def connected(*servers: SamplingServer, keep: int = 1, **settings: Any) -> FollowingPool:
        where = {"url": [each.url for each in servers]} if servers else {}
        whole = {**where, "timeout": 20.0, "wait": 20.0, **settings}
        pool = FollowingPool(
            RolloutServerSettings.model_validate(whole), tmp_path / "engine", "a-run", trained.loaded, [PROBE],
            keep=keep, tell=told.append, warn=told.append, poll=0.05, pause=0,
        )  # fmt: skip
        made.append(pool)
        until(lambda: len(pool.pool.members) >= max(1, len(servers)))
        return pool

    yield connected
    for pool in made:
        pool.close()


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_every_version_has_a_name_of_its_own_and_is_sampled_with_as_long_as_it_is_kept(
    one: SamplingServer, two: SamplingServer, follow: Follow, trained: Trained, tmp_path: Path
) -> None:
    pool, wanted = follow(one, two, keep=2), {}
    for version in range(4):
        trained.move(0.05)
        pool.follow(trained.loaded.model, trained.write, version)
        wanted[version] = [trained.sample(seed) for seed in range(4)]
        names = [pool.version_name(n) for n in range(max(0, version - 1), version + 1)]
        assert list(one.names) == list(two.names) == names
    assert wanted[2] != wanted[3]
    for version in (2, 3):
        for threads in (1, 4):
            found = pool.at(version).sample([PROBE] * threads, 6, 1.0, list(range(threads)))
            assert [sample.ids for sample in found] == wanted[version][:threads]
    assert pool.sample([PROBE], 6, 1.0, [0])[0].ids == wanted[3][0]
    assert one.unloads == two.unloads == one.loads[:2]
    run8 = pool.run
    assert [name.rpartition("-")[0] for name in one.loads] == [f"counterpoint-{run8}-{n}" for n in range(4)]
    assert all(name.rpartition("-")[2] == digest_of(pool.adapter_folder(n)) for n, name in enumerate(one.loads[1:], 1))
    folders = sorted(path.name for path in (tmp_path / "engine").glob("adapter-*"))
    assert folders == ["adapter-1", "adapter-2", "adapter-3"], "files stay one version longer than they are loaded"


def test_a_server_that_joins_is_given_all_versions_and_one_that_was_lost_gets_them_again(
    one: SamplingServer, two: SamplingServer, follow: Follow, trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "servers.txt"
    path.write_text(one.url)
    pool = follow(keep=2, url_file=str(path))
    for version in range(2):
        trained.move(0.05)
        pool.follow(trained.loaded.model, trained.write, version)
    path.write_text(f"{two.url}\n{one.url}")
    until(lambda: len(pool.pool.members) == 2)
    assert list(two.names) == list(one.names)
    one.forget()  # it was started again
    wanted = trained.sample(5)
    for _ in range(4):
        assert pool.sample([PROBE] * 4, 6, 1.0, [5] * 4)[3].ids == wanted
    until(lambda: set(one.names) == set(two.names))
    kept = tmp_path / "kept"
    shutil.copytree(pool.adapter_folder(1), kept)
    pool.close()
    again = FollowingPool(pool.settings, tmp_path / "other", "a-run", keep=2, poll=0.05)
    again.adopt(1, kept)
    assert again.version_name(1) == pool.version_name(1), "the name is of the run, the version and the content"
    again.follow(trained.loaded.model, trained.write, 2)
    assert again.at(1).sample([PROBE], 6, 1.0, [5])[0].ids == wanted
    again.close()


def test_a_server_that_does_not_sample_with_the_adapter_is_refused(
    one: SamplingServer, two: SamplingServer, follow: Follow, trained: Trained, told: list[str]
) -> None:
    pool = follow(one, two)
    two.deaf = True
    pool.follow(trained.loaded.model, trained.write, 0)
    assert len(pool.pool.members) == 2, "a fresh adapter is the base"
    trained.move(0.02)
    pool.follow(trained.loaded.model, trained.write, 1)
    assert [member.server.url for member in pool.pool.members] == [one.url]
    assert any(re.search(rf"{two.url} is out, 1 left: .*the adapter does not act there", line) for line in told), told
    two.deaf = False
    until(lambda: len(pool.pool.members) == 2)


@pytest.mark.parametrize(
    ("tuned", "base", "own_base", "told"),
    [
        ([-1.0, -2.0], [-1.5, -2.5], [-1.5, -2.5], ""),
        ([-1.04, -2.04], [-1.2, -2.2], [-1.2, -2.2], ""),
        ([-1.06, -2.06], [-1.2, -2.2], [-1.2, -2.2], "0.060 nats off the trainer with the adapter and 0.200 without"),
        ([-1.03, -2.03], [-1.03, -2.03], [-1.03, -2.03], "does not act"),
        ([-1.03, -2.03], [-1.03, -2.03], [-1.001, -2.0], ""),
        ([None, None], [-1.0, -2.0], [-1.0, -2.0], "nan nats off"),
    ],
    ids=["alike", "kernels", "another base", "deaf", "fresh", "no number"],
)
def test_the_proof(tuned: Any, base: Any, own_base: Any, told: str) -> None:
    why = why_refused(OwnScores([[1, 2, 3]], [[-1.0, -2.0]], [own_base]), [tuned], [base])
    assert told in why if told else not why


def test_a_server_that_takes_no_adapters_is_told_before_the_first_step(
    one: SamplingServer, follow: Follow, trained: Trained
) -> None:
    pool = follow(one)
    one.refuses_adapters = True
    with pytest.raises(ConfigError, match=r"404.*--enable-lora.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        pool.follow(trained.loaded.model, trained.write, 0)


def test_a_server_that_has_gone_is_not_told_how_to_start(
    one: SamplingServer, two: SamplingServer, follow: Follow, trained: Trained, told: list[str]
) -> None:
    pool = follow(one, two)
    two.gone = True
    pool.follow(trained.loaded.model, trained.write, 0)
    [line] = [line for line in told if f"{two.url} is out" in line]
    assert "is the server there?" in line
    assert "--enable-lora" not in line


def test_adapters_over_http_need_the_token_and_are_whole(
    one: SamplingServer, follow: Follow, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    pool = follow(one, adapters="http", adapters_port=0)
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9")
    with pytest.raises(
        ConfigError, match=rf"404.*package installed.*{URL_VARIABLE}=http://HOST:[1-9][0-9]* .*{TOKEN_VARIABLE}"
    ):
        pool.follow(trained.loaded.model, trained.write, 0)
    assert pool._files is not None
    url = f"http://127.0.0.1:{pool._files.port}"
    monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:9,{url}")
    for version in range(1, 5):
        trained.move(0.05)
        pool.follow(trained.loaded.model, trained.write, version)
        assert pool.sample([PROBE], 6, 1.0, [3])[0].ids == trained.sample(3)
    assert list(one.names) == [pool.version_name(4)]
    kept = [pool.version_name(version) for version in (3, 4)]
    cached = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert cached[1:] == kept, "files stay longer than they are loaded"
    assert len(cached) == 3
    for path, status in ((f"/adapters/{kept[0]}/optimizer.pt", 404), (f"/adapters/{kept[0]}/../../a", 404)):
        request = urllib.request.Request(url + path, headers={"Authorization": "Bearer sesame"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status
    assert fetch(kept[0], [url], "open", tmp_path / "other", 0) is None
    assert fetch("counterpoint-../../etc", [url], "sesame", tmp_path / "other", 0) is None


def test_a_download_with_a_flipped_bit_is_refused_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(json.dumps({"name": name}).encode() * 99)
    name = f"counterpoint-{'0' * 8}-7-{digest_of(folder)}"
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    path = damaged / FILES[1]
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    given = [damaged, damaged, folder]
    lock = threading.Lock()

    def folders() -> dict[str, Path]:
        with lock:  # both files of a download are of one folder
            served.append(name)
            return {name: given[min(len(served) - 1, 5) // 2]}

    served: list[str] = []
    files = AdapterFiles(folders, "sesame", 0, "127.0.0.1")
    try:
        found = fetch(name, [f"http://127.0.0.1:{files.port}"], "sesame", tmp_path / "cache", 0)
        assert found is not None
        assert digest_of(found) == name.rpartition("-")[2]
        assert len(served) == 7, "two files three times, and what is kept"
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
        given, served = [damaged] * 3, []
        assert fetch(name, [f"http://127.0.0.1:{files.port}"], "sesame", tmp_path / "never", 0) is None
        assert list((tmp_path / "never").iterdir()) == []
        with pytest.raises(RunError, match="adapters_port"):
            AdapterFiles(folders, "sesame", files.port, "127.0.0.1")
    finally:
        files.close()
