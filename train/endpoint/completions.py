"""`/v1/completions` over the project's own sampler: token ids in and out, in the fields of vLLM that training reads.

One request at a time: for trying what asks such a server, and for a small teacher; a large model belongs into vLLM.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.endpoint.requests import RefusedError
from counterpoint.train.sampling.expert_routes import encoded
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
    """Answers requests, also from several threads. longest: tokens of an answer, whatever a request says.

    It is an `Engine` too, so that what samples beside it takes its turn.
    """

    def __init__(self, sampler: Sampler, longest: int) -> None:
        self.sampler, self.longest = sampler, longest
        self._lock = threading.Lock()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`."""
        with self._lock:
            return self.sampler.sample(prompts, max_new_tokens, temperature, seed, stop_ids)

    def answer(self, body: Mapping[str, Any], model: str) -> dict[str, Any]:
        """RefusedError for what cannot be answered."""
        ids = self._prompt(body)
        for name, only in _FIXED.items():
            if body.get(name, only) not in (only, None):
                raise RefusedError(f"{name}: {body[name]!r} is not served here, only {only!r}", name)
        tokens = min(_number(body, "max_tokens", 16, 0), self.longest)
        top_k = max(0, _number(body, "top_k", 0, -1))
        cut = Truncation(_real(body, "top_p", 1.0, 1.0), top_k, _real(body, "min_p", 0.0, 1.0))
        sampler = replace(self.sampler, truncation=cut, logprobs=body.get("logprobs") is not None)
        stops = body.get("stop_token_ids")
        with self._lock:
            sampled = Sampled([], "length", [])
            if tokens:
                (sampled,) = sampler.sample(
                    [ids],
                    tokens,
                    _real(body, "temperature", 1.0, 100.0),
                    [_number(body, "seed", 0, 0)],
                    STOP_IDS if stops is None else stops,
                )
            scores = self._scores(ids) if body.get("prompt_logprobs") is not None else None
        stopped = sampled.finish_reason == "stop"
        choice: dict[str, Any] = {
            "index": 0,
            "text": self.sampler.loaded.vocabulary.decode(sampled.ids),
            "token_ids": sampled.ids,
            "prompt_token_ids": ids,
            "finish_reason": sampled.finish_reason,
            "stop_reason": sampled.ids[-1] if stopped else None,
            "logprobs": {"token_logprobs": sampled.logprobs} if sampler.logprobs else None,
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
    def _scores(self, ids: Sequence[int]) -> list[float]:
        """Log-probabilities of all ids but the first, at temperature 1."""
        model = self.sampler.loaded.model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        device = next(model.parameters()).device
        row_S = torch.from_numpy(self.sampler.loaded.vocabulary_map.rows(list(ids))).to(device)
        out: list[float] = []
        with inference(model):
            hidden_SH = causal.model(input_ids=row_S[None], use_cache=False).last_hidden_state[0, :-1]
            for hidden_CH, row_C in zip(hidden_SH.split(ROWS), row_S[1:].split(ROWS), strict=True):
                out += causal.lm_head(hidden_CH).float().log_softmax(-1).gather(1, row_C[:, None])[:, 0].tolist()
        return out


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
