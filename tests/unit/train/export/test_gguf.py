"""GGUF by llama.cpp's converter: found, run, and its faults reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import GptOssConfig, GptOssForCausalLM

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.export import gguf as gguf_export
from counterpoint.train.export.exporter import export
from counterpoint.train.export.gguf import SCRIPT, convert, find_converter

WRITES = """
import pathlib, sys
source, target = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
assert (pathlib.Path(source) / "config.json").is_file()
pathlib.Path(target).write_bytes({content!r})
"""


# What llama.cpp's converter does for gpt-oss, without its vocabulary.
CONVERTS = """
import sys
import gguf
from safetensors.torch import load_file
from counterpoint.train.export.gguf import gguf_tensors
writer = gguf.GGUFWriter(sys.argv[sys.argv.index("--outfile") + 1], "gpt-oss")
for name, tensor in load_file(sys.argv[1] + "/model.safetensors").items():
    for there, part in gguf_tensors(name, tensor):
        part = part.float().contiguous()
        {change}
        writer.add_tensor(there, part.numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
"""


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged")
    shape: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "hidden_size": 32,
        "intermediate_size": 32,
        "head_dim": 8,
    }
    GptOssForCausalLM(
        GptOssConfig(**shape, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
    ).bfloat16().save_pretrained(folder)
    return folder


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


def test_a_converter_is_run_and_what_it_wrote_is_compared(tmp_path: Path, merged: Path) -> None:
    script = tmp_path / SCRIPT
    script.write_text(CONVERTS.format(change=""))
    convert(script, merged, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert {"token_embd.weight", "output.weight", "blk.1.attn_sinks.weight", "blk.0.ffn_up_exps.bias"} <= set(written)
    assert len(written) == 3 + 2 * 19
    experts = load_file(merged / "model.safetensors")["model.layers.0.mlp.experts.gate_up_proj"].float().numpy()
    for expert in range(4):
        assert np.array_equal(written["blk.0.ffn_gate_exps.weight"][expert], experts[expert, :, 0::2].T)
        assert np.array_equal(written["blk.0.ffn_up_exps.weight"][expert], experts[expert, :, 1::2].T)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "if there == 'blk.1.ffn_up_exps.weight': part[2, 3, 4] += 0.01",
            r"blk\.1\.ffn_up_exps\.weight .* is not model",
        ),
        ("if there == 'blk.0.attn_q.bias': continue", r"lacks blk\.0\.attn_q\.bias"),
        ("if 'norm' in there: part = part[1:]", "norm.weight in the GGUF file is not"),
    ],
)
def test_other_numbers_are_refused(tmp_path: Path, merged: Path, change: str, told: str) -> None:
    script = tmp_path / SCRIPT
    script.write_text(CONVERTS.format(change=change))
    with pytest.raises(ModelError, match=told):
        convert(script, merged, tmp_path / "model.gguf")


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
