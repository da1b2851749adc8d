"""The cache in blocks: what it gives attention, what it takes, and what becomes of a sample that has to wait."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import GptOssConfig

from counterpoint.train.model.cached_attention import Kept, cached_attention
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling import decode, kv_cache
from counterpoint.train.sampling.decode import Decoder
from counterpoint.train.sampling.kv_cache import BLOCK, BlockCache, token_bytes, tokens_that_fit
from counterpoint.train.sampling.sample import Sampler

CPU, META = torch.device("cpu"), torch.device("meta")
LENGTHS = (1, 5, 31, 32, 33, 64, 65, 127, 128, 129, 160, 300, 700)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return random_tiny(seed=7)


def prompts(loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Around the ends of blocks and of the window of 128; the last two are like others."""
    rng = random.Random(0)
    ids = loaded.vocabulary_map.ids(np.arange(20, 200)).tolist()
    made = [[rng.choice(ids) for _ in range(n)] for n in lengths]
    return [*made, made[len(made) // 2], made[-1]]


class Parking(Decoder):
    """Counts what waited."""

    made: ClassVar[list[Decoder]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made.append(self)


@pytest.mark.parametrize("tokens", [1, 300])
def test_a_sample_that_waits_goes_on_as_if_it_had_not(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """Token for token, with its random numbers; their log-probabilities to rounding."""
    asked = prompts(loaded, (1, 31, 33, 64, 129, 200))
    at_once = Sampler(loaded, batch_rows=16, logprobs=True).sample(asked, 50, 1.0, 3)
    monkeypatch.setattr("counterpoint.train.sampling.sample.Decoder", Parking)
    Parking.made.clear()
    tight = Sampler(loaded, batch_rows=16, batch_tokens=tokens, logprobs=True).sample(asked, 50, 1.0, 3)
    assert [s.ids for s in tight] == [s.ids for s in at_once]
    for one, other in zip(tight, at_once, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    (decoder,) = Parking.made
    assert decoder.parked > 0


def test_what_is_parked_comes_back_bit_for_bit(loaded: LoadedModel) -> None:
    config = loaded.model.config
    cache = BlockCache(config, 3, 1000, torch.float32, CPU)
    cache.begin_filling([0, 1, 2], [0, 0, 1], [70, 70, 40])
    size = cache.heads, 70, cache.size
    for layer in range(len(cache.windows)):
        cache.update(torch.randn(2, *size), torch.randn(2, *size), layer)
    cache.begin_decoding()
    before = [[part.key.clone() for part in cache.kept(layer)] for layer in range(len(cache.windows))]
    parked = cache.park(1)
    cache.begin_filling([1], [0], [90])  # takes its blocks and overwrites its ring
    for layer in range(len(cache.windows)):
        cache.update(torch.randn(1, cache.heads, 90, cache.size), torch.randn(1, cache.heads, 90, cache.size), layer)
    cache.drop(1)
    cache.put_back(1, parked)
    cache.begin_decoding()
    for layer, (earlier,) in enumerate(before):
        (now,) = cache.kept(layer)
        seen = ~now.hidden_rC
        seen[torch.arange(3), torch.tensor(cache.length)[:3].clamp_max(seen.shape[1] - 1)] = False  # of the next token
        assert torch.equal(earlier.transpose(1, 2)[seen], now.key.transpose(1, 2)[seen])


def test_blocks_are_shared_by_samples_of_a_prompt_and_given_back() -> None:
    config = GptOssConfig(num_hidden_layers=2, head_dim=16, num_key_value_heads=1)
    cache = BlockCache(config, 8, 100 * BLOCK, torch.float32, CPU)
    cache.begin_filling(range(8), [0] * 8, [5 * BLOCK + 3] * 8)
    assert 100 - cache.room == 5 + 8  # the last block of each is its own
    for slot in range(7):
        cache.drop(slot)
    assert 100 - cache.room == 6
    assert all(cache.extend(7, alone=False) for _ in range(3))
    cache.drop(7)
    assert cache.room == 100
    assert sorted(cache.free) == list(range(1, len(cache.users)))


def test_rows_far_apart_in_length_are_attended_to_apart(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(loaded, (600, 10, 300, 20, 40))
    whole = Sampler(loaded, logprobs=True).sample(asked, 12)
    monkeypatch.setattr(kv_cache, "APART", 1 << 30)
    together = Sampler(loaded, logprobs=True).sample(asked, 12)
    assert [s.ids for s in whole] == [s.ids for s in together]
    cache = BlockCache(loaded.model.config, 4, 4000, torch.float32, CPU)
    monkeypatch.setattr(kv_cache, "APART", 16)
    cache.begin_filling(range(4), range(4), [600, 10, 310, 300])
    cache.begin_decoding()
    assert [(rows.tolist(), hidden.shape[1]) for rows, _, hidden in cache.parts if rows is not None] == [
        ([0, 2, 3], 19 * BLOCK), ([1], BLOCK),
    ]  # fmt: skip


def test_transformers_attention_takes_the_same_cache(loaded: LoadedModel) -> None:
    asked = prompts(loaded, (200, 33, 5))
    lean = Sampler(loaded, logprobs=True).sample(asked, 20)
    model = loaded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        eager = Sampler(loaded, logprobs=True).sample(asked, 20)
    finally:
        model.set_attn_implementation(before)
    assert [s.ids for s in eager] == [s.ids for s in lean]
    for one, other in zip(eager, lean, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_prompts_are_read_a_few_at_a_time(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(loaded)
    at_once = Sampler(loaded).sample(asked, 2)
    monkeypatch.setattr(decode, "READ_TOKENS", 300)
    sizes: list[int] = []
    forward = Decoder._forward

    def counted(self: Any, rows: Any, *args: Any) -> Any:
        sizes.append(rows.numel())
        return forward(self, rows, *args)

    monkeypatch.setattr(Decoder, "_forward", counted)
    assert Sampler(loaded).sample(asked, 2) == at_once
    assert max(sizes) == 699  # one prompt is read whole
    assert sum(size > 300 for size in sizes) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cached_attention_is_the_softmax_with_a_sink(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows, heads, groups, columns, size = 5, 8, 2, 70, 16
    query = torch.randn(rows, heads, 1, size).to(dtype)
    key, value = torch.randn(2, rows, groups, columns, size).to(dtype)
    sink = torch.randn(heads).to(dtype)
    hidden = torch.arange(columns) > torch.tensor([0, 3, 40, 69, 12])[:, None]
    parts = [torch.tensor([3, 0]), torch.tensor([4, 1, 2])]

    class Two:
        def kept(self, layer: int) -> Any:
            return (Kept(part, key[part], value[part], hidden[part]) for part in parts)

    found = cached_attention(query, sink, Two(), 0, 0.25)
    wide_q, wide_k, wide_v = (
        query.double(),
        key.double().repeat_interleave(4, 1),
        value.double().repeat_interleave(4, 1),
    )
    scores = (wide_q @ wide_k.mT * 0.25).masked_fill(hidden[:, None, None], -torch.inf)
    both = torch.cat([scores, sink.double()[None, :, None, None].expand(rows, -1, 1, 1)], -1).softmax(-1)
    expected = (both[..., :-1] @ wide_v).transpose(1, 2)
    limit = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert (found.double() - expected).norm() / expected.norm() < limit
    assert found.dtype == dtype


def test_a_gpu_keeps_what_fits_into_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GptOssConfig(num_hidden_layers=24, num_key_value_heads=8, head_dim=64)
    model: Any = SimpleNamespace(config=config, parameters=lambda: iter([torch.empty(1, dtype=torch.bfloat16)]))
    assert tokens_that_fit(model) > 1 << 40
    monkeypatch.setattr(kv_cache, "on_cuda", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 39 << 30)
    assert tokens_that_fit(model) == (1 << 30) // (12 * 2048)


def test_bytes_of_32_samples_of_16k_tokens_of_20b() -> None:
    """12 full layers of 2 kB a token and layer, 12 of one window; what is not used is not taken."""
    config = GptOssConfig(num_hidden_layers=24, num_key_value_heads=8, head_dim=64, sliding_window=128)
    cache = BlockCache(config, 32, 32 * 16_384, torch.bfloat16, META)

    def held(window: bool) -> int:
        return sum(
            p.nbytes
            for pair, w in zip(cache.layers, cache.windows, strict=True)
            if (w is not None) == window
            for p in pair
        )

    assert token_bytes(config, 2) == 12 * 2048
    assert held(True) == 12 * 32 * 128 * 2048
    for slot in range(32):
        cache._give(slot, cache._take(16_384 // BLOCK))
    assert cache.room == 0
    assert held(False) == 12 * (32 * 16_384 + BLOCK) * 2048
    few = BlockCache(config, 32, 32 * 16_384, torch.bfloat16, META)
    for slot in range(32):
        few._give(slot, few._take((16_384 if slot == 0 else 1024) // BLOCK))
    taken = sum(p.nbytes for pair, w in zip(few.layers, few.windows, strict=True) if w is None for p in pair)
    assert taken <= 12 * 1.5 * (16_384 + 31 * 1024 + BLOCK) * 2048
