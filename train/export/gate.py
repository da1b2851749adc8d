"""Is an export the model that was trained? Live against loaded again, on the run's held-out rows.

Legend: N rows, T scored positions, V rows of the vocabulary.

    R    KL(live, exported) / KL(live, base): 0 all of what was learned is there, 1 nothing
    R_e  KL(live, exported) / KL(live, live with the base's experts): the same of the experts alone

A light adapter has a small KL to its base, so that a merge which loses it whole has a small one too: R tells, a limit
of the KL does not. R alone is flattered by attention, which is merged in bf16. What survives is 1 - R_e.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.train.adapters.attach import lora_parts
from counterpoint.train.adapters.projections import PROJECTIONS
from counterpoint.train.export.rows import Row
from counterpoint.train.export.tasks import TaskScores, Worse
from counterpoint.train.model.load import LoadedModel

Target = Literal["adapter", "bf16", "mxfp4", "gguf"]
KL_LIMITS: dict[Target, float] = {"adapter": 1e-6, "bf16": 1e-2, "mxfp4": 5e-2, "gguf": 1e-2}
"""In nats, where there is no base to compare with, or nothing was learned."""
PASSES: dict[Target, tuple[float, float]] = {
    "adapter": (0.02, 0.2), "bf16": (0.02, 0.2), "gguf": (0.02, 0.2), "mxfp4": (0.05, 0.2),
}  # fmt: skip
"""The largest R and R_e that pass."""
WARNS = (0.1, 0.5)
"""The largest that pass with a warning."""
NOTHING_LEARNED = 1e-9
"""A KL between live and base below which there is nothing to lose, in nats."""
LOG_PROB_BYTES = 2 << 30
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Scores:
    """log_probs_TV: float32 on the CPU at the scored positions; row_T: the row of each."""

    log_probs_TV: torch.Tensor
    row_T: torch.Tensor


@dataclass(frozen=True)
class Live:
    """What an export is compared with: the live model's scores and tasks, and per row the sum over positions of
    KL(live, base) and of KL(live, live with the base's experts); None without a base."""

    scores: Scores
    base_N: torch.Tensor | None
    experts_N: torch.Tensor | None
    tasks: TaskScores


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of sums over rows, with its 95 % interval by bootstrap over the rows."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Gate:
    """How far an export is from the live model.

    kl: mean over positions of KL(live, exported), in nats; kl_worst: the largest one; kl_base: of KL(live, base). top1:
    share of positions with the same most likely token. ratio, ratio_experts: R and R_e, None where they mean nothing.
    limit: a larger R passes no more (where there is none, a larger kl), None for the usual ones. worse: tasks on which
    the export is shown to be worse than the live model.
    """

    target: Target
    kl: float
    kl_worst: float
    kl_base: float | None
    top1: float
    positions: int
    rows: int
    ratio: Ratio | None
    ratio_experts: Ratio | None
    limit: float | None
    tasks: Mapping[str, Any]
    worse: tuple[Worse, ...] = ()

    @property
    def verdict(self) -> Literal["passed", "warned", "refused"]:
        if self.limit is not None:
            return "passed" if (self.kl if self.ratio is None else self.ratio.value) <= self.limit else "refused"
        if self.worse:
            return "refused"
        if (self.ratio is None or self.target == "adapter") and self.kl > KL_LIMITS[self.target]:
            return "refused"
        if self._within(*PASSES[self.target]):
            return "passed"
        return "warned" if self._within(*WARNS) else "refused"

    def _within(self, ratio: float, experts: float) -> bool:
        return (self.ratio is None or self.ratio.value <= ratio) and (
            self.ratio_experts is None or self.ratio_experts.value <= experts
        )

    @property
    def passed(self) -> bool:
        return self.verdict != "refused"

    def line(self) -> str:
        """One line for a person."""
        parts = []
        if self.ratio is not None:
            parts.append(f"R {self.ratio.text()}, at most {self._limits(0)}")
        if self.ratio_experts is not None:
            survives = max(0.0, 1 - self.ratio_experts.value)
            parts.append(f"{survives:.0%} of what the experts learned survives (R_e {self.ratio_experts.text()})")
        limit = ""
        if self.ratio is None:
            limit = f" (limit {self.limit if self.limit is not None else KL_LIMITS[self.target]:.0e})"
        parts.append(f"KL {self.kl:.2e} nats{limit}, worst position {self.kl_worst:.2e}")
        parts.append(f"same top token at {self.top1:.1%} of {self.positions} positions of {self.rows} rows")
        parts += [each.text for each in self.worse]
        return f"gate {self.verdict}: {'; '.join(parts)}"

    def _limits(self, index: int) -> str:
        return f"{self.limit if self.limit is not None else PASSES[self.target][index]:g}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict, "passed": self.passed}


def score_live(live: LoadedModel, rows: Sequence[Row], tasks: TaskScores) -> Live:
    """Scores of the live model, and its distance from its base."""
    scores = score(live, rows)
    base_N = experts_N = None
    if hasattr(live.model, "disable_adapter"):
        with live.model.disable_adapter():
            base_N = kl_by_row(scores, score(live, rows))
        if any(kind in PROJECTIONS for kind, _, _ in lora_parts(live.model)):
            with base_experts_only(live.model):
                experts_N = kl_by_row(scores, score(live, rows))
    return Live(scores, base_N, experts_N, tasks)


@contextmanager
def base_experts_only(model: Any) -> Iterator[None]:
    """The model without its adapters on experts."""
    with ExitStack() as stack:
        for kind, _, module in lora_parts(model):
            if kind in PROJECTIONS:
                stack.callback(module.scaling.update, dict(module.scaling))
                module.scaling.update(dict.fromkeys(module.scaling, 0.0))
        yield


@torch.no_grad()
def score(loaded: LoadedModel, rows: Sequence[Row]) -> Scores:
    """Log-probabilities at the positions that predict the trained tokens, evenly taken where they would not fit into
    `LOG_PROB_BYTES`."""
    model = loaded.model
    width = model.get_output_embeddings().weight.shape[0]
    total = sum(len(trained) for _, trained in rows)
    stride = max(1, -(-total // max(1, LOG_PROB_BYTES // (4 * width))))
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    for ids, trained in rows:
        input_ids = torch.from_numpy(np.asarray(loaded.vocabulary_map.rows(ids), dtype=np.int64))[None].to(device)
        wanted = torch.from_numpy(trained[::stride] - 1).to(device)
        logits = model(input_ids=input_ids, logits_to_keep=wanted, use_cache=False).logits[0]
        found.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    model.train(was_training)
    counts = torch.tensor([len(each) for each in found])
    return Scores(torch.cat(found), torch.repeat_interleave(torch.arange(len(found)), counts))


def kl_of(live: Scores, other: Scores) -> torch.Tensor:
    """KL(live, other) at each position, float64 (T,), in nats. ModelError where the two scored different things."""
    p_TV, q_TV = live.log_probs_TV, other.log_probs_TV
    if p_TV.shape != q_TV.shape:
        raise ModelError(f"export gate: shapes {tuple(p_TV.shape)} and {tuple(q_TV.shape)}: not the same vocabulary")
    found = [(p.double().exp() * (p.double() - q.double())).sum(-1) for p, q in zip(p_TV, q_TV, strict=True)]
    return torch.stack(found).clamp_min(0)


def kl_by_row(live: Scores, other: Scores) -> torch.Tensor:
    """Sums over the positions of each row, float64 (N,)."""
    sums_N = torch.zeros(int(live.row_T[-1]) + 1, dtype=torch.float64)
    return sums_N.index_add_(0, live.row_T, kl_of(live, other))


def compare(live: Live, exported: Scores, tasks: TaskScores, target: Target, limit: float | None) -> Gate:
    """ModelError where the two scored different positions or vocabularies."""
    kl_T = kl_of(live.scores, exported)
    kl_N = kl_by_row(live.scores, exported)
    same_T = live.scores.log_probs_TV.argmax(-1) == exported.log_probs_TV.argmax(-1)
    return Gate(
        target,
        float(kl_T.mean()),
        float(kl_T.max()),
        None if live.base_N is None else float(live.base_N.sum()) / len(kl_T),
        float(same_T.double().mean()),
        len(kl_T),
        len(kl_N),
        ratio_of(kl_N, live.base_N, len(kl_T)),
        ratio_of(kl_N, live.experts_N, len(kl_T)),
        limit,
        live.tasks.paired(tasks),
        live.tasks.worse(tasks),
    )


def ratio_of(kl_N: torch.Tensor, whole_N: torch.Tensor | None, positions: int) -> Ratio | None:
    """sum kl / sum whole over the rows, and the middle 95 % of it over rows drawn again with replacement."""
    if whole_N is None or float(whole_N.sum()) / positions < NOTHING_LEARNED:
        return None
    random = np.random.default_rng(0)
    index_BN = random.integers(0, len(kl_N), (BOOTSTRAPS, len(kl_N)))
    upper, lower = (each.numpy()[index_BN].sum(1) for each in (kl_N, whole_N))
    drawn = upper[lower > 0] / lower[lower > 0]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (0.0, 1.0)
    return Ratio(float(kl_N.sum() / whole_N.sum()), float(low), float(high))
