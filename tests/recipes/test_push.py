"""`counterpoint export --push` by the real huggingface_hub, against a server that answers as the hub does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from json_server import JsonHandler, serving

from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.weights import save_weights
from counterpoint.train.model.tiny import random_tiny

TOKEN = "hf_" + "x" * 20
CREATE = "/api/repos/create"


class Hub(ThreadingHTTPServer):
    """A repository `me/mine`: large files come by Git LFS, the others inside the commit."""

    daemon_threads = True

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuses = refuses
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: bytes) -> Any:
        if path == CREATE:
            self.created = json.loads(body)
            return {"url": f"{self.url}/me/mine"}
        if path == "/api/models/me/mine/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            large = {name: modes[name.endswith(".safetensors")] for name in names}
            return {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in large.items()]}
        if path == "/me/mine.git/info/lfs/objects/batch":
            wanted = json.loads(body)["objects"]
            hrefs = [{"upload": {"href": f"{self.url}/store/{one['oid']}"}} for one in wanted]
            return {"transfer": "basic", "objects": [{**o, "actions": a} for o, a in zip(wanted, hrefs, strict=True)]}
        assert path == "/api/models/me/mine/commit/main", path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        return {"commitUrl": f"{self.url}/me/mine/commit/1", "commitOid": "1", "success": True}


class Handler(JsonHandler):
    server: Hub

    def do_GET(self) -> None:  # noqa: N802
        # What huggingface_hub asks about itself; where the repository could not be made, whether it is there.
        if self.path.startswith("/api/models/"):
            return self.refuse()
        return self.reply({})

    def refuse(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self) -> None:  # noqa: N802
        name = self.path.removeprefix("/store/")
        self.server.objects[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.server.refuses or self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse()
        return self.reply(self.server.answer(self.path, body))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("push")
    tiny = random_tiny(seed=1)
    tiny.model.save_pretrained(place / "base")
    tiny.vocabulary_map.save(place / "base")
    model = attach_lora(tiny.model, LoraSettings(rank=2))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    (place / "adapter").mkdir()
    save_weights(model, place / "adapter")
    config = json.loads((place / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(place / "base")
    (place / "adapter/adapter_config.json").write_text(json.dumps(config))
    return place / "adapter"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        yield server


def export(adapter: Path, folder: Path, hub: Hub, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without Xet, whose server is another one: the way of Git LFS, which is in one place.
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "counterpoint.recipes.cli", "export", str(adapter), "--out", "out"]
    return subprocess.run(
        [*command, "--push", "me/mine", *arguments], cwd=folder, env={**os.environ, **settings, "HF_HUB_OFFLINE": "0"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("target", ["adapter", "bf16"])
def test_every_file_arrives_as_it_is(adapter: Path, tmp_path: Path, hub: Hub, target: str) -> None:
    done = export(adapter, tmp_path, hub, "--to", target, "--limit", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed   {hub.url}/me/mine"
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    del written["complete.json"]
    assert "manifest.json" in written
    assert any(name.endswith(".safetensors") for name in written)
    assert hub.files == written
    assert (hub.created["name"], hub.created["organization"]) == ("mine", "me")
    assert hub.created["visibility"] == "private"
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_refused_export_pushes_nothing(adapter: Path, tmp_path: Path, hub: Hub) -> None:
    done = export(adapter, tmp_path, hub, "--to", "bf16", "--limit", "0")
    assert done.returncode == 1
    assert "not written: the export is not the model that was trained" in done.stderr
    assert hub.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_refused_login_is_one_line_and_the_export_stands(adapter: Path, tmp_path: Path) -> None:
    with serving(Hub(refuses=True)) as hub:
        done = export(adapter, tmp_path, hub)
    assert done.returncode == 1
    assert hub.asked == [CREATE]
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("me/mine: not pushed (")
    assert "401" in line
    assert "the export itself is in out; log in with `hf auth login`, then push again" in line
    assert TOKEN not in line
    assert (tmp_path / "out" / "manifest.json").is_file()
