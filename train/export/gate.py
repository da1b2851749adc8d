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
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.scoring.prompts import prompt_of

MAX_SEQUENCES = 24
MAX_POSITIONS = 512
PROBES = 6
PROBE_TOKENS = 64
PROBES_LOST = 2
"""At most this many probes may lose their channels by rounding; more refuse the export."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities (T, V) float32 on the CPU at the scored positions of the fixed token set.

    probes: whether each greedy answer to the probes keeps its channels by the strict check.
    """

    log_probs_TV: torch.Tensor
    probes: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Gate:
    """How far an export is from the live model.

    kl: mean over positions of KL(live || exported), in nats; kl_worst: the largest one. top1: share of positions with
    the same most likely token. probes_live, probes_exported: of `probes` answers, those that keep their channels.
    limit: a kl above it refuses the export.
    """

    kl: float
    kl_worst: float
    top1: float
    positions: int
    limit: float
    probes: int = 0
    probes_live: int = 0
    probes_exported: int = 0

    @property
    def passed(self) -> bool:
        return self.kl <= self.limit and self.probes_exported >= self.probes_live - PROBES_LOST

    def line(self) -> str:
        verdict = "passed" if self.passed else "refused"
        return (
            f"gate {verdict}: KL {self.kl:.2e} nats (limit {self.limit:.0e}, worst position {self.kl_worst:.2e}), "
            f"same top token at {self.top1:.1%} of {self.positions} positions, channels right in "
            f"{self.probes_exported} of {self.probes} probes (live {self.probes_live})"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def fixed_sequences(loaded: LoadedModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, indices of trained tokens) of the first turns of the packaged example data, in the model's vocabulary."""
    renderer = Renderer(loaded.vocabulary)
    out: list[tuple[np.ndarray, np.ndarray]] = []
    for item in read_conversations(["example:quickstart"]):
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
    return Scores(torch.cat(rows), answers(loaded))


def answers(loaded: LoadedModel) -> tuple[bool, ...]:
    """Of each probe (prompts of the package), whether the greedy answer keeps its channels; a cut one may."""
    renderer, vocabulary = Renderer(loaded.vocabulary), loaded.vocabulary
    prompts = [item for item in read_conversations(["example:quickstart_eval"]) if isinstance(item, Conversation)]
    prompts = [prompt_of(conversation) for conversation in prompts[:PROBES]]
    sampled = Sampler(loaded).sample([renderer.prompt(p.conversation) for p in prompts], PROBE_TOKENS)
    return tuple(
        check(
            sample.ids, tools=prompt.conversation.tools, builtin_tools=prompt.conversation.builtin_tools,
            vocabulary=vocabulary, finish_reason=sample.finish_reason, policy=False,
        ).ok
        for prompt, sample in zip(prompts, sampled, strict=True)
    )  # fmt: skip


def compare(live: Scores, exported: Scores, limit: float) -> Gate:
    """ModelError where the two scored different positions or vocabularies."""
    p_TV, q_TV = live.log_probs_TV, exported.log_probs_TV
    if p_TV.shape != q_TV.shape:
        raise ModelError(f"export gate: shapes {tuple(p_TV.shape)} and {tuple(q_TV.shape)}: not the same vocabulary")
    kl_T = (p_TV.double().exp() * (p_TV.double() - q_TV.double())).sum(-1).clamp_min(0)
    same_T = p_TV.argmax(-1) == q_TV.argmax(-1)
    return Gate(
        float(kl_T.mean()), float(kl_T.max()), float(same_T.double().mean()), len(kl_T), limit,
        len(live.probes), sum(live.probes), sum(exported.probes),
    )  # fmt: skip
