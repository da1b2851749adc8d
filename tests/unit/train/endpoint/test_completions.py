"""Raw completions of the project's own sampler, over HTTP: what training reads of them is what the sampler says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest

from counterpoint.configs.schema import ServerSettings
from counterpoint.train.endpoint.completions import Completions
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.pool import ServerPool
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.server import KEY_VARIABLE
from counterpoint.train.sampling.truncation import Truncation


def test_a_client_of_vllm_reads_ids_probabilities_and_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    loaded, cut = random_tiny(seed=11), Truncation(0.8, 90, 0.02)
    prompts = [loaded.vocabulary.encode(text) for text in ("What is 6 times 7?", "Add 12.")]
    raw = Completions(Sampler(loaded, routes=True), 8)
    with ChatServer(lambda name: None, "mine", "sesame", completions=raw.answer) as server:
        settings = ServerSettings.model_validate({"url": f"{server.root}/v1"})
        engine = ServerPool.connected(settings, logprobs=True, truncation=cut, routes=True)
        found = engine.sample(prompts, 8, 0.7, [5, 6])
        wanted = Sampler(loaded, truncation=cut, logprobs=True, routes=True).sample(prompts, 8, 0.7, [5, 6])
        for one, other in zip(found, wanted, strict=True):
            assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
            assert np.array_equal(one.routes, other.routes)  # type: ignore[arg-type]

        def refused(body: dict[str, Any]) -> str:
            request = urllib.request.Request(f"{server.root}/v1/completions", json.dumps(body).encode())
            request.add_header("Authorization", "Bearer sesame")
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request, timeout=60)
            assert error.value.code == 400
            return json.load(error.value)["error"]["message"]

        assert "token ids" in refused({"prompt": "text"})
        assert "no row in this model" in refused({"prompt": [200_000]})
        assert refused({"prompt": prompts[0], "n": 2}).startswith("n: 2 is not served here")
        assert refused({"prompt": prompts[0], "top_p": 2}) == "top_p: 2 is no number from 0 to 1"
        assert refused({"prompt": prompts[0], "max_tokens": -1}).startswith("max_tokens")
        assert refused({"prompt": prompts[0], "max_tokens": 9}) == "max_tokens: 9 is more than 8 (--max-new-tokens)"
        assert refused({"prompt": prompts[0], "seed": 1 << 63}).startswith("seed: ")
        assert refused({"prompt": prompts[0], "stop_token_ids": [[1]]}).startswith("stop_token_ids: a list")
