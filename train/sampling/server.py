"""One server's raw `/v1/completions`, token ids in and out (vLLM from 0.10.2 on: `return_token_ids`; run with 0.32.0).

Never chat completions: their parser drops the structure before anything can be checked.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from counterpoint.configs.errors import ModelError, RunError
from counterpoint.configs.redact import redact
from counterpoint.train.sampling.chat_server import is_here
from counterpoint.train.sampling.expert_routes import told
from counterpoint.train.sampling.sample import Sampled, known
from counterpoint.train.sampling.truncation import WHOLE, Truncation

KEY_VARIABLE = "COUNTERPOINT_SERVER_KEY"
_REQUEST_AT_FAULT = frozenset({400, 405, 411, 413, 415, 422})
BUSY = frozenset({408, 429})
_FIX = "start vLLM 0.10.2 or later, or set `engine: transformers`"


NO_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
"""Named in every request: what one leaves out, vLLM takes from the model's generation settings."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What samples are drawn from, and what they have beside their ids: as of `Sampler`."""

    truncation: Truncation = WHOLE
    logprobs: bool = False
    routes: bool = False


class ServerFailedError(RunError):
    """A request got no answer that can be used, and another server may give one.

    status: of the answer, None where there was none. late: whether the server let the request wait too long.
    """

    def __init__(self, message: str, status: int | None = None, late: bool = False) -> None:
        super().__init__(message)
        self.status, self.late = status, late


