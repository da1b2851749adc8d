"""From a run file to figures: memory of a step, disk of its checkpoints, and the changes that make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from counterpoint.configs.model_section import LoraSettings
from counterpoint.configs.schema import DpoRun, GrpoRun, SftRun, TrainingRun
from counterpoint.train.model.cached_attention import DEFAULT_BATCH_TOKENS
from counterpoint.train.model.load import dtype_of
from counterpoint.train.model.precision import compute_dtype
from counterpoint.train.plan.memory import Batch, Memory, Plan, peak, pinned_bytes
from counterpoint.train.plan.shape import MXFP4_BYTES, Shape, shape_of, weight_bytes

GIB = 1 << 30
USABLE = 0.95
"""Share of a device's memory that a plan may fill."""
CARDS = {"24 GB": 24, "48 GB": 48, "80 GB": 80}
SHORTEST_ROW, LONGEST_ROW = 256, 131_072
EIGHT_BIT = 2.03
"""Bytes of AdamW's two moments for a number in 8 bits: one each, and a scale for each 256."""
ROLLOUT_PROCESS = 680 << 20
"""Bytes of main memory of a process that plays rollouts beside a trainer's: modules and vocabulary, no model (678 MiB
measured in a run)."""
NO_LORA = LoraSettings(enabled=False)
Change = tuple[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A run as it would be on `device` (`cpu` or `cuda`), its largest forward pass being `batch`."""

    run: TrainingRun
    batch: Batch
    device: str
    shape: Shape

    @staticmethod
    def of(run: TrainingRun, batch: Batch, device: str) -> Estimate:
        return Estimate(run, batch, device, shape_of(run.model, run.lora, run.train))

    @property
    def processes(self) -> int:
        return self.run.launch.processes * self.run.launch.nodes

    @property
    def itemsize(self) -> int:
        """Bytes of a weight: as the run file sets it, `auto` being bfloat16 on a GPU."""
        if self.run.model.dtype == "auto":
            return 2 if self.device == "cuda" else 4
        return dtype_of(self.run.model.dtype, torch.device("cpu")).itemsize

    @property
    def trained_itemsize(self) -> int:
        """PEFT keeps adapters in float32; a whole model trains in its own format."""
        return self.itemsize if self.shape.full else 4

    @property
    def moment_bytes(self) -> float:
        """Bytes of the optimizer's state for one trained number, on the average."""
        shape, optimizer = self.shape, self.run.train.optimizer
        if optimizer == "adamw":
            return 2.0 * self.trained_itemsize
        whole, each = shape.small, 2.0 * self.trained_itemsize
        if optimizer == "adamw_8bit":
            # bitsandbytes keeps what is not in 8 bits in float32; transformers has it keep the embedding so.
            whole, each = whole + (shape.vocabulary * shape.hidden if shape.full else 0), 8.0
        return EIGHT_BIT + (each - EIGHT_BIT) * whole / shape.trainable

    @cached_property
    def memory(self) -> Memory:
        return peak(self.shape, self.batch, self._plan())

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory of one process."""
        return pinned_bytes(self.shape, self.batch, self._plan())

    @property
    def kept_bytes(self) -> int:
        """Keys and values of full layers while this process samples, in an evaluation or for rollouts; at most."""
        shape = self.shape
        return DEFAULT_BATCH_TOKENS * (shape.layers // 2) * 2 * shape.key_width * self.itemsize

    @property
    def checkpoint_bytes(self) -> int:
        """One checkpoint: what trained, and the optimizer's state."""
        return int(self.shape.trainable * (self.trained_itemsize + self.moment_bytes))

    @property
    def disk_bytes(self) -> int:
        """Checkpoints that are kept, one being written before an old one goes, and the result."""
        return (self.run.train.keep_checkpoints + 1) * self.checkpoint_bytes + (
            self.shape.trainable * self.trained_itemsize
        )

    @property
    def host_bytes(self) -> int:
        """Main memory of the rollout process beside each trainer process; programs of tools and rewards are not in
        it."""
        return ROLLOUT_PROCESS if isinstance(self.run, GrpoRun) and self.run.rollout.staleness else 0

    def fits(self, budget: float) -> bool:
        """Whether a process fits into `budget` bytes of device memory, of which vLLM in this process has its share."""
        run = self.run
        rollout = run.rollout if isinstance(run, GrpoRun) else None
        taken = rollout.vllm.gpu_memory if rollout is not None and rollout.engine == "vllm" else 0
        beside = self.host_bytes if self.device == "cpu" else 0
        return self.memory.total + beside <= (USABLE - taken) * budget

    def longest_row(self, budget: float) -> int:
        """Tokens of the longest row that fits into `budget` with these settings, in steps of 256; 0 for none."""
        low, high = 0, LONGEST_ROW // SHORTEST_ROW + 1
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._with_width(SHORTEST_ROW * middle).fits(budget) else (low, middle)
        return SHORTEST_ROW * low

    def _with_width(self, width: int) -> Estimate:
        return replace(self, batch=_scaled(self.batch, width / self.batch.width, width=width))

    @property
    def _rounded_bytes(self) -> int:
        """The packed copy of the experts that `train.quantization_aware` computes with."""
        return int(self.shape.packable * MXFP4_BYTES) if self.run.train.quantization_aware else 0

    def _plan(self) -> Plan:
        model, train = self.run.model, self.run.train
        number = {2: torch.bfloat16, 4: torch.float32}[self.itemsize]
        packed = isinstance(self.run, DpoRun | GrpoRun)  # a step into as many micro-batches as it takes
        weights = weight_bytes(self.shape, model, self.itemsize)
        return Plan(
            self.device,
            self.itemsize,
            compute_dtype(torch.empty(0, dtype=number)).itemsize if self.device == "cpu" else self.itemsize,
            weights + self._rounded_bytes,
            self.moment_bytes,
            train.activation_checkpointing is True,
            train.activation_offload and train.activation_checkpointing is True,
            train.activation_checkpointing == "experts",
            train.accumulation > 1 or packed,
            self.processes,
            self.run.launch.strategy == "fsdp2" and self.processes > 1,
            model.attention == "lean",
            model.experts == "lean",
            model.norms == "lean",
            getattr(model, "loss", "lean") == "lean",
            model.base == "mxfp4",
            model.kernels == "triton" and self.device == "cuda",
            packed,
            self._beside(weights),
            *self._sampled(),
        )

    def _beside(self, weights: int) -> int:
        """Bytes of the reference of a whole model that trains on pairs, and of the teacher of rollouts."""
        if isinstance(self.run, DpoRun) and self.shape.full:
            return weights
        teacher = self.run.grpo.teacher if isinstance(self.run, GrpoRun) else None
        if teacher is None or teacher.model is None:
            return 0
        return weight_bytes(shape_of(teacher.model, NO_LORA), teacher.model, self.itemsize)

    def _sampled(self) -> tuple[int, int]:
        """Rollouts that the trainer samples at a time, and the tokens of the longest."""
        run = self.run
        if not isinstance(run, GrpoRun) or run.rollout.engine != "transformers":
            return 0, 0
        rows = min(run.rollout.batch, run.train.batch_rows * run.train.accumulation)
        return rows, self.batch.longest or self.batch.width

    def changed(self, changes: list[Change]) -> Estimate:
        """The same run with other settings (`train.batch_rows`, 1)."""
        run, batch = self.run, self.batch
        for key, value in changes:
            section, name = key.split(".")
            before = getattr(run, section)
            run = run.model_copy(update={section: before.model_copy(update={name: value})})
            if key == "train.batch_rows" and isinstance(run, SftRun):
                batch = _scaled(batch, value / batch.rows, rows=value)
            elif (key in ("data.max_tokens", "data.pack_tokens") or name == "row_tokens") and value < batch.width:
                batch = _scaled(batch, value / batch.width, width=value)
        return Estimate.of(run, batch, self.device)


def _scaled(batch: Batch, share: float, **sizes: int) -> Batch:
    """`batch` with another size, and as much less of everything else."""
    parts = {name: round(getattr(batch, name) * share) for name in ("targets", "sequences", "keys")}
    return replace(batch, **sizes, **parts | {"targets": max(1, parts["targets"])})


def changes_to_fit(estimate: Estimate, budget: float) -> list[Change] | None:
    """The first settings to change until a step fits into `budget` bytes; None where none of these helps."""
    tried: dict[str, list[list[Change]]] = {}
    now = estimate
    for options in _candidates(estimate):
        if now.fits(budget):
            break
        after = now.changed(options)
        if after.memory.total < 0.98 * now.memory.total:
            tried.setdefault(options[0][0], []).append(options)
            now = after
    if not now.fits(budget):
        return None
    chosen = {key: options[-1] for key, options in tried.items()}
    for key, options in tried.items():
        # What later changes made superfluous, or more than is needed.
        rest = [change for other, kept in chosen.items() if other != key for change in kept]
        cheaper = ([], *options[:-1])
        chosen[key] = next((one for one in cheaper if estimate.changed([*rest, *one]).fits(budget)), options[-1])
    changes = _with_fsdp2(estimate.run, [change for options in chosen.values() for change in options])
    return [(key, value) for key, value in changes if _value(estimate.run, key) != value]


def _with_fsdp2(run: TrainingRun, changes: list[Change]) -> list[Change]:
    """`changes`, where the run would then shard, without what FSDP2 refuses."""
    after = dict(changes)

    def value(key: str) -> Any:
        return after.get(key, _value(run, key))

    if value("launch.strategy") == "fsdp2":
        if value("train.optimizer") == "adamw_8bit":
            after["train.optimizer"] = "adamw_torch_8bit"
        if value("model.base") == "mxfp4":
            after["model.experts"] = "lean"
    return list(after.items())


def _value(run: TrainingRun, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(run, section), name)


def _candidates(estimate: Estimate) -> Iterator[list[Change]]:
    """From what costs least to what costs most."""
    run, full = estimate.run, estimate.shape.full
    for part in ("loss", "attention", "experts", "norms"):
        if getattr(run.model, part, "lean") == "reference":
            yield [(f"model.{part}", "lean")]
    if run.train.batch_rows > 1 and isinstance(run, SftRun):
        yield [("train.batch_rows", 1), ("train.accumulation", run.train.accumulation * run.train.batch_rows)]
    if not run.train.activation_checkpointing and not full:
        yield [("train.activation_checkpointing", "experts"), ("model.experts", "lean")]
    if run.train.activation_checkpointing is not True:
        yield [("train.activation_checkpointing", True)]
    if not run.train.activation_offload and estimate.device == "cuda":
        yield [("train.activation_checkpointing", True), ("train.activation_offload", True)]
    if not full and run.model.base == "bf16" and estimate.shape.packable > 1e9:
        yield [("model.base", "mxfp4")]
    if run.train.optimizer == "adamw":
        yield [("train.optimizer", "adamw_8bit" if run.launch.strategy == "ddp" else "adamw_torch_8bit")]
    if run.lora.enabled and run.lora.experts:
        rank = run.lora.expert_rank or run.lora.rank
        yield from ([("lora.expert_rank", smaller)] for smaller in (8, 4) if smaller < rank)
    if isinstance(run, DpoRun | GrpoRun):
        tokens = estimate.batch.width
        while tokens > max(2048, estimate.batch.longest):
            tokens = max(tokens // 2, estimate.batch.longest)
            yield [(f"{run.recipe}.row_tokens", tokens)]
    if isinstance(run, GrpoRun) and run.rollout.engine == "transformers":
        rows = run.rollout.batch
        while rows > 1:
            rows //= 2
            yield [("rollout.batch", rows)]
    if isinstance(run, SftRun):
        pack, tokens = run.data.pack_tokens, min(run.data.max_tokens, estimate.batch.width)
        while tokens >= 2048:
            tokens //= 2
            yield [("data.max_tokens", tokens), *([("data.pack_tokens", tokens)] if pack else [])]
    if estimate.device == "cuda" and not (isinstance(run, GrpoRun) and run.rollout.engine != "server"):
        for count in (2, 4, 8, 16):
            if count > estimate.processes:
                yield [("launch.processes", count), ("launch.strategy", "fsdp2")]
