"""SGLang's own request handling, chat and Responses, without an engine. Arguments: the checkpoint's folder, the
template's file.

Its tokenizer and template managers start as in a server. The environment holds sglang (--no-deps) and what its request
handling imports: transformers, openai, openai-harmony at the versions that sglang pins, torch for a CPU, triton, xgrammar,
apache-tvm-ffi, fastapi, msgspec, jsonschema and the like; torchvision, which is for images, has a stand-in here.
"""

from __future__ import annotations

import datetime as real
import hashlib
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import transformers.utils

transformers.utils.is_torchvision_available()  # transformers remembers that it is absent
from transformers import AutoProcessor  # noqa: E402, F401
from transformers.utils import chat_template_utils  # noqa: E402


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return MagicMock(name=spec.name, __path__=[])

    def exec_module(self, module: ModuleType) -> None:
        pass


sys.meta_path.append(_Absent())

from sglang.srt.entrypoints import harmony_utils  # noqa: E402
from sglang.srt.entrypoints.engine import init_tokenizer_manager  # noqa: E402
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, ResponsesRequest  # noqa: E402
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat  # noqa: E402
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses  # noqa: E402
from sglang.srt.runtime_context import publish  # noqa: E402
from sglang.srt.server_args import PortArgs, ServerArgs  # noqa: E402

from worker import answer_requests, version  # noqa: E402  # isort: skip

from requests_of_apis import DATE, as_responses, with_thoughts_in  # noqa: E402


class _Day(real.datetime):
    @classmethod
    def now(cls, tz: real.tzinfo | None = None) -> real.datetime:
        return real.datetime.fromisoformat(DATE)


class _Calendar:
    datetime = _Day


harmony_utils.datetime = _Calendar  # both write today's date
chat_template_utils.datetime = _Day

folder = Path(sys.argv[1])
template = Path(sys.argv[2]).read_text(encoding="utf-8")
(folder / "chat_template.jinja").write_text(template, encoding="utf-8")
arguments = ServerArgs(model_path=str(folder), served_model_name="m", device="cpu", dtype="bfloat16")
publish(arguments, role="tokenizer")
managers = init_tokenizer_manager(arguments, PortArgs.init_new(arguments))
chat_server, responses_server = OpenAIServingChat(*managers), OpenAIServingResponses(*managers)


def chat(request: dict[str, Any]) -> list[int]:
    body = ChatCompletionRequest.model_validate({"model": "m", **with_thoughts_in(request, "reasoning_content")})
    if told := chat_server._validate_request(body):
        raise ValueError(told)
    return [*map(int, chat_server._convert_to_internal_request(body)[0].input_ids)]


def responses(request: dict[str, Any]) -> list[int]:
    body = as_responses(request)
    first = body["input"][0]
    if first.get("role") in ("system", "developer") and isinstance(first["content"], str):
        body["instructions"] = first["content"]
        body["input"] = body["input"][1:]
    return responses_server._make_request_with_harmony(ResponsesRequest(model="m", **body), None)[2][0]


head = {"version": version("sglang")}
sha = hashlib.sha256(template.encode()).hexdigest()
harmony = f"openai-harmony {version('openai-harmony')}"
answer_requests(
    {
        "chat": ({**head, "harmony": "", "form": "sglang", "template": sha}, chat),
        "responses": ({**head, "harmony": harmony, "form": "sglang_responses"}, responses),
    }
)
sys.stdout.flush()
os._exit(0)  # the managers' threads do not end
