"""A server's raw `/v1/completions`, token ids in and out (vLLM 0.10.2 and later: `return_token_ids`; run with 0.32.0).

Never chat completions: their parser drops the structure before anything can be checked.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin

from counterpoint.configs.errors import ConfigError, ModelError, RunError
from counterpoint.configs.redact import redact
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.chat_server import is_here
from counterpoint.train.sampling.expert_routes import told
from counterpoint.train.sampling.sample import Sampled, known, sample_seed
from counterpoint.train.sampling.truncation import WHOLE, Truncation

KEY_VARIABLE = "COUNTERPOINT_SERVER_KEY"
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FIX = "start vLLM 0.10.2 or later, or set `engine: transformers`"


NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
"""Named in every request: what one leaves out, vLLM takes from the model's generation settings."""


@dataclass
class ServerEngine:
    """Asks one server, `settings.parallel` requests at a time, whoever asks. A request that failed in transit is
    repeated. each_alone: what waits for samples asks for each by itself (sampling_desk.py)."""

    settings: ServerSettings
    model: str
    pause: float = 1.0
    logprobs: bool = False
    each_alone: ClassVar[bool] = True
    truncation: Truncation = WHOLE
    routes: bool = False
    _opener: Any = field(init=False, repr=False)
    _slots: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._slots = threading.Semaphore(self.settings.parallel)
        # A proxy of the environment cannot reach a server on this machine.
        handlers = [urllib.request.ProxyHandler({})] if is_here(self.settings.url) else []
        self._opener = urllib.request.build_opener(*handlers)

    @classmethod
    def connected(
        cls,
        settings: ServerSettings,
        *,
        logprobs: bool = False,
        truncation: Truncation = WHOLE,
        routes: bool = False,
    ) -> ServerEngine:
        """The engine, with the name of the server's model. RunError where no server answers."""
        engine = cls(settings, settings.model or "", logprobs=logprobs, truncation=truncation, routes=routes)
        if settings.model is None:
            listed = engine._asked("models", None)
            try:
                engine.model = str(listed["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise ModelError(f"{settings.url}: lists no model: set `server.model`") from None
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
                "ignore_eos": True,  # our stop tokens alone end a sample, and the answer has the one that did
                "return_token_ids": True,
                "skip_special_tokens": False,
                "n": 1,
                "top_p": self.truncation.top_p,
                "top_k": self.truncation.top_k or -1,
                "min_p": self.truncation.min_p,
                **NO_PENALTIES,
                **({"logprobs": 0} if self.logprobs else {}),
            }
            for prompt, each in zip(prompts, seeds, strict=True)
        ]
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            futures = [pool.submit(self._completed, body) for body in bodies]
            try:
                return [self._sampled(f.result(), body) for f, body in zip(futures, bodies, strict=True)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _completed(self, body: dict[str, Any]) -> Any:
        with self._slots:
            return self._asked("completions", body)

    def version(self) -> str:
        """Version of the server's vLLM; empty where it reports none."""
        try:
            return str(self._asked("../version", None)["version"])
        except (RunError, KeyError, TypeError):
            return ""

    def load_adapter(self, folder: Path, version: int, lead: bool = True) -> None:
        """Sample with the adapter in `folder` from now on; the server sees the folder under the same path.

        lead: whether this process is the one that updates the server. ConfigError where the server loads none.
        """
        self.model = name = f"counterpoint-{version}"
        if not lead:
            return
        try:
            self._asked("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, read=False)
        except RunError as error:
            if "already been loaded" not in str(error):
                raise ConfigError(
                    f"rollout.engine: server: it does not load the adapter ({error}): start vLLM with --enable-lora, a "
                    "--max-lora-rank, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a disk that both see"
                ) from None

    def unload_adapter(self, version: int) -> None:
        """The server forgets the version."""
        self._asked("unload_lora_adapter", {"lora_name": f"counterpoint-{version}"}, read=False)

    def named(self, model: str) -> ServerEngine:
        """The same server, with another model of its; both share `parallel`."""
        other = copy.copy(self)
        other.model = model
        return other

    def _sampled(self, answer: Any, body: dict[str, Any]) -> Sampled:
        try:
            choice = answer["choices"][0]
            ids, reason, stopped_by = choice.get("token_ids"), choice.get("finish_reason"), choice.get("stop_reason")
            read = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
            drawn = (choice.get("logprobs") or {}).get("token_logprobs") if self.logprobs else None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ModelError(f"{self.settings.url}: its answer is no completion: {_FIX}") from None
        if not isinstance(ids, list) or not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in ids):
            raise ModelError(f"{self.settings.url}: its answer holds no token ids: {_FIX}")
        if read is not None and read != body["prompt"]:
            raise ModelError(f"{self.settings.url}: it read another prompt than it was given (other ids): {_FIX}")
        logprobs = self._logprobs(drawn, len(ids)) if self.logprobs else None
        stops = body["stop_token_ids"]
        tokens = len(body["prompt"]) + len(ids)
        routes = told(choice.get("routed_experts"), tokens, self.settings.url) if self.routes else None
        if reason != "stop":
            return Sampled(ids, "length", logprobs, routes)
        if not ids or ids[-1] not in stops:
            if stopped_by not in stops:
                raise ModelError(f"{self.settings.url}: it stopped and does not say at which token: {_FIX}")
            ids = [*ids, stopped_by]
            logprobs = [*logprobs, None] if logprobs is not None else None
        return Sampled(ids, "stop", logprobs, routes)

    def _logprobs(self, drawn: Any, count: int) -> list[float | None]:
        if not isinstance(drawn, list) or len(drawn) != count:
            raise ModelError(f"{self.settings.url}: its answer holds no log-probabilities of its tokens: {_FIX}")
        return [known(each) for each in drawn]

    def _asked(self, path: str, body: dict[str, Any] | None, read: bool = True) -> Any:
        """The answer to one request. RunError after the last attempt. read: whether it is JSON."""
        url = urljoin(f"{self.settings.url.rstrip('/')}/", path)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        reason, missing = "", ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, data, headers)
                with self._opener.open(request, timeout=self.settings.timeout) as response:
                    return json.loads(response.read()) if read else None
            except urllib.error.HTTPError as error:
                reason, missing = f"status {error.code}: {_reason(error)}", ""
                if error.code not in _AGAIN:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
                missing = ": is the server there? (`server.url`)"
        raise RunError(f"{redact(url)}: {reason}{missing}")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    except OSError:
        return str(error.reason)
