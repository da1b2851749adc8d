"""The model that plays a user, or judges: an OpenAI-compatible server, asked once for each different request."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.environment_section import UserSettings
from counterpoint.configs.errors import RunError
from counterpoint.train.sampling.server import is_here

KEY_VARIABLE = "COUNTERPOINT_USER_KEY"
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


class UserModel:
    """Thread-safe. requests: how many were sent, those that the cache answered left out. Close it."""

    def __init__(self, settings: UserSettings, pause: float = 1.0) -> None:
        self.settings, self.pause, self.requests = settings, pause, 0
        handlers = [urllib.request.ProxyHandler({})] if is_here(settings.url) else []
        self._opener = urllib.request.build_opener(*handlers)
        self._model = settings.model
        self._lock = threading.Lock()
        self._cache: sqlite3.Connection | None = None
        if settings.cache is not None:
            # Autocommit: other processes of the run share the file.
            self._cache = sqlite3.connect(settings.cache, 60.0, isolation_level=None, check_same_thread=False)
            self._cache.execute("create table if not exists answers (request text primary key, answer text)")

    def ask(self, messages: Sequence[Mapping[str, str]], model: str | None, seed: int, max_tokens: int) -> str:
        """The answer's text. RunError where the server does not answer, or with something else."""
        body = {"model": model or self._name(), "messages": list(messages), "seed": seed, "max_tokens": max_tokens}
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if self._cache is not None:
            with self._lock:
                found = self._cache.execute("select answer from answers where request = ?", (key,)).fetchone()
            if found is not None:
                return found[0]
        answer = self._asked("chat/completions", body)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise RunError(f"{self.settings.url}: an answer without a text: is it a chat server?")
        if self._cache is not None:
            with self._lock:
                self._cache.execute("insert or ignore into answers values (?, ?)", (key, text))
        return text

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _name(self) -> str:
        if self._model is None:
            try:
                self._model = str(self._asked("models", None)["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise RunError(f"{self.settings.url}: lists no model: set `rollout.user.model`") from None
        return self._model

    def _asked(self, path: str, body: Any) -> Any:
        url = f"{self.settings.url.rstrip('/')}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for left in range(self.settings.retries, -1, -1):
            with self._lock:
                self.requests += 1
            try:
                request = urllib.request.Request(url, data, headers)
                with self._opener.open(request, timeout=self.settings.timeout) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code not in _AGAIN or not left:
                    raise RunError(f"{url}: HTTP {error.code}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not left:
                    raise RunError(f"{url}: {type(error).__name__}: {error}") from None
            time.sleep(self.pause * 2 ** (self.settings.retries - left))
        raise AssertionError("the last try returns or raises")
