"""The adapters of a run over HTTP, for servers that see no folder of ours (`vllm_resolver.py` downloads them)."""

from __future__ import annotations

import hmac
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.train.sampling.vllm_resolver import BLOCK, FILES, PATH, TOKEN_VARIABLE


class AdapterFiles:
    """Serves in threads until it is closed; every request needs the token. folders: name -> folder, asked each time.

    RunError where the port is taken.
    """

    def __init__(self, folders: Callable[[], Mapping[str, Path]], token: str, port: int, host: str = "") -> None:
        self.folders, self.token = folders, token
        try:
            self._http = ThreadingHTTPServer((host, port), type("Handler", (_Handler,), {"owner": self}))
        except OSError as error:
            raise RunError(f"rollout.server.adapters_port: {port}: {error.strerror}: take another one") from None
        self._http.daemon_threads = True
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.05,), name="adapters", daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def token() -> str:
    """What servers have to know. ConfigError where none is set."""
    if not (found := os.environ.get(TOKEN_VARIABLE)):
        raise ConfigError(
            f"rollout.server.adapters: http: set {TOKEN_VARIABLE} to a secret, here and where vLLM is started"
        )
    return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: AdapterFiles
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.owner.token}".encode()):
            return self._reply(401, b"")
        folders = self.owner.folders()
        if self.path == PATH:
            return self._reply(200, json.dumps(sorted(folders)).encode())
        name, _, file_name = self.path.removeprefix(f"{PATH}/").partition("/")
        folder = folders.get(name)
        if folder is None or file_name not in FILES:
            return self._reply(404, b"")
        try:
            file = (folder / file_name).open("rb")
        except OSError:
            return self._reply(404, b"")
        with file:
            self._head(200, os.fstat(file.fileno()).st_size)
            shutil.copyfileobj(file, self.wfile, BLOCK)

    def _reply(self, status: int, data: bytes) -> None:
        self._head(status, len(data))
        self.wfile.write(data)

    def _head(self, status: int, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.end_headers()
