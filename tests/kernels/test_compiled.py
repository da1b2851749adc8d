"""Every Triton kernel compiled for compute capability 9.0 on this machine, which needs no GPU: registers, shared memory,
spills and the tensor cores' instruction, at the tile sizes and types that a training step uses.

`make test-kernels` runs it. The figures are in docs/benchmarks.md.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from counterpoint.train.kernels import attention, grouped, mxfp4, swiglu

SM90 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 << 10
"""Of one program on compute capability 9.0."""


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled: int
    shared: int
    code: str

    @property
    def tensor_cores(self) -> bool:
        return "HGMMA" in self.code


def compiled(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int = 4, stages: int = 1
) -> Compiled:
    """Divisibility by 16 of pointers and of sizes that have it, as Triton's launcher finds it at run time."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    divisible = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(names) if "!" in types.get(name, "")}
    signature = {name: kind.replace("!", "") for name, kind in signature.items()}
    source = ASTSource(kernel, signature, constants, attrs=divisible)
    made = triton.compile(source, target=SM90, options={"num_warps": warps, "num_stages": stages})
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        usage, code = (
            subprocess.run([tools / tool, *options, path], capture_output=True, text=True, check=True).stdout
            for tool, options in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    registers, local = (int(re.findall(rf"{what}:(\d+)", usage)[0]) for what in ("REG", "LOCAL"))
    return Compiled(registers, local + int(re.findall(r"STACK:(\d+)", usage)[0]), made.metadata.shared, code)


def report(name: str, found: Compiled, tensor_cores: bool) -> None:
    print(f"{name}: {found.registers} registers, {found.shared} B shared, {found.spilled} B spilled")
    assert found.spilled == 0, name
    assert found.shared <= SHARED_BYTES
    assert found.tensor_cores == tensor_cores, name


def test_clamped_swiglu() -> None:
    plain = {"columns": "i32!", "alpha": "fp32", "limit": "fp32"}
    forward = compiled(
        swiglu.swiglu_forward_kernel, {"h": "*bf16!", "out": "*bf16!", **plain}, {"COLUMNS": swiglu.COLUMNS}
    )
    report("swiglu forward", forward, False)
    pointers = dict.fromkeys(("h", "g", "weight", "d_h", "d_weight"), "*bf16!")
    backward = compiled(swiglu.swiglu_backward_kernel, {**pointers, **plain}, {"COLUMNS": swiglu.COLUMNS})
    report("swiglu backward", backward, False)


def test_unpacking_of_mxfp4() -> None:
    types = {"blocks": "*u8!", "scales": "*u8!", "out": "*bf16!", "total": "i32!"}
    report("mxfp4 unpack", compiled(mxfp4.unpack_kernel, types, {"BYTES": mxfp4.BYTES}), False)


@pytest.mark.parametrize("form", ["plain", "packed", "packed transposed", "packed decode"])
def test_grouped_gemm(form: str) -> None:
    """With everything in it: gather, bias, LoRA of rank 16. The transposed form, of the backward pass, has no bias."""
    packed, transposed = form.startswith("packed"), form.endswith("transposed")
    tiling = grouped.SMALL if form.endswith("decode") else grouped.TILING
    weight = "*u8!" if packed else "*bf16!"
    types = {
        **dict.fromkeys(("x", "bias", "low", "factor", "out"), "*bf16!"), "row": "*i64!", "weight": weight,
        "scales": "*u8!" if packed else "*bf16!", **dict.fromkeys(("expert_T", "first_T", "end_E"), "*i32!"),
        **dict.fromkeys(("experts", "inputs", "outputs", "x_stride", "weight_e", "factor_e"), "i32!"), "scale": "fp32",
        "weight_k": "i32!", "weight_o": "i32!",
    }  # fmt: skip
    from triton import language as tl

    constants: dict[str, Any] = {
        "GATHER": not transposed, "PACKED": packed, "ALONG_INPUTS": not transposed, "BIAS": not transposed, "RANK": 16,
        "RANK_WIDTH": 16, "COMPUTE": tl.bfloat16, "ROWS": tiling.rows, "OUTPUTS": tiling.outputs,
        "INPUTS": tiling.inputs,
        # As the launcher specialises a stride of one.
        ("weight_k" if packed and not transposed else "weight_o"): 1,
    }  # fmt: skip
    found = compiled(grouped.grouped_kernel, types, constants, tiling.warps, tiling.stages)
    report(f"grouped {form}", found, tensor_cores=not form.endswith("decode"))
    assert form.endswith("decode") == ("HMMA" in found.code and not found.tensor_cores)


@pytest.mark.parametrize("part", ["forward", "to queries", "to keys"])
def test_attention(part: str) -> None:
    """gpt-oss-20b's heads."""
    from triton import language as tl

    kernel, tiling = {
        "forward": (attention.forward_kernel, attention.FORWARD),
        "to queries": (attention.to_queries_kernel, attention.TO_QUERIES),
        "to keys": (attention.to_keys_kernel, attention.TO_KEYS),
    }[part]
    types = {
        **dict.fromkeys(("q", "k", "v", "sink", "out", "d_out", "d_q", "d_k", "d_v"), "*bf16!"),
        **dict.fromkeys(("lse", "delta"), "*fp32!"), "scale": "fp32",
        **dict.fromkeys(("positions", "ends", "low_m", "high_n", "end_n", "first_m", "last_n"), "*i32!"),
        **dict.fromkeys(("tokens", "blocks_m", "blocks_n", "window"), "i32"),
        **dict.fromkeys([f"{name}_{axis}" for name in "qkv" for axis in "bhs"], "i32!"),
    }  # fmt: skip
    constants = {
        "HEADS": 64, "SHARE": 8, "SIZE": 64, "COMPUTE": tl.bfloat16, "QUERIES": tiling.queries, "KEYS": tiling.keys,
    }  # fmt: skip
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    report(f"attention {part}", compiled(kernel, types, constants, tiling.warps, tiling.stages), tensor_cores=True)
