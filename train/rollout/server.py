"""A server's raw `/v1/completions`, with token ids in and out (vLLM 0.10.2 and later: `return_token_ids`).

Never chat completions: their parser has thrown the structure away before anything could be checked.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from counterpoint.configs.errors import ModelError, RunError
from counterpoint.configs.redact import redact
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.rollout.sample import Sampled, sample_seed

KEY_VARIABLE = "COUNTERPOINT_SERVER_KEY"
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FIX = "start vLLM 0.10.2 or later, or set `eval.engine: transformers`"


@dataclass
class ServerEngine:
    """Asks one server, `settings.parallel` requests at a time. A request that failed on the way is made again."""

    settings: ServerSettings
    model: str
    pause: float = 1.0
    _opener: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # A proxy of the environment knows nothing of a server on this machine.
        handlers = [urllib.request.ProxyHandler({})] if _is_here(self.settings.url) else []
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def connected(cls, settings: ServerSettings) -> ServerEngine:
        """The engine, with the name of the server's model. RunError where no server answers."""
        engine = cls(settings, settings.model or "")
        if settings.model is None:
            listed = engine._asked("models", None)
            try:
                engine.model = str(listed["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise ModelError(f"{settings.url}: lists no model: set `eval.server.model`") from None
        return engine

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`. ModelError for answers whose ids cannot be known, RunError where the server does not answer."""
        seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        bodies = [
            {
                "model": self.model,
                "prompt": [int(id_) for id_ in prompt],
                "max_tokens": max_new_tokens,
                "temperature": temperature,
                "seed": each,
                "stop_token_ids": list(stop_ids),
                "ignore_eos": True,  # our stop tokens alone end a sample, and the answer says which one did
                "return_token_ids": True,
                "skip_special_tokens": False,
                "n": 1,
            }
            for prompt, each in zip(prompts, seeds, strict=True)
        ]
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            futures = [pool.submit(self._asked, "completions", body) for body in bodies]
            try:
                return [self._sampled(f.result(), body) for f, body in zip(futures, bodies, strict=True)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _sampled(self, answer: Any, body: dict[str, Any]) -> Sampled:
        try:
            choice = answer["choices"][0]
            ids, reason, stopped_by = choice.get("token_ids"), choice.get("finish_reason"), choice.get("stop_reason")
            read = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ModelError(f"{self.settings.url}: its answer is no completion: {_FIX}") from None
        if not isinstance(ids, list) or not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in ids):
            raise ModelError(f"{self.settings.url}: its answer holds no token ids: {_FIX}")
        if read is not None and read != body["prompt"]:
            raise ModelError(f"{self.settings.url}: it read another prompt than it was given (other ids): {_FIX}")
        stops = body["stop_token_ids"]
        if reason != "stop":
            return Sampled(ids, "length")
        if not ids or ids[-1] not in stops:
            if stopped_by not in stops:
                raise ModelError(f"{self.settings.url}: it stopped and does not say at which token: {_FIX}")
            ids = [*ids, stopped_by]
        return Sampled(ids, "stop")

    def _asked(self, path: str, body: dict[str, Any] | None) -> Any:
        """The answer to one request. RunError after the last try."""
        url = f"{self.settings.url.rstrip('/')}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        told = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, data, headers)
                with self._opener.open(request, timeout=self.settings.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                told = f"status {error.code}: {_told(error)}"
                if error.code not in _AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                told = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
        raise RunError(f"{redact(url)}: {told}: is the server there? (`eval.server.url`)")


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    except OSError:
        return str(error.reason)


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
