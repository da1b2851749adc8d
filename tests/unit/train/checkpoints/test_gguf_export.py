"""GGUF by llama.cpp's converter: found, run, and its faults told."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

import pytest

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.checkpoints import gguf_export
from counterpoint.train.checkpoints.export import export
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.checkpoints.gguf_export import SCRIPT, convert, find_converter

WRITES = """
import pathlib, sys
source, target = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
assert (pathlib.Path(source) / "config.json").is_file()
pathlib.Path(target).write_bytes({content!r})
"""


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package gguf is there."""
    monkeypatch.setattr(gguf_export, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))


def test_the_converter_is_found_by_file_folder_and_environment(tmp_path: Path) -> None:
    script = tmp_path / SCRIPT
    script.touch()
    assert find_converter(str(script), {}) == find_converter(str(tmp_path), {}) == script
    assert find_converter(None, {"LLAMA_CPP": str(tmp_path)}) == script


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"needs llama\.cpp's converter: `git clone"):
        find_converter(None, {})
    with pytest.raises(ModelError, match="there is no such file"):
        find_converter(str(tmp_path), {})
    (tmp_path / SCRIPT).touch()
    monkeypatch.setattr(gguf_export, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'counterpoint\[gguf\]'"):
        find_converter(str(tmp_path), {})


def test_a_converter_is_run_on_the_merged_weights(tmp_path: Path) -> None:
    script, source = tmp_path / SCRIPT, tmp_path / "merged"
    source.mkdir()
    (source / "config.json").touch()
    script.write_text(WRITES.format(content=b"GGUF\x03"))
    convert(script, source, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise SystemExit('Model GptOssForCausalLM is not supported')", "failed .Model GptOssForCausalLM is not"),
        (WRITES.format(content=b"<html>"), "wrote no GGUF file"),
    ],
)
def test_a_converter_that_fails_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / SCRIPT).write_text(text)
    with pytest.raises(ModelError, match=told):
        convert(tmp_path / SCRIPT, tmp_path, tmp_path / "model.gguf")


def test_the_embedded_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / SCRIPT).touch()
    with pytest.raises(ModelError, match="vocabulary of its own"):
        export(Found("tiny", ModelSettings(), None, None), "gguf", tmp_path / "out", converter=str(tmp_path))
    assert not (tmp_path / "out").exists()
