"""A chat model behind an OpenAI-compatible server, asked once for each different request."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import os
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from counterpoint.configs.errors import RunError
from counterpoint.configs.redact import redact

Read = TypeVar("Read")
_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Answered(Generic[Read]):
    """value: what was read of the answer. tokens: of the requests and their answers, none where the cache knew it."""

    value: Read
    tokens: int = 0


class ChatServer:
    """Thread-safe. requests: how many were sent, those that the cache answered left out. Close it.

    key: environment variable of the server's key. setting: names the model, in errors. cache: SQLite file of answers.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        setting: str,
        model: str | None = None,
        cache: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
    ) -> None:
        self.url, self.pause, self.requests = url.rstrip("/"), pause, 0
        self._key, self._setting, self._model, self._timeout, self._retries = key, setting, model, timeout, retries
        handlers = [urllib.request.ProxyHandler({})] if is_here(url) else []
        self._opener = urllib.request.build_opener(*handlers)
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[threading.Lock, int]] = {}
        self._cache: sqlite3.Connection | None = None
        if cache is not None:
            try:  # autocommit: other processes of the run share the file
                self._cache = sqlite3.connect(cache, 60.0, isolation_level=None, check_same_thread=False)
                self._cache.execute("create table if not exists answers (request text primary key, answer text)")
            except sqlite3.Error as error:
                raise RunError(f"{cache}: no cache can be kept there ({error}): name another file") from None

    def ask(self, body: Mapping[str, Any], read: Callable[[str], Read], model: str | None = None) -> Answered[Read]:
        """What `read` makes of the answer's text. A ValueError of `read` asks again, with another seed.

        RunError where the server does not answer, or with nothing that can be read.
        """
        body = {"model": model or self._named(), **body}
        if self._cache is None:
            return self._read(body, read)[0]
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._alone(key):
            with self._lock:
                found = self._cache.execute("select answer from answers where request = ?", (key,)).fetchone()
            if found is not None:
                return Answered(read(found[0]))
            answered, text = self._read(body, read)
            with self._lock:
                self._cache.execute("insert or ignore into answers values (?, ?)", (key, text))
            return answered

    def answer(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers to one request, as it comes. RunError where it does not."""
        return self._asked(path, {"model": self._named(), **body})

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Of those who want the same answer at the same time one asks for it, and the others find it in the cache."""
        with self._lock:
            lock, waiting = self._wanted.get(key, (threading.Lock(), 0))
            self._wanted[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._wanted.pop(key)
                if waiting > 1:
                    self._wanted[key] = lock, waiting - 1

    def _read(self, body: Mapping[str, Any], read: Callable[[str], Read]) -> tuple[Answered[Read], str]:
        """What was read, and of which text."""
        tokens, told = 0, ""
        for attempt in range(self._retries + 1):
            answer = self._asked(
                "chat/completions", {**body, "seed": body["seed"] + attempt} if "seed" in body else body
            )
            text = _text(answer, self.url)
            tokens += _tokens(answer, body, text)
            try:
                value = read(text)
            except ValueError as error:
                told = str(error)
                continue
            return Answered(value, tokens), text
        raise UnreadableError(f"{self.url}: {told}, {self._retries + 1} times", tokens)

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _named(self) -> str:
        if self._model is None:
            try:
                self._model = str(self._asked("models", None)["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise RunError(f"{self.url}: lists no model: set `{self._setting}`") from None
        return self._model

    def _asked(self, path: str, body: Any) -> Any:
        url = f"{self.url}/{path}"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for left in range(self._retries, -1, -1):
            with self._lock:
                self.requests += 1
            try:
                request = urllib.request.Request(url, data, headers)
                with self._opener.open(request, timeout=self._timeout) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code not in _AGAIN or not left:
                    raise RunError(f"{url}: HTTP {error.code}{_said(error)}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not left:
                    raise RunError(f"{url}: {type(error).__name__}: {error}") from None
            time.sleep(self.pause * 2 ** (self._retries - left))
        raise AssertionError("the last try returns or raises")


class UnreadableError(RunError):
    """No answer could be read. tokens: what was spent on them."""

    def __init__(self, message: str, tokens: int) -> None:
        super().__init__(message)
        self.tokens = tokens


def _text(answer: Any, url: str) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise RunError(f"{url}: an answer without a text: is it a chat server?")
    return text


def _tokens(answer: Any, body: Any, text: str) -> int:
    """What the server says it took; where it says nothing, four characters a token."""
    try:
        return int(answer["usage"]["total_tokens"])
    except (KeyError, TypeError, ValueError):
        return (len(json.dumps(body["messages"], ensure_ascii=False)) + len(text)) // 4 + 1


def _said(error: urllib.error.HTTPError) -> str:
    try:
        told = json.loads(error.read(10_000))
        message = told.get("error", told)
        message = message.get("message", message) if isinstance(message, dict) else message
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        return ""
    return f": {redact(' '.join(str(message).split())[:300])}"


def is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
