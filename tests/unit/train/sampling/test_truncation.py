"""Top-k, top-p and min-p: the very tokens that transformers' warpers keep, and the probabilities they are drawn with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from counterpoint.configs.schema import GrpoRun
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler, inference
from counterpoint.train.sampling.stream import stream
from counterpoint.train.sampling.truncation import Truncation

TEMPERATURE = 0.7


def warped(logits_BV: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """By transformers' warpers in vLLM's order; what is left out is -inf."""
    warpers: list[Any] = [TemperatureLogitsWarper(TEMPERATURE)]
    warpers += [MinPLogitsWarper(truncation.min_p)] if truncation.min_p else []
    warpers += [TopKLogitsWarper(truncation.top_k)] if truncation.top_k else []
    warpers += [TopPLogitsWarper(truncation.top_p)] if truncation.top_p < 1 else []
    for warper in warpers:
        logits_BV = warper(torch.zeros(len(logits_BV), 0), logits_BV)
    return logits_BV


truncations = st.builds(
    Truncation,
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0, 1, 7, 400]),
    st.sampled_from([0.0, 0.05, 0.9]),
)


@given(truncations, st.integers(0, 1 << 16), st.sampled_from([0.1, 1.0, 8.0]))
def test_what_is_kept_is_what_transformers_keeps(truncation: Truncation, seed: int, scale: float) -> None:
    logits_BV = torch.randn(3, 300, generator=torch.Generator().manual_seed(seed)) * scale
    wanted = warped(logits_BV.clone(), truncation)
    found = truncation.cut_(logits_BV / TEMPERATURE)
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(1), wanted.softmax(1), rtol=1e-6, atol=0)
    assert torch.equal(found.softmax(1) > 0, wanted.softmax(1) > 0)


def test_what_is_equal_at_the_border_is_kept_together() -> None:
    logits_BV = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0], [0.0] * 5])
    kept = Truncation(top_k=2).cut_(logits_BV.clone()) > -9
    assert kept.tolist() == [[True, True, True, True, False], [True] * 5]
    always = Truncation(top_k=1).cut_(logits_BV.clone(), torch.tensor([4, 0]))[0]
    assert (always > -9).tolist() == [True, False, False, False, True]


def test_the_recorded_probability_is_that_of_what_was_drawn_from() -> None:
    loaded, truncation = random_tiny(seed=11), Truncation(0.8, 90, 0.02)
    prompts = [loaded.vocabulary.encode(text) for text in ("What is 6 times 7?", "Add 12.")]
    sampler = Sampler(loaded, truncation=truncation, logprobs=True)
    whole = Sampler(loaded, truncation=Truncation(), logprobs=True).sample(prompts, 12, TEMPERATURE, 5)
    found = sampler.sample(prompts, 12, TEMPERATURE, 5)
    assert [each.ids for each in found] != [each.ids for each in whole]
    for cut, samples in ((truncation, found), (Truncation(), whole)):
        for prompt, sampled in zip(prompts, samples, strict=True):
            rows = torch.from_numpy(loaded.vocabulary_map.rows([*prompt, *sampled.ids]))
            with inference(loaded.model):
                logits_SV = loaded.model(input_ids=rows[None]).logits[0, len(prompt) - 1 : -1]
            wanted = warped(logits_SV, cut).log_softmax(-1).gather(1, rows[len(prompt) :, None])[:, 0]
            assert sampled.logprobs == pytest.approx(wanted.tolist(), abs=1e-5)
    seed = 77
    greedy = sampler.sample(prompts[:1], 5, 0.0)
    assert greedy[0].ids == Sampler(loaded).sample(prompts[:1], 5, 0.0)[0].ids
    alone = Sampler(loaded).sample(prompts[:1], 5, TEMPERATURE, [seed])[0].ids
    assert list(stream(loaded, prompts[0], 5, TEMPERATURE, seed)) == alone


@pytest.mark.parametrize(("name", "more"), [("beta", 0.1), ("teacher", {"model": {"name": "tiny"}})])
def test_what_compares_whole_distributions_is_refused(name: str, more: Any) -> None:
    run = {
        "recipe": "grpo", "data": {"train": {"type": "arithmetic"}}, "rollout": {"top_p": 0.9},
        "rewards": [{"type": "channel"}], "grpo": {name: more}, "train": {"batch_rows": 8},
    }  # fmt: skip
    with pytest.raises(ValidationError, match=rf"`rollout.top_p` cuts .* `grpo.{name}` compares whole ones"):
        GrpoRun.model_validate(run)
    GrpoRun.model_validate({**run, "rollout": {"top_p": 1.0}})
