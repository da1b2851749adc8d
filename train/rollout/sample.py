"""Sampling from a live model: token ids in, token ids out, stopped by `<|return|>` and `<|call|>`.

Nothing is left changed: train and eval mode of every module, and the random state of Python, numpy and torch, are as
before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from counterpoint.configs.errors import ModelError
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.load import LoadedModel

# B batch, S prompt length, V rows of the model

FinishReason = Literal["stop", "length"]
DEFAULT_BATCH_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion: real ids from the token after the prompt to the stop token, which is among them."""

    ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Sampler:
    """Samples from `loaded.model`, batched, with a KV cache.

    batch_rows, batch_tokens: most prompts, and most tokens (prompt and completion), in one batch. Which prompts share a
    batch has no say in the draws: each sample has a generator of its own.
    """

    loaded: LoadedModel
    batch_rows: int = 32
    batch_tokens: int = DEFAULT_BATCH_TOKENS

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
        with inference(self.loaded.model):
            for batch in self._batches(prompts, max_new_tokens):
                drawn = [seeds[i] for i in batch] if temperature > 0 else None
                found = self._generate([prompts[i] for i in batch], max_new_tokens, temperature, drawn, stop_rows)
                for index, sampled in zip(batch, found, strict=True):
                    out[index] = sampled
        return [sampled for sampled in out if sampled is not None]

    def _batches(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Indices by falling length, so that a batch pads little and the largest comes first."""
        batch: list[int] = []
        longest = 0
        for index in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)):
            longest = longest or len(prompts[index]) + max_new_tokens
            if batch and (len(batch) == self.batch_rows or (len(batch) + 1) * longest > self.batch_tokens):
                yield batch
                batch, longest = [], len(prompts[index]) + max_new_tokens
            batch.append(index)
        if batch:
            yield batch

    def _generate(
        self,
        prompts: list[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: list[int] | None,
        stop_rows: list[int],
    ) -> list[Sampled]:
        loaded, device = self.loaded, next(self.loaded.model.parameters()).device
        width = max(map(len, prompts))
        rows_BS = np.full((len(prompts), width), loaded.pad_row, dtype=np.int64)
        mask_BS = np.zeros((len(prompts), width), dtype=np.int64)
        for b, prompt in enumerate(prompts):
            rows_BS[b, width - len(prompt) :] = loaded.vocabulary_map.rows(np.asarray(prompt))
            mask_BS[b, width - len(prompt) :] = 1
        processors = LogitsProcessorList()
        if seeds is not None:
            processors.append(SeededNoise(seeds, temperature, device))
        output = loaded.model.generate(
            input_ids=torch.from_numpy(rows_BS).to(device),
            attention_mask=torch.from_numpy(mask_BS).to(device),
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=stop_rows,
                pad_token_id=loaded.pad_row,
            ),
            logits_processor=processors,
        )
        return [self._completion(rows, stop_rows) for rows in output[:, width:].cpu().numpy()]

    def _completion(self, rows: np.ndarray, stop_rows: list[int]) -> Sampled:
        stops = np.flatnonzero(np.isin(rows, stop_rows))
        kept = rows[: stops[0] + 1] if len(stops) else rows
        return Sampled(self.loaded.vocabulary_map.ids(kept).tolist(), "stop" if len(stops) else "length")


class SeededNoise(LogitsProcessor):
    """Turns greedy decoding into sampling at a temperature: argmax(logits / T + Gumbel noise).

    Each row draws from its own generator, so a sample does not depend on its neighbours or on global random state.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise_BV = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise_BV, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise_BV.clamp_min(1e-30).log()


def sample_seed(*parts: int | str) -> int:
    """A seed of 63 bits from numbers and names, the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """`model` in eval mode without gradients; every module's mode and all random state are put back after."""
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
