"""A merged model with its experts in MXFP4, in the tensor layout of the released checkpoints, layer by layer, and what
of the adapter is left after rounding.

Legend: E experts, I inputs, O outputs of a projection, G = I / 32 runs of one scale. Files hold (E, O, G, 16) bytes and
(E, O, G) scales.

A base that came from MXFP4 is exactly on the grid, and to the nearest a small adapter moves no number to the next point
of it. `Rounding` says how numbers are chosen instead: `calibrated` (gptq.py) needs rows of the run, `dithered`
(model/mxfp4_grid.py) only a seed. No weight of the model is held unpacked but those of a few experts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from counterpoint.train.adapters.attach import layer_of
from counterpoint.train.adapters.projections import PROJECTIONS, Matrix, Projection, kept_zeros, projections
from counterpoint.train.checkpoints.merged import merged_state
from counterpoint.train.export.gptq import calibrated, output_error
from counterpoint.train.export.gram import Gram, layers_at_once, measured
from counterpoint.train.export.layer_files import LayerFiles
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.mxfp4_grid import nearest, packed, raised, values_of
from counterpoint.train.model.mxfp4_load import BLOCKS, SCALES

Rounding = Literal["calibrated", "dithered", "nearest"]
QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
NONE_LEFT = 0.01
"""A share of the adapter below which none of it counts as left."""
WORK_BYTES = {"cpu": 2 << 30, "cuda": 24 << 30}
_COPIES = 10
"""Float32 copies of an expert's matrix that the calibrated rounding holds at once, at most."""


@dataclass(frozen=True)
class How:
    """rounding, and the seed of dithering. rows: ids of the run's rows, which `calibrated` runs the model over."""

    rounding: Rounding
    seed: int = 0
    rows: Sequence[np.ndarray] = ()


