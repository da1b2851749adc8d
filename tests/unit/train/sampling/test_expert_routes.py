"""The experts that tokens go to: recorded by the sampler, carried as vLLM writes them, and gone to again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.train.adapters.routing import routing_of
from counterpoint.train.model.expert_routes import UNKNOWN, RouteReplay, routers_of
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.expert_routes import encoded, joined, told
from counterpoint.train.sampling.sample import Sampler


def test_the_sampler_tells_where_every_token_went_that_it_read() -> None:
    loaded = random_tiny(seed=11)
    prompts = [loaded.vocabulary.encode(text) for text in ("What is 6 times 7?", "Add 12.", "Add 12.")]
    prompts.append(prompts[0][:1])
    for prompt, sampled in zip(prompts, Sampler(loaded, 3, routes=True).sample(prompts, 9, 1.0, 3), strict=True):
        assert sampled.routes is not None
        ids = [*prompt, *sampled.ids]
        assert sampled.routes.shape == (len(ids) - 1, len(routers_of(loaded.model)), routers_of(loaded.model)[0].top_k)
        assert sampled.routes.dtype == np.uint8
        rows = torch.from_numpy(loaded.vocabulary_map.rows(ids))[None]
        wanted = routing_of(loaded.model, {"input_ids": rows[:, :-1]})
        assert wanted is not None
        assert np.array_equal(np.sort(sampled.routes, -1), wanted.picks_LNK.transpose(0, 1).numpy())


def test_the_router_learns_of_the_experts_that_it_is_given() -> None:
    """With the weights of its own for them, in a backward pass that computes the layers again as in one that does not."""
    loaded = random_tiny(seed=3)
    model, routers, replay = loaded.model, routers_of(loaded.model), RouteReplay(loaded.model)
    rows = torch.arange(40)[None]
    draw = torch.Generator().manual_seed(0)
    layers, k = replay.shape
    given = torch.rand(40, layers, replay.experts, generator=draw).argsort(-1)[..., :k].to(torch.int16)
    given[::3] = UNKNOWN
    own = model(input_ids=rows).logits
    with replay.replaying(torch.full_like(given, UNKNOWN)):
        assert torch.equal(model(input_ids=rows).logits, own)
    grads = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model.zero_grad()
        counts: list[torch.Tensor] = []
        with replay.replaying(given):
            with replay.counting(counts):
                logits = model(input_ids=rows).logits
            logits.square().mean().backward()
        assert len(counts) == layers
        assert torch.stack(counts).sum(0)[1] == int((given != UNKNOWN).sum())
        assert not torch.equal(logits, own)
        grads.append([router.weight.grad for router in routers])
        for router in routers:
            assert router.weight.grad is not None
            assert router.weight.grad.any()
            router.weight.grad = None
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_routes_travel_as_vllm_writes_them() -> None:
    routes = np.arange(2 * 24 * 4, dtype=np.uint8).reshape(2, 24, 4)
    text = encoded(routes)
    assert text.startswith("k05VTVBZAQB2AHsnZGVz")
    assert np.array_equal(told(text, 3, "http://x/v1"), routes)
    longer = np.concatenate([routes + 1, routes])
    both = joined(routes, longer)
    assert both is not None
    assert np.array_equal(both, np.concatenate([routes, routes]))
    assert joined(routes, None) is None
    for wrong, what in (
        (None, "does not name the experts .*--enable-return-routed-experts"),
        ("AAAA", "cannot be read"),
        ("k05VTVBZ", "cannot be read"),
        (encoded(routes[0]), "no whole numbers"),
        (encoded(routes.astype(np.float32)), "no whole numbers"),
        (encoded(longer), "are of 4 tokens, and 2 were read"),
    ):
        with pytest.raises(ModelError, match=rf"^http://x/v1: .*{what}"):
            told(wrong, 3, "http://x/v1")
