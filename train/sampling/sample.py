"""Sampling from a live model: token ids in, token ids out, stopped by `<|return|>` and `<|call|>`.

It changes nothing: train and eval mode of every module, and the random state of Python, numpy and torch, are as
before.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.cached_attention import DEFAULT_BATCH_TOKENS
from counterpoint.train.model.expert_routes import RouteRecorder
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.sharded import is_sharded
from counterpoint.train.sampling.decode import Decoder
from counterpoint.train.sampling.expert_routes import ExpertRoutes
from counterpoint.train.sampling.kv_cache import tokens_that_fit
from counterpoint.train.sampling.truncation import WHOLE, Truncation

# B batch, S prompt length, V rows of the model

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion: real ids from the token after the prompt to the stop token, which is among them.

    logprobs: of each id under what it was drawn from, None for one that the engine gave none for; None where they were
    not asked for. routes: the experts of all tokens of prompt and completion but the last, (tokens - 1, layers, experts
    a token); None where they were not asked for.
    """

    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float | None] | None = None
    routes: ExpertRoutes | None = field(default=None, compare=False, repr=False)


def known(logprob: float | None) -> float | None:
    """A log-probability that is a number, or None."""
    return None if logprob is None or math.isnan(logprob) else float(logprob)


class SamplingStoppedError(Exception):
    """Sampling ended before it was done, because its caller wants to stop."""


@dataclass(frozen=True)
class Sampler:
    """Samples from `loaded.model`, with a KV cache and continuous batching.

    A model that is sharded over processes (FSDP2) needs all of them for every forward pass: each of them samples the
    same prompts, and takes the tokens that process 0 chose.

    batch_rows, batch_tokens: most samples that are in progress, and most tokens (of prompts and of what is drawn) whose
    keys and values are kept, at a time; on a GPU fewer where less memory is free. Which samples share a batch does not
    affect the draws: each has a generator of its own. stops: asked after every token; SamplingStoppedError once it is
    true (of a sharded model, in process 0). truncation: of the distribution that is drawn from. logprobs: whether
    samples have them, of greedy ones those at temperature 1. routes: the same of routes.
    """

    loaded: LoadedModel
    batch_rows: int = 32
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    stops: Callable[[], bool] | None = None
    truncation: Truncation = WHOLE
    logprobs: bool = False
    routes: bool = False

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """One completion of at most `max_new_tokens` for each prompt, in the order of `prompts`.

        temperature 0 is greedy. seed: one for all, of which each prompt derives its own by its index, or one a prompt.
        A sample depends on weights, prompt, temperature and its seed alone.
        """
        if any(len(prompt) == 0 for prompt in prompts):
            raise ModelError("prompt: it is empty: give at least one token")
        stop_rows = self.loaded.vocabulary_map.rows(list(stop_ids)).tolist()
        seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else seed
        out: list[Sampled | None] = [None] * len(prompts)
        # The longest come first, and prompts that are read together are of like length.
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        with inference(self.loaded.model):
            drawn = [seeds[i] for i in order] if temperature > 0 else None
            found = self._drawn([prompts[i] for i in order], max_new_tokens, temperature, drawn, stop_rows)
        for index, (rows, told, routes) in zip(order, found, strict=True):
            out[index] = self._completion(rows, stop_rows, told, routes)
        return [sampled for sampled in out if sampled is not None]

    def cut(self, truncation: Truncation) -> Self:
        """See `Cuttable`."""
        return replace(self, truncation=truncation)

    def _drawn(
        self,
        prompts: list[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: list[int] | None,
        stop_rows: list[int],
    ) -> list[tuple[list[int], list[float | None] | None, ExpertRoutes | None]]:
        loaded, device = self.loaded, next(self.loaded.model.parameters()).device
        rows = [loaded.vocabulary_map.rows(np.asarray(prompt)).tolist() for prompt in prompts]
        noise = None if seeds is None else SeededNoise(seeds, temperature, device, self.truncation)
        sharded = is_sharded(loaded.model)
        # Processes that share a model must keep step, whatever each has free.
        tokens = self.batch_tokens if sharded else min(self.batch_tokens, tokens_that_fit(loaded.model))
        told: list[list[float | None]] = [[] for _ in prompts]

        def choose(scores_BV: torch.Tensor, samples: Sequence[int]) -> torch.Tensor:
            scores_BV = scores_BV if noise is None else noise.processed(scores_BV)
            chosen_B = (scores_BV if noise is None else noise.on(scores_BV, samples)).argmax(-1)
            stop = self.stops is not None and self.stops()
            if sharded:
                # Collective: all processes sample the same prompts, and one choice keeps them in step to the end.
                both = torch.cat([chosen_B, chosen_B.new_tensor([int(stop)])])
                torch.distributed.broadcast(both, src=0)
                chosen_B, stop = both[:-1], bool(both[-1])
            if stop:
                raise SamplingStoppedError
            if self.logprobs:
                found = scores_BV.float().log_softmax(-1).gather(1, chosen_B[:, None])[:, 0].tolist()
                for sample, value in zip(samples, found, strict=True):
                    told[sample].append(value)
            return chosen_B

        recorder = RouteRecorder(loaded.model) if self.routes else None
        decoder = Decoder(loaded.model, loaded.pad_row, stop_rows, self.batch_rows, tokens, recorder)
        with recorder.recording() if recorder is not None else nullcontext():
            drawn = decoder.run(rows, max_new_tokens, choose)
        return [(each, told[n] if self.logprobs else None, decoder.routes.get(n)) for n, each in enumerate(drawn)]

    def _completion(
        self,
        rows: Sequence[int],
        stop_rows: Sequence[int],
        told: list[float | None] | None,
        routes: ExpertRoutes | None,
    ) -> Sampled:
        reason: FinishReason = "stop" if rows[-1] in stop_rows else "length"
        return Sampled(self.loaded.vocabulary_map.ids(np.asarray(rows)).tolist(), reason, told, routes)


class SeededNoise:
    """Turns greedy decoding into sampling at a temperature: argmax(logits / T + Gumbel noise).

    Each sample draws from its own generator, so it does not depend on its neighbours or on global random state.
    """

    def __init__(
        self, seeds: Sequence[int], temperature: float, device: torch.device, truncation: Truncation = WHOLE
    ) -> None:
        self.temperature, self.truncation = temperature, truncation
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def processed(self, scores_BV: torch.Tensor) -> torch.Tensor:
        """Logits of what is drawn from: at the temperature, and truncated."""
        return self.truncation.cut_(scores_BV.float() / self.temperature)

    def on(self, processed_BV: torch.Tensor, samples: Sequence[int]) -> torch.Tensor:
        """These with the noise of the samples with these numbers."""
        noise_BV = torch.empty(processed_BV.shape, dtype=torch.float32, device=processed_BV.device)
        for row, sample in zip(noise_BV, samples, strict=True):
            row.exponential_(generator=self.generators[sample])
        return processed_BV - noise_BV.clamp_min(1e-30).log()


def sample_seed(*parts: int | str) -> int:
    """A seed of 63 bits from numbers and names, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """`model` in eval mode without gradients; every module's mode and all random state are restored after."""
    training = [module for module in model.modules() if module.training]
    with preserved_random_state(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Python's, numpy's and torch's random state (all CUDA devices too) is as before, whatever happens inside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices: Any = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
