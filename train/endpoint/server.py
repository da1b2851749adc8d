"""The project's sampler behind OpenAI's API, on this machine alone: `/r/ROLLOUT/v1/...`, or `/v1/...` with the header
`X-Session-ID: ROLLOUT`. Every request needs the key."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from counterpoint.train.endpoint.ledger import Ledger
from counterpoint.train.endpoint.replies import chat_chunks, chat_completion, response, response_events
from counterpoint.train.endpoint.requests import RefusedError, chat_request, responses_request

if TYPE_CHECKING:
    from counterpoint.train.endpoint.served_adapters import ServedAdapters

_PATH = re.compile(
    r"(?:/r/(?P<rollout>[^/?]+))?/v1/(?P<what>chat/completions|completions|responses|models|(?:un)?load_lora_adapter)(?P<rest>/[^?]*)?(?:\?.*)?"
)
_LONGEST = 64 << 20
Find = Callable[[str | None], Ledger | None]


class ChatServer:
    """Serves in threads until it is closed. find: the ledger of a rollout's name (None where a request has none), or
    None where there is no such rollout. completions: what answers raw completions, None answers none. adapters: those
    that clients load. port 0 takes a free one. OSError where the port is taken."""

    def __init__(
        self,
        find: Find,
        model: str,
        key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        completions: Callable[[dict[str, Any], str], dict[str, Any]] | None = None,
        adapters: ServedAdapters | None = None,
    ) -> None:
        self.find, self.model, self.key = find, model, key or secrets.token_urlsafe(32)
        self.completions, self.adapters = completions, adapters
        self._http = _Http((host, port), type("Handler", (_Handler,), {"owner": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="endpoint", daemon=True)
        self._thread.start()

    @property
    def root(self) -> str:
        """`http://127.0.0.1:PORT`."""
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}"

    def url(self, rollout: str) -> str:
        """What a client of one rollout takes for its base URL."""
        return f"{self.root}/r/{rollout}/v1"

    def wait(self) -> None:
        """Until it is closed, or the program is interrupted."""
        self._thread.join()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault of ours; its call is marked where it matters."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ChatServer

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._safely(self._models)

    def do_POST(self) -> None:
        self._safely(self._sampled)

    def _safely(self, answer: Callable[[], None]) -> None:
        try:
            answer()
        except RefusedError as error:
            told = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
            self._send(error.status, json.dumps({"error": told}, ensure_ascii=False))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            told = {"message": f"{type(error).__name__}: {error}", "type": "server_error", "param": None, "code": None}
            self._send(503, json.dumps({"error": told}, ensure_ascii=False))

    def _asked_for(self) -> tuple[str, Ledger | None, str]:
        """What is asked for, of which rollout, and what follows in the path. RefusedError where that is nothing."""
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), self.owner.key.encode()):
            raise RefusedError("the key is missing, or another one: send it as a bearer token", None, 401)
        found = _PATH.fullmatch(self.path)
        if found is None:
            raise RefusedError(f"{self.path}: known are chat/completions, responses and models under /v1", None, 404)
        rollout = found["rollout"] or self.headers.get("X-Session-ID")
        ledger = self.owner.find(rollout)
        if ledger is None and found["what"] in ("chat/completions", "responses"):
            raise RefusedError(f"no rollout {rollout}: it has ended, or never was", None, 404)
        return found["what"], ledger, found["rest"] or ""

    def _models(self) -> None:
        what, _, rest = self._asked_for()
        if what != "models":
            raise RefusedError(f"{what}: send it by POST", None, 405)
        model = {"id": self.owner.model, "object": "model", "created": 0, "owned_by": "counterpoint"}
        names = self.owner.adapters.names if self.owner.adapters is not None else []
        listed = [model, *({**model, "id": name, "parent": self.owner.model} for name in names)]
        self._send(200, json.dumps(model if rest else {"object": "list", "data": listed}))

    def _sampled(self) -> None:
        body = self._body()
        what, ledger, rest = self._asked_for()
        if what == "completions" and self.owner.completions is not None and not rest:
            model = str(body.get("model") or self.owner.model)
            self._send(200, json.dumps(self.owner.completions(body, model), ensure_ascii=False))
            return
        if what.endswith("load_lora_adapter") and self.owner.adapters is not None and not rest:
            if what.startswith("un"):
                self.owner.adapters.unload(body.get("lora_name"))
            else:
                self.owner.adapters.load(body.get("lora_name"), body.get("lora_path"))
            self._send(200, json.dumps("Success"))
            return
        if what not in ("chat/completions", "responses") or rest or ledger is None:
            raise RefusedError(f"{what}{rest}: nothing is posted there", None, 405)
        if self.owner.adapters is not None and body.get("model") not in (None, "", self.owner.model):
            told = f"model: {body['model']}: {self.owner.model} answers here, adapters /v1/completions alone"
            raise RefusedError(told, "model", 404)
        chat = what == "chat/completions"
        if chat:
            asked = chat_request(body)
        else:
            before = body.get("previous_response_id")
            asked = responses_request(body, ledger.earlier(str(before)) if before else ())
        call = ledger.answer(asked, self.headers.get("X-Session-ID"))
        model = str(body.get("model") or self.owner.model)
        try:
            if not asked.stream:
                whole = chat_completion(call.reply, model) if chat else response(call.reply, model)
                self._send(200, json.dumps(whole, ensure_ascii=False))
            elif chat:
                self._stream(chat_chunks(call.reply, model, asked.usage_at_end))
            else:
                self._stream(response_events(call.reply, model))
        except OSError:
            call.lost = True
            raise

    def _body(self) -> dict[str, Any]:
        try:
            size = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            size = _LONGEST + 1
        if size > _LONGEST or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise RefusedError("send a body with its Content-Length, of 64 MB at most", None, 411)
        try:
            body = json.loads(self.rfile.read(size))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise RefusedError("the body is no JSON object")
        return body

    def _send(self, status: int, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self._head(status, "application/json", len(data))
        self.wfile.write(data)

    def _stream(self, events: Iterable[str] | Iterator[str]) -> None:
        data = "".join(events).encode("utf-8", "replace")
        self._head(200, "text/event-stream; charset=utf-8", len(data))
        self.wfile.write(data)

    def _head(self, status: int, kind: str, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()
