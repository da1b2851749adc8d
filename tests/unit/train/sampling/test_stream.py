"""Streaming draws what the sampler draws, and leaves everything as it was."""

from __future__ import annotations

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.stream import stream

LOADED = random_tiny(seed=4)
PROMPT = LOADED.vocabulary.encode("What is 17 + 25?")


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 2**62])
def test_the_same_as_the_sampler(temperature: float, seed: int) -> None:
    (sampled,) = Sampler(LOADED).sample([PROMPT], 40, temperature, [seed])
    assert list(stream(LOADED, PROMPT, 40, temperature, seed)) == sampled.ids


def test_it_stops_at_the_stop_token() -> None:
    drawn = list(stream(LOADED, PROMPT, 30, 1.0, 1))
    stop = drawn[7]
    assert list(stream(LOADED, PROMPT, 30, 1.0, 1, stop_ids=[stop])) == drawn[: drawn.index(stop) + 1]


def test_the_caller_s_state_is_its_own() -> None:
    LOADED.model.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    tokens = stream(LOADED, PROMPT, 3, 1.0)
    next(tokens)
    assert torch.is_grad_enabled()
    assert LOADED.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert len(list(tokens)) == 2
    with pytest.raises(ModelError, match="prompt"):
        next(stream(LOADED, [], 3))