class Server:
    """One server at `url` (up to `/v1`); thread-safe. Every request is made once.

    Methods raise ServerFailedError where the server is at fault, RunError where it refuses what it is asked for, and
    ModelError for an answer whose ids cannot be known. timeout: seconds of one request.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.url, self.timeout = url, timeout
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        # A proxy of the environment cannot reach a server on this machine.
        direct = [urllib.request.ProxyHandler({})] if is_here(url) else []
        self._opener = urllib.request.build_opener(*direct, _Http(self._note), _Https(self._note))

    def completed(self, body: dict[str, Any], routes: bool = False) -> Sampled:
        """What is sampled for a request of `completion_body`; routes: with the experts of its tokens."""
        return self._sampled(self.asked("completions", body), body, routes)

    def scores(self, model: str, ids: Sequence[int], timeout: float | None = None) -> list[float | None]:
        """Log-probabilities of the tokens of `ids` in nats at temperature 1, the first one's None. ServerFailedError
        where the server tells none."""
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        answer = self.asked("completions", body, timeout=timeout)
        try:
            choice = answer["choices"][0]
            told = choice.get("prompt_logprobs") or answer.get("prompt_logprobs")
            pairs = list(zip(ids, told, strict=True))
            return [None if each is None else known(each[str(id_)]["logprob"]) for id_, each in pairs]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ServerFailedError(f"{redact(self.url)}: its answer holds no `prompt_logprobs`: {_FIX}") from None

    def models(self, timeout: float | None = None) -> list[str]:
        """The names that it lists. ModelError where it lists none."""
        try:
            names = [str(each["id"]) for each in self.asked("models", None, timeout=timeout)["data"]]
        except (KeyError, IndexError, TypeError):
            names = []
        if not names:
            raise ModelError(f"{redact(self.url)}: lists no model: set `server.model`")
        return names

    def version(self) -> str:
        """Version of the server's vLLM; empty where it reports none."""
        try:
            return str(self.asked("../version", None)["version"])
        except (RunError, KeyError, TypeError):
            return ""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Has the adapter in `folder`, which the server sees under the same path, under `name`."""
        # Experts' tensors are stacked in PEFT's files, and a server that takes both layouts has to be told.
        body = {"lora_name": name, "lora_path": str(folder), "is_3d_lora_weight": True}
        try:
            self.asked("load_lora_adapter", body, read=False)
        except RunError as error:
            if "already been loaded" not in str(error):
                raise

    def unload_adapter(self, name: str) -> None:
        self.asked("unload_lora_adapter", {"lora_name": name}, read=False)

    def asked(self, path: str, body: dict[str, Any] | None, read: bool = True, timeout: float | None = None) -> Any:
        """The answer to one request. read: whether it is JSON."""
        url = urljoin(f"{self.url.rstrip('/')}/", path)
        where = redact(url)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        if self._closed:
            raise ServerFailedError(f"{where}: closed")
        try:
            request = urllib.request.Request(url, data, headers)
            with self._opener.open(request, timeout=timeout or self.timeout) as response:
                answer = response.read()
                return json.loads(answer) if read else None
        except urllib.error.HTTPError as error:
            message = f"{where}: status {error.code}: {_reason(error)}"
            if error.code in _REQUEST_AT_FAULT:
                raise RunError(message) from None
            raise ServerFailedError(message, error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", None) or error
            if late := isinstance(cause, TimeoutError):
                message = f"{where}: no answer within {timeout or self.timeout:g} s (`server.timeout`)"
            else:
                message = f"{where}: {type(error).__name__}: {cause}: is the server there? (`server.url`)"
            raise ServerFailedError(message, late=late) from None

    def cut(self) -> None:
        """End the requests in progress: each raises ServerFailedError."""
        with self._lock:
            found = list(self._sockets)
        for each in found:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """`cut`, and every later request raises ServerFailedError as well."""
        self._closed = True
        self.cut()

    def _note(self, connected: socket.socket) -> None:
        with self._lock:
            self._sockets.add(connected)
        if self._closed:
            self.cut()

    def _sampled(self, answer: Any, body: dict[str, Any], routes: bool) -> Sampled:
        where, logprobs = redact(self.url), "logprobs" in body
        try:
            choice = answer["choices"][0]
            ids, reason, stopped_by = choice.get("token_ids"), choice.get("finish_reason"), choice.get("stop_reason")
            read = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
            drawn = (choice.get("logprobs") or {}).get("token_logprobs") if logprobs else None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ModelError(f"{where}: its answer is no completion: {_FIX}") from None
        if reason in ("abort", "error"):  # vLLM answers so what it has in progress when it is shut down
            raise ServerFailedError(f"{where}: it ended a request before it was done (finish_reason {reason})")
        if not isinstance(ids, list) or not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in ids):
            raise ModelError(f"{where}: its answer holds no token ids: {_FIX}")
        if read is not None and read != body["prompt"]:
            raise ModelError(f"{where}: it read another prompt than it was given (other ids): {_FIX}")
        found = self._logprobs(drawn, len(ids)) if logprobs else None
        experts = told(choice.get("routed_experts"), len(body["prompt"]) + len(ids), where) if routes else None
        stops = body["stop_token_ids"]
        if reason != "stop":
            return Sampled(ids, "length", found, experts)
        if not ids or ids[-1] not in stops:
            if stopped_by not in stops:
                raise ModelError(f"{where}: it stopped and does not say at which token: {_FIX}")
            ids = [*ids, stopped_by]
            found = [*found, None] if found is not None else None
        return Sampled(ids, "stop", found, experts)

    def _logprobs(self, drawn: Any, count: int) -> list[float | None]:
        if not isinstance(drawn, list) or len(drawn) != count:
            raise ModelError(f"{redact(self.url)}: its answer holds no log-probabilities of its tokens: {_FIX}")
        return [known(each) for each in drawn]


def completion_body(
    model: str,
    prompt: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int,
    stop_ids: Sequence[int],
    wanted: Wanted = Wanted(),
) -> dict[str, Any]:
    """A request for one completion of token ids."""
    return {
        "model": model,
        "prompt": [int(id_) for id_ in prompt],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # our stop tokens alone end a sample, and the answer has the one that did
        "return_token_ids": True,
        "skip_special_tokens": False,
        "n": 1,
        "top_p": wanted.truncation.top_p,
        "top_k": wanted.truncation.top_k or -1,
        "min_p": wanted.truncation.min_p,
        **NO_PENALTIES,
        **({"logprobs": 0} if wanted.logprobs else {}),
    }


class _Noting:
    """A handler of urllib that tells which sockets it opens: they can be shut down from another thread."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def do_open(self, http_class: Any, req: Any, **http_conn_args: Any) -> Any:
        note = self.note

        class Noted(http_class):
            def connect(self) -> None:
                super().connect()
                note(self.sock)

        return super().do_open(Noted, req, **http_conn_args)  # type: ignore[misc]


class _Http(_Noting, urllib.request.HTTPHandler):
    pass


class _Https(_Noting, urllib.request.HTTPSHandler):
    pass


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    except (OSError, http.client.HTTPException):
        return str(error.reason)
