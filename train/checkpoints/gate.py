"""Is an export the model that was trained? Scores of a fixed token set, live against loaded again.

Legend: N sequences, T scored positions, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.sources.load import load_conversations
from counterpoint.train.model.load import LoadedModel

MAX_SEQUENCES = 24
MAX_POSITIONS = 512


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (T, V) float32 on the CPU at the scored positions of the fixed token set."""

    log_probs_TV: torch.Tensor


@dataclass(frozen=True, slots=True)
class Gate:
    """How far an export is from the live model.

    kl: mean over positions of KL(live || exported), in nats; kl_worst: the largest one. top1: share of positions with
    the same most likely token. limit: a kl above it refuses the export.
    """

    kl: float
    kl_worst: float
    top1: float
    positions: int
    limit: float

    @property
    def passed(self) -> bool:
        return self.kl <= self.limit

    def line(self) -> str:
        verdict = "passed" if self.passed else "refused"
        return (
            f"gate {verdict}: KL {self.kl:.2e} nats (limit {self.limit:.0e}, worst position {self.kl_worst:.2e}), "
            f"same top token at {self.top1:.1%} of {self.positions} positions"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def fixed_sequences(loaded: LoadedModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, indices of trained tokens) of the first turns of the packaged example data, in the model's vocabulary."""
    renderer = Renderer(loaded.vocabulary)
    out: list[tuple[np.ndarray, np.ndarray]] = []
    for item in load_conversations(["example:quickstart"]):
        if isinstance(item, Conversation):
            out += [(e.ids, np.flatnonzero(e.weights > 0)) for e in renderer.examples(item)]
        if len(out) >= MAX_SEQUENCES:
            return out[:MAX_SEQUENCES]
    return out


@torch.no_grad()
def score(loaded: LoadedModel, sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> Scores:
    """Log-probabilities at the positions that predict the trained tokens, at most `MAX_POSITIONS` evenly taken."""
    total = sum(len(trained) for _, trained in sequences)
    stride = max(1, -(-total // MAX_POSITIONS))
    model = loaded.model
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    rows: list[torch.Tensor] = []
    for ids, trained in sequences:
        input_ids = torch.from_numpy(np.asarray(loaded.vocabulary_map.rows(ids), dtype=np.int64))[None].to(device)
        wanted = torch.from_numpy(trained[::stride] - 1).to(device)
        logits = model(input_ids=input_ids, logits_to_keep=wanted, use_cache=False).logits[0]
        rows.append(torch.log_softmax(logits.float(), dim=-1).cpu())
    model.train(was_training)
    return Scores(torch.cat(rows))


def compare(live: Scores, exported: Scores, limit: float) -> Gate:
    """ModelError where the two scored different positions or vocabularies."""
    p_TV, q_TV = live.log_probs_TV, exported.log_probs_TV
    if p_TV.shape != q_TV.shape:
        raise ModelError(f"export gate: shapes {tuple(p_TV.shape)} and {tuple(q_TV.shape)}: not the same vocabulary")
    kl_T = (p_TV.double().exp() * (p_TV.double() - q_TV.double())).sum(-1).clamp_min(0)
    same_T = p_TV.argmax(-1) == q_TV.argmax(-1)
    return Gate(float(kl_T.mean()), float(kl_T.max()), float(same_T.double().mean()), len(kl_T), limit)
