"""SGLang's own request handling, chat and Responses, without an engine. Arguments: the checkpoint's folder, the
template's file."""

from __future__ import annotations

import datetime as real
from types import SimpleNamespace
from typing import Any

from worker import answer_requests, version  # isort: skip

from requests_of_apis import DATE, as_responses
from sglang.srt.entrypoints import harmony_utils
from sglang.srt.entrypoints.openai.protocol import ResponsesRequest
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses


class _Day(real.datetime):
    @classmethod
    def now(cls, tz: real.tzinfo | None = None) -> real.datetime:
        return real.datetime.fromisoformat(DATE)


class _Calendar:
    datetime = _Day


harmony_utils.datetime = _Calendar  # it writes today's date


def responses(request: dict[str, Any]) -> list[int]:
    body = as_responses(request)
    first = body["input"][0]
    if first.get("role") in ("system", "developer") and isinstance(first["content"], str):
        body["instructions"] = first["content"]
        body["input"] = body["input"][1:]
    made = OpenAIServingResponses._make_request_with_harmony(_Serving(), ResponsesRequest(model="m", **body), None)
    return made[2][0]


class _Serving(SimpleNamespace):
    """What the request handling asks of its server: no tools of its own, and its own method that makes the messages."""

    tool_server = None
    _construct_input_messages_with_harmony = OpenAIServingResponses._construct_input_messages_with_harmony


harmony = f"openai-harmony {version('openai-harmony')}"
answer_requests(
    {"responses": ({"version": version("sglang"), "harmony": harmony, "form": "sglang_responses"}, responses)}
)
