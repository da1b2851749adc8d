"""Adapters on the project's own endpoint: what a trainer's servers do with them, over real HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.configs.errors import RunError
from counterpoint.configs.model_section import LoraSettings, ModelSettings
from counterpoint.configs.schema import RolloutServerSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.endpoint.completions import Completions
from counterpoint.train.endpoint.served_adapters import ServedAdapters
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.sampling.following_pool import FollowingPool
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.server import KEY_VARIABLE, Server
from counterpoint.train.sampling.vllm_resolver import CACHE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE

PROMPT = [200006, 1428, 200008, 16, 659, 220, 17, 30, 200007, 200006, 173781]
SEEDS = [3, 4, 5]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    loaded, lock = load_model(ModelSettings()), threading.Lock()
    adapters = ServedAdapters(loaded, "mine", lock)
    raw = Completions(Sampler(loaded), 64, adapters, lock)
    with ChatServer(lambda name: None, "mine", "sesame", completions=raw.answer, adapters=adapters) as running:
        yield running


@pytest.fixture(scope="module")
def trained() -> LoadedModel:
    loaded = load_model(ModelSettings())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return loaded.with_model(attach_lora(loaded.model, LoraSettings(rank=4)))


def move(trained: LoadedModel, by: float) -> None:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in trained.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(by * torch.randn(parameter.shape))


@pytest.mark.parametrize("way", ["folder", "http"])
def test_a_trainer_is_followed(
    way: str, server: ChatServer, trained: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "token")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:{port}")
    where = {"url": f"{server.root}/v1", "adapters": way, "adapters_port": port, "wait": 20.0}
    settings = RolloutServerSettings.model_validate(where)
    pool = FollowingPool(settings, tmp_path / "engine", tmp_path.name, trained, [PROMPT], keep=2)
    try:
        drawn = {}
        for version in range(3):
            move(trained, 0.05)
            pool.follow(trained.model, trained.model.save_pretrained, version)
            wanted = Sampler(trained, logprobs=True).sample([PROMPT] * 3, 8, 1.0, SEEDS)
            found = pool.sample([PROMPT] * 3, 8, 1.0, SEEDS)
            assert [each.ids for each in found] == [each.ids for each in wanted]
            for one, other in zip(found, wanted, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
            drawn[version] = found
        assert len({str([each.ids for each in found]) for found in drawn.values()}) == 3, "the adapters act"
        assert [each.ids for each in pool.at(1).sample([PROMPT] * 3, 8, 1.0, SEEDS)] == [each.ids for each in drawn[1]]
        assert Server(f"{server.root}/v1").models() == ["mine", pool.version_name(1), pool.version_name(2)]
    finally:
        pool.close()


def test_the_model_is_as_before_once_its_adapters_are_gone(
    server: ChatServer, trained: LoadedModel, tmp_path: Path
) -> None:
    client = Server(f"{server.root}/v1")
    before = client.scores("mine", PROMPT)
    move(trained, 0.05)
    trained.model.save_pretrained(str(tmp_path))
    for name in ("a", "b"):
        client.load_adapter(name, tmp_path)
        assert client.scores("mine", PROMPT) == before
        assert client.scores(name, PROMPT) != before
    for name in ("a", "b"):
        client.unload_adapter(name)
        assert client.scores("mine", PROMPT) == before
        with pytest.raises(RunError, match=f"404.*The model `{name}` does not exist"):
            client.scores(name, PROMPT)
    assert client.models() == ["mine"]


def test_what_cannot_be_loaded_is_told(server: ChatServer, trained: LoadedModel, tmp_path: Path) -> None:
    client = Server(f"{server.root}/v1")
    with pytest.raises(RunError, match=r"400.*no adapter_model.safetensors: give the folder of a saved adapter"):
        client.load_adapter("a", tmp_path / "nowhere")
    trained.model.save_pretrained(str(tmp_path))
    client.load_adapter("a", tmp_path)
    client.load_adapter("a", tmp_path)  # a client of vLLM takes "already" for done
    with pytest.raises(RunError, match=r"400.*a name and a folder are needed"):
        client.asked("load_lora_adapter", {"lora_name": "b"})
    with pytest.raises(RunError, match=r"404.*'c' cannot be found"):
        client.unload_adapter("c")
    assert client.models() == ["mine", "a"]


@pytest.mark.parametrize("fault", ["shape", "name"])
def test_an_adapter_that_does_not_fit_leaves_nothing_behind(
    fault: str, server: ChatServer, trained: LoadedModel, tmp_path: Path
) -> None:
    client = Server(f"{server.root}/v1")
    before = client.scores("mine", PROMPT)
    move(trained, 0.05)
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        trained.model.save_pretrained(str(folder))
    tensors = load_file(bad / "adapter_model.safetensors")
    last = max(tensors)
    wrong = tensors.pop(last)
    save_file(
        tensors | ({last: wrong[:, :-1].contiguous()} if fault == "shape" else {}), bad / "adapter_model.safetensors"
    )
    if fault == "name":
        save_file(tensors | {last.replace("layers.1", "layers.7"): wrong}, bad / "adapter_model.safetensors")
    for loaded in ([], ["a"]):
        for name in loaded:
            client.load_adapter(name, good)
        scores = {name: client.scores(name, PROMPT) for name in loaded}
        if fault == "shape" or loaded:
            with pytest.raises(RunError, match=r"400.*no adapter of this model"):
                client.load_adapter("b", bad)
        assert client.scores("mine", PROMPT) == before
        assert {name: client.scores(name, PROMPT) for name in loaded} == scores
        assert client.models() == ["mine", *loaded]
    client.load_adapter("b", good)
    assert client.scores("b", PROMPT) == scores["a"]


def test_an_adapter_is_no_model_of_a_chat(server: ChatServer, trained: LoadedModel, tmp_path: Path) -> None:
    trained.model.save_pretrained(str(tmp_path))
    client = Server(f"{server.root}/v1")
    client.load_adapter("a", tmp_path)
    with pytest.raises(RunError, match=r"no rollout|completions alone"):
        client.asked("chat/completions", {"model": "a", "messages": [{"role": "user", "content": "Hi"}]})
