"""`/v1/completions` over the project's own sampler: token ids in and out, in the fields of vLLM that training reads.

Requests that come together are sampled together. For trying what asks such a server, and for a small teacher; a large
model belongs into vLLM.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.endpoint.requests import RefusedError
from counterpoint.train.endpoint.served_adapters import ServedAdapters
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.expert_routes import encoded
from counterpoint.train.sampling.request_batches import Batches, Request
from counterpoint.train.sampling.sample import Sampled, Sampler, inference
from counterpoint.train.sampling.truncation import Truncation

ROWS = 512
"""Positions whose logits are in memory at once."""
_FIXED = {
    "n": 1, "echo": False, "stream": False, "stop": None, "presence_penalty": 0, "frequency_penalty": 0,
    "repetition_penalty": 1, "routed_experts_prompt_start": 0,
}  # fmt: skip
"""Fields that have one value here, and may be left out."""


class Completions:
    """Answers requests, also from several threads. longest: most tokens of an answer. adapters:
    those that it samples with by their names; None samples with the model, whatever it is called.

    It is an `Engine` too, so that what samples beside it takes its turn.
    """

    def __init__(
        self,
        sampler: Sampler,
        longest: int,
        adapters: ServedAdapters | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        self.sampler, self.longest, self.adapters = sampler, longest, adapters
        self._lock = lock or threading.Lock()
        self._batches = Batches(self, sampler.batch_rows)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`."""
        with self.model("") as loaded:
            return replace(self.sampler, loaded=loaded).sample(prompts, max_new_tokens, temperature, seed, stop_ids)

    @contextmanager
    def model(self, name: str) -> Iterator[LoadedModel]:
        """The model of that name, for one caller at a time; the empty name is that of the model itself."""
        with self._lock:
            if self.adapters is None:
                yield self.sampler.loaded
                return
            with self.adapters.active(name or self.adapters.name) as loaded:
                yield loaded

    def answer(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """RefusedError for what cannot be answered."""
        ids = self._prompt(body)
        for name, only in _FIXED.items():
            if body.get(name, only) not in (only, None):
                raise RefusedError(f"{name}: {body[name]!r} is not served here, only {only!r}", name)
        tokens = _number(body, "max_tokens", min(16, self.longest), 0)
        if tokens > self.longest:
            raise RefusedError(f"max_tokens: {tokens} is more than {self.longest} (--max-new-tokens)", "max_tokens")
        top_k = max(0, _number(body, "top_k", 0, -1))
        cut = Truncation(_real(body, "top_p", 1.0, 1.0), top_k, _real(body, "min_p", 0.0, 1.0))
        way = _Way(self, model, cut, body.get("logprobs") is not None)
        temperature, seed = _real(body, "temperature", 1.0, 100.0), _number(body, "seed", 0, 0)
        if seed >= 1 << 63:
            raise RefusedError(f"seed: {seed} has more than 63 bits", "seed")
        stops = body.get("stop_token_ids")
        if stops is not None and not (isinstance(stops, list) and all(type(id_) is int and id_ >= 0 for id_ in stops)):
            raise RefusedError("stop_token_ids: a list of token ids is needed", "stop_token_ids")
        if self.adapters is not None:
            self.adapters.download(model)
        request = Request(ids, tokens, temperature, seed, STOP_IDS if stops is None else tuple(stops), way)
        if tokens:
            sampled = self._batches.put(request).result()
        else:
            with self.model(model):  # is there
                sampled = Sampled([], "length", [])
        scores = self._scores(ids, model) if body.get("prompt_logprobs") is not None else None
        stopped = sampled.finish_reason == "stop"
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.sampler.loaded.vocabulary.decode(sampled.ids),
            "token_ids": sampled.ids,
            "prompt_token_ids": ids,
            "finish_reason": sampled.finish_reason,
            "stop_reason": sampled.ids[-1] if stopped else None,
            "logprobs": {"token_logprobs": sampled.logprobs} if way.logprobs else None,
            "prompt_logprobs": None,
        }
        if scores is not None:
            told = zip(ids[1:], scores, strict=True)
            choice["prompt_logprobs"] = [None, *({str(id_): self._scored(id_, score)} for id_, score in told)]
        if sampled.routes is not None:
            choice["routed_experts"] = encoded(sampled.routes)
        used = {
            "prompt_tokens": len(ids),
            "completion_tokens": len(sampled.ids),
            "total_tokens": len(ids) + len(sampled.ids),
        }
        return {"object": "text_completion", "model": model, "choices": [choice], "usage": used}

    def _scored(self, id_: int, score: float) -> dict[str, Any]:
        return {"logprob": score, "decoded_token": self.sampler.loaded.vocabulary.decode([id_])}

    def _prompt(self, body: Mapping[str, Any]) -> list[int]:
        ids = body.get("prompt")
        if not isinstance(ids, list) or not ids or not all(type(id_) is int and id_ >= 0 for id_ in ids):
            raise RefusedError("prompt: a list of token ids is needed", "prompt")
        known = self.sampler.loaded.vocabulary_map
        try:
            known.rows(ids)
        except Exception as error:
            raise RefusedError(f"prompt: {error}", "prompt") from None
        return ids

    @torch.no_grad()
    def _scores(self, ids: Sequence[int], name: str) -> list[float]:
        """Log-probabilities of all ids but the first, at temperature 1."""
        out: list[float] = []
        with self.model(name) as loaded, inference(loaded.model):
            model: Any = loaded.model
            causal = model.get_base_model() if hasattr(model, "get_base_model") else model
            row_S = torch.from_numpy(loaded.vocabulary_map.rows(list(ids))).to(next(model.parameters()).device)
            hidden_SH = causal.model(input_ids=row_S[None], use_cache=False).last_hidden_state[0, :-1]
            for hidden_CH, row_C in zip(hidden_SH.split(ROWS), row_S[1:].split(ROWS), strict=True):
                out += causal.lm_head(hidden_CH).float().log_softmax(-1).gather(1, row_C[:, None])[:, 0].tolist()
        return out


@dataclass(frozen=True, slots=True)
class _Way:
    """An `Engine`: how a request is sampled. Equal ones share a batch."""

    owner: Completions
    model: str
    truncation: Truncation
    logprobs: bool

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        with self.owner.model(self.model) as loaded:
            sampler = replace(self.owner.sampler, loaded=loaded, truncation=self.truncation, logprobs=self.logprobs)
            return sampler.sample(prompts, max_new_tokens, temperature, seed, stop_ids)


def _number(body: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise RefusedError(f"{name}: {value!r} is no whole number of {least} or more", name)
    return value


def _real(body: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise RefusedError(f"{name}: {value!r} is no number from 0 to {most:g}", name)
    return float(value)
