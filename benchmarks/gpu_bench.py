"""What the parts of gpu.py share: where they run, at which size, and how they record what they find."""

from __future__ import annotations

import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_results import Record, judged

_20B = {
    "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2880,
    "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 201088, "router_aux_loss_coef": 0.0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_TINY = {
    "num_hidden_layers": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64,
    "intermediate_size": 64, "head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512,
    "sliding_window": 16, "router_aux_loss_coef": 0.0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One part's run. emulate: CUDA forms on the CPU. results: JSON lines, written as they come, so that a part which
    is killed keeps what it found. mark: behind the names of measurements."""

    device: str
    tiny: bool
    emulate: bool
    results: Path
    mark: str = ""

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def cuda_forms(self) -> bool:
        return self.cuda or self.emulate

    def shape(self, **changes: Any) -> dict[str, Any]:
        """Settings of the model's config."""
        return {**(_TINY if self.tiny else _20B), **changes}

    def two_layers(self) -> dict[str, Any]:
        """One layer of each kind of attention, and a short vocabulary."""
        return self.shape(num_hidden_layers=2, vocab_size=512 if self.tiny else 4096)

    def measured(self, name: str, **numbers: Any) -> None:
        self._record({"name": name + self.mark, "result": "measured", **numbers})

    def check(self, name: str, errors: Mapping[str, float], limits: float | Mapping[str, float], **more: Any) -> None:
        """Passes where each error is below its limit (one for all, or by name); NaN fails."""
        limit = limits if isinstance(limits, Mapping) else dict.fromkeys(errors, limits)
        failed = [which for which, error in errors.items() if not error < limit[which]]
        numbers = {which: short(error) for which, error in errors.items()}
        self._record({"name": name, **judged(name, failed, self.cuda_forms), **numbers, **more})

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An exception inside is a failed check; it goes on upwards where CUDA is of no use after it."""
        try:
            yield
        except Exception as error:
            self.broken(name, error)
            if "CUDA error" in str(error) or "device-side" in str(error):
                raise

    def broken(self, name: str, error: BaseException) -> None:
        trace = [f"{f.filename[-40:]}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:]]
        message = f"{type(error).__name__}: {str(error)[:300]}"
        self._record({"name": name, "result": "fail", "error": message, "trace": trace})

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def poison(self) -> None:
        """Fill the allocator's free blocks with NaN, so that memory which nothing writes shows."""
        if self.cuda:
            for size in (1 << 31, 1 << 28, 1 << 24, 1 << 20):
                blocks = [torch.full((size // 4,), float("nan"), device=self.device) for _ in range(3)]
                del blocks

    def timed(self, work: Callable[[], Any], times: int = 5, warm: int = 2) -> float:
        """Median seconds of `times` calls after `warm` others; of one call where shapes are tiny."""
        for _ in range(warm):
            work()
        seconds = []
        for _ in range(1 if self.tiny else times):
            self.sync()
            begin = time.perf_counter()
            work()
            self.sync()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    def _record(self, record: Record) -> None:
        line = json.dumps(record)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def short(number: float) -> float | None:
    """Two digits; None for what is not finite, which JSON cannot say."""
    return float(f"{number:.2g}") if math.isfinite(number) else None


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the reference's; NaN where anything found is not finite."""
    found, reference = found.detach().double(), reference.detach().double()
    if not torch.isfinite(found).all():
        return math.nan
    return float((found - reference).norm() / reference.norm().clamp_min(1e-30))


def tree_row(tokens: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(position, subtree_end) of one row: plain, packed, padded, or a tree."""
    if kind == "plain":
        return torch.arange(tokens), torch.full((tokens,), tokens)
    if kind == "packed":  # three examples, of odd lengths
        cuts = [(0, tokens // 3 + 1), (tokens // 3 + 1, tokens // 2 + 3), (tokens // 2 + 3, tokens)]
        position = torch.cat([torch.arange(last - first) for first, last in cuts])
        return position, torch.cat([torch.full((last - first,), last) for first, last in cuts])
    if kind == "padded":  # every padding token is a segment of its own
        kept = unpadded(tokens)
        end = torch.cat([torch.full((kept,), kept), torch.arange(kept, tokens) + 1])
        return torch.cat([torch.arange(kept), torch.zeros(tokens - kept, dtype=torch.long)]), end
    assert kind == "tree"
    trunk, rest = tokens // 3, tokens - tokens // 3
    sizes = [rest // 4, rest // 5, rest // 7, 5]
    sizes.append(rest - sum(sizes))
    end, position, at = [tokens] * trunk, list(range(trunk)), trunk
    for branch, size in enumerate(sizes):
        leaf = branch in (2, 3)  # of branch 1
        begin = trunk + sizes[1] * leaf
        end += [at + size + (sizes[2] + sizes[3] if branch == 1 else 0)] * size
        position += range(begin, begin + size)
        at += size
    return torch.tensor(position), torch.tensor(end)


def unpadded(tokens: int) -> int:
    """Tokens of a padded row that are none of its padding."""
    return tokens - tokens // 3
