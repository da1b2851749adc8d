"""A GGUF file of merged weights, by llama.cpp's own converter; read again and compared tensor by tensor.

The converter is not part of any package: it is `convert_hf_to_gguf.py` of a copy of llama.cpp, which is named by its
path and run in a process of its own. Names of tensors: https://github.com/ggml-org/llama.cpp (gguf-py, MIT licence).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from counterpoint.configs.errors import ModelError

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
GGUF_FILE = "model.gguf"
MAGIC = b"GGUF"
GET = "git clone --depth 1 https://github.com/ggml-org/llama.cpp"


def find_converter(given: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The converter's file: `given` or $LLAMA_CPP (the script, or the folder that holds it), and its package there.

    ModelError with what to do where one of the two is missing.
    """
    named = given or environment.get(VARIABLE)
    if not named:
        raise ModelError(f"--to gguf needs llama.cpp's converter: `{GET}`, then --converter llama.cpp (or ${VARIABLE})")
    path = Path(named).expanduser()
    script = path / SCRIPT if path.is_dir() else path
    if not script.is_file():
        raise ModelError(f"{script}: there is no such file: `{GET}`, then --converter llama.cpp")
    if find_spec("gguf") is None:
        raise ModelError("--to gguf: the package gguf is not installed: pip install 'counterpoint[gguf]'")
    return script


_WHOLE = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.router": "ffn_gate_inp",
}


def convert(script: Path, source: Path, target: Path) -> None:
    """Run the converter on a folder of merged bf16 weights, and compare. ModelError with what is wrong."""
    command = [sys.executable, str(script), str(source), "--outfile", str(target), "--outtype", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:300]
        raise ModelError(f"{script.name} failed ({last}): take a copy of llama.cpp that knows gpt-oss, or --to bf16")
    with target.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{script.name} wrote no GGUF file: take a newer copy of llama.cpp, or --to bf16")
    if wrong := first_difference(target, source):
        raise ModelError(f"{script.name}: {wrong}: take another copy of llama.cpp, or --to bf16")


def first_difference(file: Path, source: Path) -> str | None:
    """How a GGUF file differs from the safetensors in `source`, in words; None where it holds the same numbers."""
    from gguf import GGUFReader  # pyright: ignore[reportMissingImports]
    from gguf.quants import dequantize  # pyright: ignore[reportMissingImports]

    written: dict[str, Any] = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for shard in sorted(source.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                for there, wanted in gguf_tensors(name, tensors.get_tensor(name)):
                    if there not in written:
                        return f"the GGUF file lacks {there}"
                    found = torch.from_numpy(dequantize(written[there].data, written[there].tensor_type).copy())
                    if found.numel() != wanted.numel() or not torch.equal(found.reshape(wanted.shape), wanted.float()):
                        return f"{there} in the GGUF file is not {name}"
    return None


def gguf_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What a tensor of transformers' gpt-oss is called in GGUF; gate and up, interleaved here, are two there."""
    name = name.removeprefix("model.")
    if name in _WHOLE or name == "lm_head.weight":
        yield _WHOLE.get(name, "output.weight"), tensor
        return
    _, layer, rest = name.split(".", 2)
    if rest == "self_attn.sinks":
        yield f"blk.{layer}.attn_sinks.weight", tensor
        return
    experts = rest.removeprefix("mlp.experts.")
    if experts == rest:
        part, _, kind = rest.rpartition(".")
        yield f"blk.{layer}.{_LAYER[part]}.{kind}", tensor
        return
    kind = "bias" if experts.endswith("_bias") else "weight"
    if kind == "weight":
        tensor = tensor.transpose(1, 2)  # (E, in, out) here, (E, out, in) there
    if experts.startswith("down"):
        yield f"blk.{layer}.ffn_down_exps.{kind}", tensor
    else:
        yield f"blk.{layer}.ffn_gate_exps.{kind}", tensor[:, ::2]
        yield f"blk.{layer}.ffn_up_exps.{kind}", tensor[:, 1::2]
