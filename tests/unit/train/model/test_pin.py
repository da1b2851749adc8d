"""What is pinned of a base, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.model import pin as module
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.pin import base_pin, check_same_base


def test_the_embedded_model_and_a_random_one() -> None:
    digest = hashlib.sha256((tiny_folder() / "model.safetensors").read_bytes()).hexdigest()
    assert base_pin(ModelSettings()) == {"name": "tiny", "revision": None, "files": {"model.safetensors": digest}}
    assert base_pin(ModelSettings(init="random"))["files"] == {}


def test_a_name_of_the_hub_is_its_commit_and_the_hashes_it_is_stored_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, digest = "c" * 40, "a" * 64
    snapshot, blobs = tmp_path / "snapshots" / commit, tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / digest).write_bytes(b"weights")
    (snapshot / "model-00001-of-00001.safetensors").symlink_to(blobs / digest)
    monkeypatch.setattr(module, "snapshot_of", lambda model: snapshot)
    pin = base_pin(ModelSettings(name="openai/gpt-oss-20b"))
    assert pin == {
        "name": "openai/gpt-oss-20b", "revision": commit, "files": {"model-00001-of-00001.safetensors": digest},
    }  # fmt: skip


def test_another_file_is_named_with_both_hashes() -> None:
    then = {"name": "a", "revision": None, "files": {"1.safetensors": "1" * 64, "2.safetensors": "2" * 64}}
    check_same_base(then, {**then, "name": "moved"}, "here")
    check_same_base(None, then, "here")
    now = {**then, "files": {"1.safetensors": "1" * 64, "2.safetensors": "3" * 64}}
    with pytest.raises(ModelError, match=r"different 2\.safetensors \(sha256 2{12} -> 3{12}; 1 of 2 files differ\)"):
        check_same_base(then, now, "here")
