"""Expert weights that stay in MXFP4: four bits a number, unpacked one expert at a time where they are multiplied.

Legend: E experts, I inputs, O outputs of a projection.

A byte holds two numbers of sign, two exponent bits and one mantissa bit, the first in the low half; each run of 32
inputs has one power of two, stored plus 127. The file's layout is (E, O, I / 2) bytes and (E, O, I / 32) scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch.utils._pytree import tree_map_only

from counterpoint.configs.errors import ModelError
from counterpoint.train.kernels.registry import chosen

RUN = 32
"""Numbers that share one scale."""
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_aten = torch.ops.aten


class Mxfp4Tensor(torch.Tensor):
    """A frozen stack of matrices (E, I, O) in MXFP4, to be used as a parameter of transformers' experts.

    It has the shape and type of the unpacked stack. `stack[e]` and `expert(e)` unpack one expert, `some(experts)` a
    few and `dense()` all; any other operation unpacks all for itself, except writing, which is an error.
    """

    blocks: torch.Tensor
    scales: torch.Tensor

    @staticmethod
    def __new__(cls, blocks_EOI: torch.Tensor, scales_EOI: torch.Tensor, dtype: torch.dtype) -> Mxfp4Tensor:
        experts, outputs, half = blocks_EOI.shape
        if scales_EOI.shape != (experts, outputs, 2 * half // RUN) or 2 * half % RUN:
            shapes = f"{tuple(blocks_EOI.shape)} and {tuple(scales_EOI.shape)}"
            raise ModelError(f"MXFP4 blocks and scales do not fit each other: {shapes}: is the checkpoint complete?")
        shape = (experts, 2 * half, outputs)
        # torch's way to a tensor without storage of its own, private by name only.
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=blocks_EOI.device)

    def __init__(self, blocks_EOI: torch.Tensor, scales_EOI: torch.Tensor, dtype: torch.dtype) -> None:
        self.blocks = blocks_EOI
        self.scales = scales_EOI

    def expert(self, index: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One expert's matrix (I, O) in `dtype` (None: this tensor's)."""
        return unpacked(self.blocks[index], self.scales[index], dtype or self.dtype).T

    def some(self, experts: Sequence[int]) -> torch.Tensor:
        """The matrices (len(experts), I, O) of experts in rising order as a plain tensor."""
        which: Any = slice(experts[0], experts[-1] + 1)
        if len(experts) != experts[-1] + 1 - experts[0]:  # else they need no copy
            which = torch.tensor(experts, device=self.blocks.device)
        return unpacked(self.blocks[which], self.scales[which], self.dtype).transpose(-2, -1)

    def dense(self) -> torch.Tensor:
        """All experts' matrices (E, I, O) as a plain tensor."""
        return self.some(range(len(self.blocks)))

    @property
    def packed_bytes(self) -> int:
        """Memory it takes."""
        return self.blocks.nbytes + self.scales.nbytes

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Mxfp4Tensor(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        special = _SPECIAL.get(func)
        if special is not None and isinstance(args[0], Mxfp4Tensor):
            found = special(*args, **kwargs)
            if found is not None:
                return found
        if func._schema.is_mutable and isinstance(args[0], Mxfp4Tensor):
            raise ModelError("an MXFP4 base is frozen and cannot be written to: load the model with `base: bf16`")
        plain = tree_map_only(Mxfp4Tensor, lambda packed: packed.dense().contiguous(), (args, kwargs))
        return func(*plain[0], **plain[1])


def unpacked(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, *, plain: bool = False) -> torch.Tensor:
    """(..., I / 2) bytes and (..., I / 32) scales as (..., I) numbers, bit for bit as transformers converts them.

    plain: in torch's operations, whatever kernels are in use.
    """
    if dtype == torch.bfloat16 and not plain and (kernel := chosen("unpack", blocks)):
        return kernel(blocks, scales, dtype)
    pairs, powers = _tables(dtype, blocks.device)
    # Both numbers of a byte are looked up as one element of twice the width.
    values = pairs.index_select(0, blocks.flatten().to(torch.int32)).view(dtype)
    power = powers.index_select(0, scales.flatten().to(torch.int32))
    values.view(-1, RUN).mul_(power[:, None])
    return values.view(*blocks.shape[:-1], 2 * blocks.shape[-1])


@lru_cache(maxsize=16)
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """256 pairs of values, each seen as one number of twice the width, and 256 powers of two."""
    wide = {2: torch.float32, 4: torch.float64, 8: torch.complex128}[dtype.itemsize]
    value = torch.tensor(FP4_VALUES, dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    pairs = torch.stack([value[byte & 15], value[byte >> 4]], dim=-1).contiguous().view(wide).flatten()
    powers = torch.ldexp(torch.ones(256, dtype=torch.float64, device=device), byte - 127).to(dtype)
    return pairs, powers


def _same(tensor: Mxfp4Tensor, *args: Any, **kwargs: Any) -> Mxfp4Tensor:
    return Mxfp4Tensor(tensor.blocks, tensor.scales, tensor.dtype)


def _clone(tensor: Mxfp4Tensor, **kwargs: Any) -> Mxfp4Tensor:
    return Mxfp4Tensor(tensor.blocks.clone(), tensor.scales.clone(), tensor.dtype)


def _to_copy(
    tensor: Mxfp4Tensor, *, dtype: torch.dtype | None = None, device: Any = None, non_blocking: bool = False, **_: Any
) -> Mxfp4Tensor:
    """Another device, or another type to unpack to; the packed bytes are unchanged."""
    blocks, scales = (
        part.to(device or part.device, non_blocking=non_blocking) for part in (tensor.blocks, tensor.scales)
    )
    return Mxfp4Tensor(blocks, scales, dtype or tensor.dtype)


def _select(tensor: Mxfp4Tensor, dim: int, index: int) -> torch.Tensor | None:
    return tensor.expert(index) if dim == 0 else None


def _set(tensor: Mxfp4Tensor, source: torch.Tensor) -> Mxfp4Tensor | None:
    """PEFT's own wrappers set a parameter to itself when they put a parametrization over it."""
    same = isinstance(source, Mxfp4Tensor) and source.blocks is tensor.blocks
    return tensor if same else None


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.clone.default: _clone,
    _aten._to_copy.default: _to_copy,
    _aten.select.int: _select,
    _aten.set_.source_Tensor: _set,
}


def frozen_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.nn.Parameter:
    """A parameter of a checkpoint's `*_blocks` (E, O, I / 32, 16) and `*_scales` (E, O, I / 32), both uint8."""
    return cast(torch.nn.Parameter, torch.nn.Parameter(Mxfp4Tensor(blocks.flatten(-2), scales, dtype), False))


def packed_names(model: torch.nn.Module) -> list[str]:
    """Names of the parameters in MXFP4."""
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, Mxfp4Tensor)]


def lay_bare(model: torch.nn.Module) -> None:
    """Store each MXFP4 parameter X in its module as two plain ones, X_blocks and X_scales, which FSDP2 can shard.

    It would unpack X itself. X is then put together again whenever it is read, of what the two are at that moment.
    """
    for module in list(model.modules()):
        own = {name: p for name, p in module.named_parameters(recurse=False) if isinstance(p, Mxfp4Tensor)}
        for name, packed in own.items():
            delattr(module, name)
            for part in ("blocks", "scales"):
                parameter = torch.nn.Parameter(getattr(packed, part), requires_grad=False)
                module.register_parameter(f"{name}_{part}", parameter)
        if own:
            views = {name: _put_together(name, packed.dtype) for name, packed in own.items()}
            module.__class__ = type(type(module).__name__, (type(module),), views)


def _put_together(name: str, dtype: torch.dtype) -> property:
    return property(lambda self: Mxfp4Tensor(getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales"), dtype))
