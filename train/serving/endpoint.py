"""A running endpoint: which server it is, what it makes of a request, and what it samples after given ids.

vLLM, SGLang, llama.cpp and Ollama each tell the prompt of a request in a way of their own; what one does not tell is
None.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from counterpoint.configs.errors import RunError
from counterpoint.configs.redact import redact
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.sampling.server import KEY_VARIABLE

KINDS = {"vllm": "vLLM", "sglang": "SGLang", "llama_cpp": "llama.cpp", "ollama": "Ollama"}


@dataclass(frozen=True, slots=True)
class Continued:
    """What a server sampled after given ids. reason: why it stopped; stop: the id that it names as the cause."""

    ids: tuple[int, ...]
    reason: str | None
    stop: int | str | None


class Endpoint:
    """One server at `url` (with or without `/v1`). kind: a key of `KINDS`.

    Raises RunError where nothing answers there, or no model of that name."""

    def __init__(self, url: str, model: str | None = None, timeout: float = 120.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https"):
            raise RunError(f"{redact(url)}: a server's address begins with http:// or https://")
        self.root = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self.timeout = timeout
        handlers = [urllib.request.ProxyHandler({})] if parts.hostname in ("localhost", "127.0.0.1", "::1") else []
        self._opener = urllib.request.build_opener(*handlers)
        self.kind, self.version = self._recognised()
        self.model = self._chosen_model(model)

    def prompt_ids(self, request: Mapping[str, Any], vocabulary: Vocabulary) -> list[int] | None:
        """The prompt of a chat request as the server tokenizes it; None where it does not tell."""
        if self.kind == "vllm":
            return self._vllm_prompt(request)
        if self.kind == "sglang":
            body = {**request, "model": self.model, "max_tokens": 1, "return_prompt_token_ids": True}
            return _ids(_first(self._post("/v1/chat/completions", body), "prompt_token_ids"))
        if self.kind == "llama_cpp":
            prompt = self._post("/apply-template", dict(request)).get("prompt")
            told = self._post("/tokenize", {"content": prompt, "parse_special": True}) if prompt else {}
            return _ids(told.get("tokens"))
        text = self._post("/api/chat", {**request, "model": self.model, "_debug_render_only": True, "stream": False})
        template = (text.get("_debug_info") or {}).get("rendered_template")
        return vocabulary.encode_with_specials(template) if isinstance(template, str) else None

    def _vllm_prompt(self, request: Mapping[str, Any]) -> list[int] | None:
        body = {**request, "model": self.model}
        try:
            answer = self._post("/v1/chat/completions", {**body, "max_tokens": 1, "return_token_ids": True})
            if (ids := _ids(_first(answer, "prompt_token_ids"))) is not None:
                return ids
            first = None
        except RunError as error:  # A render server answers no completion.
            first = error
        try:
            answer = self._post("/v1/chat/completions/render", body)
        except RunError as error:  # A server with a model may forbid it.
            raise first or error from None
        return _ids(answer[0].get("token_ids") if isinstance(answer, list) else answer.get("token_ids"))

    def chat(self, request: Mapping[str, Any], stream: bool = False) -> Mapping[str, Any]:
        """The assistant message that a client reads, its parts put together where they are streamed."""
        body = {**request, "model": self.model}
        if not stream:
            return (self._post("/v1/chat/completions", body)["choices"] or [{}])[0].get("message") or {}
        return _joined(self._lines("/v1/chat/completions", {**body, "stream": True}))

    def continued(self, ids: Sequence[int], max_tokens: int) -> Continued | None:
        """Greedy sampling after `ids` with the server's own stop tokens; None where it does not tell ids."""
        if self.kind not in ("vllm", "sglang"):
            return None
        body = {"model": self.model, "prompt": list(ids), "max_tokens": max_tokens, "temperature": 0}
        body |= {"return_token_ids": True, "skip_special_tokens": False}
        choice = (self._post("/v1/completions", body).get("choices") or [{}])[0]
        if (sampled := _ids(choice.get("token_ids"))) is None:
            return None
        return Continued(tuple(sampled), choice.get("finish_reason"), choice.get("stop_reason"))

    def scores(self, ids: Sequence[int]) -> list[float | None] | None:
        """Log-probabilities of the tokens of `ids`, the first one's None; None where the server does not tell them."""
        if self.kind != "vllm":
            return None
        body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        told = _first(self._post("/v1/completions", body), "prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(ids):
            return None
        return [
            None if each is None else (each.get(str(id_)) or {}).get("logprob")
            for id_, each in zip(ids, told, strict=True)
        ]

    def _recognised(self) -> tuple[str, str]:
        reasons: list[str] = []
        for kind, path, key in (
            ("sglang", "/get_server_info", "version"),
            ("ollama", "/api/version", "version"),
            ("llama_cpp", "/props", "build_info"),
            ("vllm", "/version", "version"),
        ):
            try:
                answer = self._get(path)
            except RunError as error:
                reasons.append(str(error))
                continue
            if isinstance(answer, dict) and key in answer:
                return kind, str(answer[key])
        raise RunError(f"{reasons[-1] if reasons else self.root}: no vLLM, SGLang, llama.cpp or Ollama answers there")

    def _chosen_model(self, wanted: str | None) -> str:
        """The one that is wanted, else an adapter before its base, which vLLM lists first."""
        try:
            listed = list(self._get("/v1/models")["data"])
            ids = [str(model["id"]) for model in listed]
            first = next((str(model["id"]) for model in listed if model.get("parent")), ids[0])
        except (RunError, KeyError, IndexError, TypeError, AttributeError):
            return wanted or "default"
        # llama.cpp and SGLang answer for any name; Ollama completes one without a tag.
        known = (*ids, *(each.partition(":")[0] for each in ids))
        if wanted is not None and self.kind in ("vllm", "ollama") and wanted not in known:
            raise RunError(f"{redact(self.root)}: no model {wanted!r} is served there, but {', '.join(ids)}")
        return wanted or first

    def _get(self, path: str) -> Any:
        return self._post(path, None)

    def _post(self, path: str, body: Any) -> Any:
        return self._parsed(path, self._asked(path, body))

    def _parsed(self, path: str, text: bytes | str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            raise RunError(f"{redact(self.root)}{path}: its answer is no JSON") from None

    def _lines(self, path: str, body: Any) -> list[Any]:
        text = self._asked(path, body).decode("utf-8", "replace")
        data = (line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:"))
        return [self._parsed(path, line) for line in data if line and line != "[DONE]"]

    def _asked(self, path: str, body: Any) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        where = f"{redact(self.root)}{path}"
        try:
            request = urllib.request.Request(self.root + path, data, headers)
            with self._opener.open(request, timeout=self.timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:200]
            raise RunError(f"{where}: status {error.code}: {said}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise RunError(f"{where}: {reason}: is the server there?") from None


def _ids(value: Any) -> list[int] | None:
    return value if isinstance(value, list) and value and all(type(id_) is int for id_ in value) else None


def _first(answer: Any, key: str) -> Any:
    """A field of an answer, or of its first choice."""
    if not isinstance(answer, dict):
        return None
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return answer.get(key) or (choice.get(key) if isinstance(choice, dict) else None)


def _joined(chunks: Sequence[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        delta = ((chunk.get("choices") or [{}])[0]).get("delta") or {}
        for key in ("content", "reasoning", "reasoning_content"):
            if isinstance(delta.get(key), str):
                message[key] = message.get(key, "") + delta[key]
        for part in delta.get("tool_calls") or ():
            call = calls.setdefault(part.get("index", 0), {"type": "function", "function": {"arguments": ""}})
            function = part.get("function") or {}
            call["id"] = part.get("id") or call.get("id")
            call["function"]["name"] = function.get("name") or call["function"].get("name")
            call["function"]["arguments"] += function.get("arguments") or ""
    if calls:
        message["tool_calls"] = list(calls.values())
    return message
