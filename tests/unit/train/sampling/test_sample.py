import random

import numpy as np
import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, RETURN, byte_ids, load_vocabulary
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampler, sample_seed


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return random_tiny(seed=11)


def prompts(loaded: LoadedModel, count: int = 7) -> list[list[int]]:
    """Prompts of 1 to some 200 tokens; the longest passes the sliding window of 128."""
    rng = random.Random(0)
    words = ["What", " is", " 12", " +", " 7", "?", " Add", " please", "."]
    lengths = [1, 3, 200, 40, 7, 131, 64][:count]
    return [loaded.vocabulary.encode("".join(rng.choice(words) for _ in range(n)))[:n] for n in lengths]


def test_a_batch_gives_what_one_prompt_at_a_time_gives(loaded) -> None:
    asked = prompts(loaded)
    batched = Sampler(loaded).sample(asked, max_new_tokens=24)
    alone = [Sampler(loaded).sample([prompt], max_new_tokens=24)[0] for prompt in asked]
    assert batched == alone
    assert Sampler(loaded, batch_rows=2).sample(asked, max_new_tokens=24) == batched
    assert Sampler(loaded, batch_tokens=300).sample(asked, max_new_tokens=24) == batched


def test_greedy_equals_the_argmax_of_plain_forward_passes(loaded) -> None:
    """The KV cache, left padding and positions change nothing: checked against full forward passes."""
    asked = prompts(loaded, count=5)
    sampled = Sampler(loaded).sample(asked, max_new_tokens=12)
    loaded.model.eval()
    for prompt, found in zip(asked, sampled, strict=True):
        rows = loaded.vocabulary_map.rows(prompt + found.ids)[None]
        with torch.no_grad():
            logits_SV = loaded.model(torch.from_numpy(rows), use_cache=False).logits[0]
        best = loaded.vocabulary_map.ids(logits_SV.argmax(-1)).tolist()
        assert best[len(prompt) - 1 : -1] == found.ids


def test_with_temperature_each_sample_has_its_own_seed(loaded) -> None:
    asked = prompts(loaded, count=4)
    sampler = Sampler(loaded)
    one = sampler.sample(asked, 16, temperature=1.0, seed=5)
    assert sampler.sample(asked, 16, temperature=1.0, seed=5) == one
    assert Sampler(loaded, batch_rows=1).sample(asked, 16, temperature=1.0, seed=5) == one
    assert sampler.sample(asked, 16, temperature=1.0, seed=6) != one
    reordered = sampler.sample(asked[::-1], 16, temperature=1.0, seed=[sample_seed(5, i) for i in (3, 2, 1, 0)])
    assert reordered[::-1] == one


def test_temperature_samples_from_the_softmax(loaded) -> None:
    """First tokens of 4,000 samples of one prompt against the model's own distribution (chi-square)."""
    prompt = prompts(loaded, count=2)[1]
    n, temperature = 4000, 0.7
    found = Sampler(loaded, batch_rows=1000).sample([prompt] * n, 1, temperature=temperature, seed=3)
    with torch.no_grad():
        logits_V = loaded.model(torch.from_numpy(loaded.vocabulary_map.rows(prompt)[None])).logits[0, -1]
    expected_V = torch.softmax(logits_V.double() / temperature, -1).numpy() * n
    counts_V = np.bincount([loaded.vocabulary_map.row(s.ids[0]) for s in found], minlength=len(expected_V))
    often = expected_V >= 5
    observed = np.append(counts_V[often], counts_V[~often].sum())
    wanted = np.append(expected_V[often], expected_V[~often].sum())
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    degrees = len(wanted) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_random_state_is_as_before(loaded, temperature) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    Sampler(loaded).sample(prompts(loaded, 2), 4, temperature=temperature)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


def test_modes_and_cache_setting_are_as_before() -> None:
    loaded = random_tiny(seed=1)
    model = loaded.model
    model.train()
    model.model.layers[0].eval()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    modes = [module.training for module in model.modules()]
    greedy = Sampler(loaded).sample(prompts(loaded, 3), 6)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False
    assert model.is_gradient_checkpointing
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert greedy == Sampler(random_tiny(seed=1)).sample(prompts(loaded, 3), 6)


def test_modes_are_put_back_when_sampling_fails(monkeypatch) -> None:
    loaded = random_tiny()
    loaded.model.train()

    def broken(*args, **kwargs):
        np.random.random()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded.model, "forward", broken)
    state = np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError):
        Sampler(loaded).sample([[byte_ids(load_vocabulary())[65]] * 2], 4)
    assert loaded.model.training
    assert np.random.get_state()[1].tolist() == state


def test_it_stops_at_the_stop_token_and_says_so(loaded) -> None:
    """Whatever token greedy decoding picks third is made a stop token."""
    prompt = prompts(loaded, 4)[3]
    free = Sampler(loaded).sample([prompt], 8)[0]
    assert free.finish_reason == "length"
    assert len(free.ids) == 8
    third = free.ids[2]
    stopped = Sampler(loaded).sample([prompt], 8, stop_ids=[third])[0]
    assert stopped.finish_reason == "stop"
    assert stopped.ids == free.ids[: free.ids.index(third) + 1]


def test_both_stop_tokens_end_a_sample(loaded) -> None:
    """A head that only knows two tokens: where it picks the stop token, the sample is that token."""
    for stop in (RETURN, CALL):
        model = random_tiny(seed=2)
        with torch.no_grad():
            model.model.model.norm.weight.fill_(0)
            model.model.model.norm.weight[0] = 1
            model.model.lm_head.weight.zero_()
            model.model.lm_head.weight[model.vocabulary_map.row(stop), 0] = 1000
            model.model.lm_head.weight[model.vocabulary_map.row(CHANNEL), 0] = -1000
        sampled = Sampler(model).sample(prompts(model), 5)
        assert all(s.ids[-1] in (stop, CHANNEL) for s in sampled)
        assert any(s.ids == [stop] and s.finish_reason == "stop" for s in sampled)


def test_a_peft_model_samples_with_and_without_its_adapter() -> None:
    base = random_tiny(seed=4)
    asked = prompts(base, 4)
    without = Sampler(base).sample(asked, 10)
    peft_model = attach_lora(base.model, LoraSettings(rank=4))
    tuned = base.with_model(peft_model)
    assert Sampler(tuned).sample(asked, 10) == without
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    assert Sampler(tuned).sample(asked, 10) != without
    with peft_model.disable_adapter():
        assert Sampler(tuned).sample(asked, 10) == without


def test_an_empty_prompt_is_refused(loaded) -> None:
    with pytest.raises(ModelError, match="prompt: it is empty"):
        Sampler(loaded).sample([[1], []], 3)
    assert Sampler(loaded).sample([], 3) == []
