"""OpenAI's reference Responses server (PyPI gpt-oss) under its test client: the tokens that it would sample after."""

from __future__ import annotations

import datetime as real
from typing import Any

from worker import answer_requests, version  # isort: skip

from fastapi.testclient import TestClient
from gpt_oss.responses_api import api_server
from openai_harmony import HarmonyEncodingName, load_harmony_encoding
from requests_of_apis import DATE, as_responses

_RETURN = 200002


class _Day(real.datetime):
    @classmethod
    def now(cls, tz: real.tzinfo | None = None) -> real.datetime:
        return real.datetime.fromisoformat(DATE)


class _Calendar:
    datetime = _Day


api_server.datetime = _Calendar  # the server writes today's date
seen: list[list[int]] = []


def next_token(tokens: list[int], temperature: float = 0.0, new_request: bool = False) -> int:
    if new_request:
        seen.append(list(tokens))
    return _RETURN


client = TestClient(
    api_server.create_api_server(next_token, load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS))
)


def ids(request: dict[str, Any]) -> list[int]:
    body = as_responses({"reasoning_effort": "medium", **request})
    first = body["input"][0]
    if first.get("role") in ("system", "developer") and isinstance(first["content"], str):
        body["instructions"] = first["content"]  # system items are written as system messages
        body["input"] = body["input"][1:]
    seen.clear()
    try:
        answer = client.post("/v1/responses", json=body)
    except Exception:
        if not seen:  # else it is about the answer, which is empty
            raise
        return seen[0]
    if not seen:
        raise ValueError(f"{answer.status_code} {answer.text}")
    return seen[0]


harmony = f"openai-harmony {version('openai-harmony')}"
answer_requests({"responses": ({"version": version("gpt-oss"), "harmony": harmony, "form": "reference"}, ids)})
