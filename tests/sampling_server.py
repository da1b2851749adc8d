"""A server that answers as vLLM does, over the project's own sampler: the embedded model, adapters, true numbers.

In a thread (`serving(SamplingServer())`), or by `main` a process of its own that can be killed (tests/forks.py). With COUNTERPOINT_ADAPTERS_URL it downloads unknown adapters as the plugin of vLLM does. `working`: cleared, requests for samples wait, while
/v1/models still answers; `faults`: statuses to answer first; `poison`: a prompt that always
fails; `dies_after`: so many samples with log-probabilities, nothing is answered any more; `deaf`: adapters are taken and not used;
`routes`: the experts of tokens are told.
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from counterpoint.configs.model_section import ModelSettings
from counterpoint.train.model.load import LoadedModel, load_model
from counterpoint.train.sampling.expert_routes import encoded
from counterpoint.train.sampling.sample import Sampler, inference
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.vllm_resolver import TOKEN_VARIABLE, URL_VARIABLE, cache_folder, fetch

BASE = "base"


class SamplingServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.loaded: LoadedModel = load_model(ModelSettings())
        self.names: dict[str, Path] = {}
        self.model: Any = self.loaded.model
        self.asked: list[dict[str, Any]] = []
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.faults: list[int] = []
        self.working = threading.Event()
        self.working.set()
        self.deaf = self.routes = False
        self.poison: list[int] | None = None
        self.dies_after: int | None = None
        self.refuses_adapters = self.gone = False
        self.lock = threading.Lock()
        self.counting, self.in_progress = threading.Lock(), 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def forget(self) -> None:
        """As new, once nothing is in progress; the model stays in memory."""
        self.working.set()
        while self.in_progress:
            time.sleep(0.01)
        self.asked, self.loads, self.unloads, self.faults = [], [], [], []
        self.deaf, self.routes, self.poison, self.dies_after = False, False, None, None
        self.refuses_adapters = self.gone = False
        for name in list(self.names):
            self.names.pop(name)
        if isinstance(self.model, PeftModel):
            self.model = self.model.unload()

    def load(self, name: str, folder: Path) -> None:
        with self.lock:
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(str(folder), name)
            else:
                self.model = PeftModel.from_pretrained(self.model, str(folder), name)
            self.names[name] = folder
            self.loads.append(name)

    def answer(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """What is sampled, and scored; None for a model that is not there."""
        name = body["model"]
        if name != BASE and name not in self.names:
            urls = [url for url in os.environ.get(URL_VARIABLE, "").split(",") if url]
            folder = fetch(name, urls, os.environ.get(TOKEN_VARIABLE, ""), cache_folder(), 0.01) if urls else None
            if folder is None:
                return None
            self.load(name, folder)
        with self.lock:
            if name != BASE and not self.deaf:
                self.model.set_adapter(name)
                return self._sampled(self.model, body)
            if isinstance(self.model, PeftModel):
                with self.model.disable_adapter():
                    return self._sampled(self.model, body)
            return self._sampled(self.model, body)

    def _sampled(self, model: Any, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        cut = Truncation(body.get("top_p", 1.0), max(0, body.get("top_k", 0)), body.get("min_p", 0.0))
        sampler = Sampler(self.loaded.with_model(model), truncation=cut, routes=self.routes)
        stops = body.get("stop_token_ids", [])
        found = sampler.sample([prompt], body["max_tokens"], body["temperature"], [body.get("seed", 0)], stops)[0]
        choice: dict[str, Any] = {
            "token_ids": found.ids, "prompt_token_ids": prompt, "finish_reason": found.finish_reason,
            "stop_reason": found.ids[-1] if found.finish_reason == "stop" else None,
        }  # fmt: skip
        if found.routes is not None:
            choice["routed_experts"] = encoded(found.routes)
        if "logprobs" in body:
            scores = self._scores(model, [*prompt, *found.ids], body["temperature"])
            choice["logprobs"] = {"token_logprobs": scores[len(prompt) - 1 :]}
        if "prompt_logprobs" in body:
            told = [{str(id_): {"logprob": s}} for id_, s in zip(prompt[1:], self._scores(model, prompt), strict=True)]
            choice["prompt_logprobs"] = [None, *told]
        return {"choices": [choice]}

    def _scores(self, model: Any, ids: list[int], temperature: float = 1.0) -> list[float]:
        rows = torch.from_numpy(np.asarray(self.loaded.vocabulary_map.rows(ids)))[None]
        with inference(model):
            logits = model(input_ids=rows, use_cache=False).logits[0, :-1].float() / (temperature or 1.0)
        return torch.log_softmax(logits, -1).gather(-1, rows[0, 1:, None])[:, 0].tolist()


class Handler(BaseHTTPRequestHandler):
    server: SamplingServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/version":
            self.reply(200, {"version": "0.32.0"})
        else:
            self.reply(200, {"data": [{"id": name} for name in (BASE, *self.server.names)]})

    def do_POST(self) -> None:
        with self.server.counting:
            self.server.in_progress += 1
        try:
            self.answer()
        finally:
            with self.server.counting:
                self.server.in_progress -= 1

    def answer(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if server.gone:
            return self.connection.close()
        if self.path.endswith("_adapter") and server.refuses_adapters:
            return self.reply(404, {"detail": "Not Found"})
        if self.path == "/v1/load_lora_adapter":
            if body["lora_name"] in server.names:
                return self.reply(400, {"error": {"message": "has already been loaded"}})
            server.load(body["lora_name"], Path(body["lora_path"]))
            return self.reply(200, "Success")
        if self.path == "/v1/unload_lora_adapter":
            server.unloads.append(body["lora_name"])
            return self.reply(200 if server.names.pop(body["lora_name"], None) else 404, "Success")
        with server.lock:
            server.asked.append(body)
            dead = (
                server.dies_after is not None and sum("logprobs" in each for each in server.asked) > server.dies_after
            )
            fault = 500 if body["prompt"] == server.poison else server.faults.pop() if server.faults else 200
        if dead:
            return self.connection.close()
        if fault != 200:
            return self.reply(fault, {"error": {"message": "injected"}})
        server.working.wait()
        answer = server.answer(body)
        if answer is None:
            return self.reply(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        return self.reply(200, answer)

    def reply(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class RecordingServer(SamplingServer):
    """Writes each request for a rollout into PORT.jsonl; all after the first `free` wait until there is a file `go`."""

    def __init__(self, port: int, free: int | None) -> None:
        super().__init__(port)
        self.free, self.record = free, Path(f"{port}.jsonl")

    def answer(self, body: dict[str, Any]) -> dict[str, Any] | None:
        if "logprobs" in body:
            with self.counting, self.record.open("a") as record:
                record.write(json.dumps(body) + "\n")
                waits = self.free == 0
                self.free = self.free and self.free - 1
            while waits and not Path("go").exists():
                time.sleep(0.01)
        return super().answer(body)


def main(port: int) -> None:
    """A job for tests/forks.py."""
    SamplingServer(port).serve_forever(0.01)


def recording(port: int, free: int | None) -> None:
    """A job for tests/forks.py."""
    RecordingServer(port, free).serve_forever(0.01)