@dataclass
class Survival:
    """Squared norms over one kind of projection: of the base, of the adapter's change, of the rounding error of their
    sum, and the product of the wanted change with the one that is left; `out_*` the same seen through H, in the
    experts' outputs. numbers, flips: of all, those that are not the base's; experts: by the rounding that they got."""

    kind: str
    base: float = 0.0
    change: float = 0.0
    error: float = 0.0
    left: float = 0.0
    out_change: float = 0.0
    out_error: float = 0.0
    out_left: float = 0.0
    numbers: int = 0
    flips: int = 0
    gain_low: float = 1.0
    gain_high: float = 1.0
    experts: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """How much of the adapter's change is left in the weights: 1 all, 0 nothing."""
        return self.left / self.change if self.change else 1.0

    @property
    def line(self) -> str:
        rounding = f"rounding to MXFP4 changes {(self.error / self.base) ** 0.5:.2%} of their norm" if self.base else ""
        if not self.change:
            return f"{self.kind}: {rounding}"
        moved = (self.change / self.base) ** 0.5
        left = "none of it is" if self.share < NONE_LEFT else f"{self.share:.0%} of it is"
        outputs = f", {self.out_left / self.out_change:.0%} in their outputs" if self.out_change else ""
        changes = f"the adapter changes the weights by {moved:.2%} of their norm"
        return f"{self.kind}: {changes}, {left} left{outputs}; {rounding}"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: s_W, s_H and e_H are the shares of the change that are left in weights and outputs, and the
        squared error of the outputs over the change."""
        seen = self.out_change or None
        return {
            **asdict(self),
            "s_W": self.share,
            "s_H": self.out_left / seen if seen else None,
            "e_H": self.out_error / seen if seen else None,
        }

    def add(self, other: Survival) -> None:
        for name in ("base", "change", "error", "left", "out_change", "out_error", "out_left", "numbers", "flips"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.gain_low = min(self.gain_low, other.gain_low)
        self.gain_high = max(self.gain_high, other.gain_high)
        for name, count in other.experts.items():
            self.experts[name] = self.experts.get(name, 0) + count


def write_mxfp4(files: LayerFiles, live: LoadedModel, how: How, say: Callable[[str], None]) -> list[Survival]:
    """Write all parts that are missing, then config.json and generation_config.json. Says how far it is."""
    model = live.model
    by_layer: dict[int, list[Projection]] = {}
    for part in projections(model):
        by_layer.setdefault(part.layer, []).append(part)
    rest: dict[int | None, dict[str, torch.Tensor]] = {}
    for name, tensor in merged_state(model, experts=False).items():
        rest.setdefault(layer_of(name), {})[name] = tensor
    missing = [layer for layer in by_layer if layer not in files.records]
    if done := len(by_layer) - len(missing):
        say(f"{done} of {len(by_layer)} layers are there already")
    clock = _Clock(len(missing), say)
    at_once = layers_at_once(live) if how.rounding == "calibrated" else 1
    for first in range(0, len(missing), at_once):
        group = missing[first : first + at_once]
        grams: dict[int, Gram] = {}
        if how.rounding == "calibrated":
            grams = measured(live, how.rows, group, clock.rows(len(how.rows), group))
        for layer in group:
            tensors, survival = packed_layer(by_layer[layer], how, grams.pop(layer, None))
            tensors |= {name: tensor.to(torch.bfloat16) for name, tensor in rest[layer].items()}
            files.write(layer, tensors, [asdict(part) for part in survival])
            clock.layer(layer)
    if len(by_layer) not in files.records:
        files.write(len(by_layer), {name: tensor.to(torch.bfloat16) for name, tensor in rest[None].items()}, [])
    _write_configs(files.folder, model, live.stop_rows)
    found = {kind: Survival(kind) for kind in PROJECTIONS}
    for record in files.records.values():
        for values in record["measured"]:
            found[values["kind"]].add(Survival(**values))
    return list(found.values())


def packed_layer(
    parts: Sequence[Projection], how: How, gram: Gram | None
) -> tuple[dict[str, torch.Tensor], list[Survival]]:
    """Packed experts of one layer by tensor name, and what survives of each projection."""
    tensors: dict[str, torch.Tensor] = {}
    survival = []
    with torch.no_grad():
        for part in parts:
            found = Survival(part.kind)
            blocks, scales = [], []
            for codes, scale in _rounded(part, how, gram, found):
                blocks.append(packed(codes))
                scales.append(scale)
            tensors[part.tensor + BLOCKS], tensors[part.tensor + SCALES] = torch.cat(blocks), torch.cat(scales)
            survival.append(found)
    return tensors, survival


def _rounded(
    part: Projection, how: How, gram: Gram | None, found: Survival
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(codes, scales) of a few experts at a time."""
    matrix = 4 * part.weight.shape[1] * part.weight.shape[2]
    device = "cuda" if part.weight.is_cuda else "cpu"
    size = max(1, WORK_BYTES[device] // (_COPIES * matrix)) if how.rounding == "calibrated" else 1
    for first in range(0, part.experts, size):
        experts = range(first, min(first + size, part.experts))
        base = Matrix(*(torch.stack(each) for each in zip(*(part.base(e) for e in experts), strict=True)))
        changes = [part.change(e) for e in experts]
        change_EOI = torch.stack([torch.zeros_like(base.value_OI[0]) if c is None else c for c in changes])
        gram_EII = None if gram is None else gram.of(part.kind, slice(experts.start, experts.stop))
        codes, scales = _chosen(part, how, experts, base, change_EOI, gram_EII, found)
        codes = kept_zeros(codes, base.code_OI)
        _add(found, base, change_EOI, codes, scales, None if gram_EII is None else gram_EII[0])
        yield codes, scales


def _chosen(
    part: Projection, how: How, experts: range, base: Matrix, change_EOI: torch.Tensor,
    gram: tuple[torch.Tensor, torch.Tensor] | None, found: Survival,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    target_EOI = base.value_OI + change_EOI
    scales_EOG = raised(base.scale_OG, target_EOI)
    # What is on the grid and is not changed stays, whatever the rounding.
    still_E = (values_of(base.code_OI, base.scale_OG) == target_EOI).flatten(1).all(1)
    if how.rounding == "nearest":
        codes_EOI, name_E = nearest(target_EOI, scales_EOG), ["nearest"] * len(experts)
    else:
        codes_EOI, name_E = base.code_OI.clone(), ["dithered"] * len(experts)
        measured_E = torch.zeros_like(still_E) if gram is None else gram[1]
        for index in torch.nonzero(~measured_E & ~still_E)[:, 0].tolist():
            codes_EOI[index], scales_EOG[index] = part.dithered(experts[index], how.seed)
    if gram is not None:
        gram_EII, has_E = gram
        use = torch.nonzero(has_E & ~still_E)[:, 0]
        if len(use):
            done = calibrated(base.value_OI[use], change_EOI[use], base.scale_OG[use], gram_EII[use])
            codes_EOI[use], scales_EOG[use] = done.codes, done.scales
            found.gain_low = min(found.gain_low, float(done.gain.min()))
            found.gain_high = max(found.gain_high, float(done.gain.max()))
            for index in use.tolist():
                name_E[index] = "calibrated"
    for index, still in enumerate(still_E.tolist()):
        name = "unchanged" if still else name_E[index]
        found.experts[name] = found.experts.get(name, 0) + 1
    return codes_EOI, scales_EOG


def _add(
    into: Survival, base: Matrix, change_EOI: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor,
    gram_EII: torch.Tensor | None,
) -> None:  # fmt: skip
    left_EOI = values_of(codes, scales) - base.value_OI
    error_EOI = left_EOI - change_EOI
    into.base += _sum(base.value_OI.square())
    into.change += _sum(change_EOI.square())
    into.error += _sum(error_EOI.square())
    into.left += _sum(left_EOI * change_EOI)
    into.numbers += left_EOI.numel()
    into.flips += int((values_of(codes, scales) != values_of(base.code_OI, base.scale_OG)).sum())
    if gram_EII is not None:
        through_EOI = change_EOI @ gram_EII
        into.out_change += _sum(through_EOI * change_EOI)
        into.out_left += _sum(through_EOI * left_EOI)
        into.out_error += _sum(output_error(error_EOI, gram_EII))


def _sum(tensor: torch.Tensor) -> float:
    return float(tensor.sum(dtype=torch.float64))


def _write_configs(place: Path, model: Any, stop_rows: list[int]) -> None:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = {
        **inner.config.to_dict(),
        "architectures": ["GptOssForCausalLM"],
        "dtype": "bfloat16",
        "quantization_config": QUANTIZATION,
    }
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    inner.generation_config.eos_token_id = stop_rows
    inner.generation_config.save_pretrained(str(place))


class _Clock:
    """Says how many layers are done and how long the others take."""

    SECONDS = 20.0

    def __init__(self, layers: int, say: Callable[[str], None]) -> None:
        self.layers, self.say, self.done = layers, say, 0
        self.began = self.told = time.monotonic()

    def rows(self, total: int, group: Sequence[int]) -> Callable[[int], None]:
        def seen(done: int) -> None:
            if self._is_due():
                self.say(f"layers {group[0] + 1} to {group[-1] + 1}: {done} of {total} rows seen")

        return seen

    def layer(self, layer: int) -> None:
        self.done += 1
        if self.done == self.layers or self._is_due():
            left = (time.monotonic() - self.began) / self.done * (self.layers - self.done)
            self.say(f"layer {layer + 1} written, {self.layers - self.done} to go, about {left:.0f} s left")

    def _is_due(self) -> bool:
        if time.monotonic() - self.told < self.SECONDS:
            return False
        self.told = time.monotonic()
        return True
