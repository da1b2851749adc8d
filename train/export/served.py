"""`serving.json` of an export: how the model was trained to be served, with what `counterpoint verify` compares."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from counterpoint.configs.data_section import OpeningSettings, RenderSettings
from counterpoint.data.harmony.vocabulary import CALL, RETURN
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.serving.probes import PROBE_TOKENS, Probe, ScoredText, Serving, probes_of

MAX_TEXTS = 8
Scorable = tuple[np.ndarray, np.ndarray]


def serving_of(loaded: LoadedModel, settings: OpeningSettings, sequences: Sequence[Scorable]) -> Serving:
    """Of a live model. sequences: (ids, indices of trained tokens), of which some with a call and some with a final are
    scored by the model and, where it has an adapter, by its base."""
    calls = [each for each in sequences if each[0][-1] == CALL][: MAX_TEXTS // 2]
    finals = [each for each in sequences if each[0][-1] == RETURN][: MAX_TEXTS - len(calls)]
    texts = tuple(_scored(loaded, ids, trained) for ids, trained in (*calls, *finals))
    opening = RenderSettings.of(settings)
    return Serving(opening, loaded.vocabulary.fingerprint, _sampled(loaded, opening), texts)


def _sampled(loaded: LoadedModel, opening: RenderSettings) -> tuple[Probe, ...]:
    """The probes, with the rules that the model's own completions break."""
    probes = probes_of(opening, loaded.vocabulary)
    asked = [probe for probe in probes if probe.ids is not None]
    found = Sampler(loaded).sample([probe.ids or () for probe in asked], PROBE_TOKENS)
    broken = {
        probe.name: probe.broken_by(sample.ids, sample.finish_reason == "length", loaded.vocabulary)
        for probe, sample in zip(asked, found, strict=True)
    }
    return tuple(replace(probe, broken=broken.get(probe.name)) for probe in probes)


def _scored(loaded: LoadedModel, ids: np.ndarray, trained: np.ndarray) -> ScoredText:
    start = int(trained[0])
    has_base = hasattr(loaded.model, "disable_adapter")
    tuned = _log_probs(loaded, ids, start)
    base = _log_probs(loaded, ids, start, adapter=False) if has_base else None
    return ScoredText(tuple(ids.tolist()), start, tuned, base)


@torch.no_grad()
def _log_probs(loaded: LoadedModel, ids: np.ndarray, start: int, adapter: bool = True) -> tuple[float, ...]:
    """Log-probabilities of the tokens from `start` on, in nats."""
    model = loaded.model
    was_training = model.training
    model.eval()
    rows = torch.from_numpy(np.asarray(loaded.vocabulary_map.rows(ids), dtype=np.int64))[None]
    rows = rows.to(next(model.parameters()).device)
    with nullcontext() if adapter else model.disable_adapter():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        logits = model(input_ids=rows, logits_to_keep=rows.shape[1] - start + 1, use_cache=False).logits[0, :-1]
    model.train(was_training)
    scores = torch.log_softmax(logits.float(), dim=-1).gather(-1, rows[0, start:, None])[:, 0]
    return tuple(round(score, 6) for score in scores.cpu().tolist())
