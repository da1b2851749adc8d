"""Adapters of a training run for a vLLM server on another machine: a plugin of vLLM's (`vllm.general_plugins`).

vLLM asks its resolvers for a model name that it does not know. Ours downloads `counterpoint-*` names from the training
process, compares them with the hash in their name, and keeps the files where vLLM can read them again. It runs in
vLLM's process and imports the standard library alone; `pip install --no-deps counterpoint` is enough there.

    COUNTERPOINT_ADAPTERS_URL     http://HOST:PORT of the training process; several with commas. Unset: does nothing.
    COUNTERPOINT_ADAPTERS_TOKEN   the token of the training process
    COUNTERPOINT_ADAPTERS_CACHE   folder of the downloads (~/.cache/counterpoint/adapters)
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

URL_VARIABLE = "COUNTERPOINT_ADAPTERS_URL"
TOKEN_VARIABLE = "COUNTERPOINT_ADAPTERS_TOKEN"
CACHE_VARIABLE = "COUNTERPOINT_ADAPTERS_CACHE"
NAME = re.compile(r"counterpoint-(?P<run>[0-9a-f]{8})-(?P<version>[0-9]{1,12})-(?P<digest>[0-9a-f]{12})")
FILES = ("adapter_config.json", "adapter_model.safetensors")
PATH = "/adapters"
BLOCK = 1 << 20
TRIES = 3
TIMEOUT = 60.0

log = logging.getLogger("vllm.counterpoint_adapters")  # below vLLM's own logger, whose handlers show it


class DamagedError(ValueError):
    """What was downloaded is not what its name says."""


class Digest:
    """sha256 over the files of an adapter, in the order of `FILES`."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def file(self, name: str, size: int) -> Callable[[bytes], None]:
        """Takes the content of the next file, in pieces."""
        self._sum.update(f"{name}\0{size}\0".encode())
        return self._sum.update

    def __str__(self) -> str:
        return self._sum.hexdigest()[:12]


def digest_of(folder: Path) -> str:
    """The first 12 digits of the sha256 of an adapter's files. OSError where one is not there."""
    digest = Digest()
    for name in FILES:
        with (folder / name).open("rb") as file:
            take = digest.file(name, os.fstat(file.fileno()).st_size)
            while block := file.read(BLOCK):
                take(block)
    return str(digest)


def fetch(name: str, urls: Sequence[str], token: str, cache: Path, pause: float = 1.0) -> Path | None:
    """The folder of the adapter `name`, from the first of `urls` that has it; None where none gives it whole.

    Tried three times. What is in the cache is whole: it is moved there after its hash was compared.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    target = cache / name
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    for tried in range(TRIES):
        failed = False
        for url in urls:
            try:
                _download(name, found["digest"], f"{url.rstrip('/')}{PATH}", token, cache)
                _remove_old(found["run"], f"{url.rstrip('/')}{PATH}", token, cache)
                return target
            except urllib.error.HTTPError as error:
                failed = failed or error.code != 404
                log.warning("%s has no adapter %s: status %s", url, name, error.code)
            except (OSError, http.client.HTTPException, ValueError) as error:
                failed = True
                log.warning("%s: adapter %s: %s: %s", url, name, type(error).__name__, error)
        if not failed:
            return None
        if tried + 1 < TRIES:
            time.sleep(pause * 2**tried)
    return None


def _download(name: str, digest: str, url: str, token: str, cache: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    try:
        found = Digest()
        for file_name in FILES:
            with _opened(f"{url}/{name}/{file_name}", token) as answer, (partial / file_name).open("wb") as file:
                size = int(answer.headers["Content-Length"])
                take, left = found.file(file_name, size), size
                while block := answer.read(min(BLOCK, left)):
                    take(block)
                    file.write(block)
                    left -= len(block)
                if left:
                    raise DamagedError(f"{file_name} ends {left} bytes too early")
        if str(found) != digest:
            raise DamagedError(f"its hash is {found}: the files are damaged")
        with suppress(FileExistsError):  # another server of this machine was faster
            partial.rename(cache / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_old(run: str, url: str, token: str, cache: Path) -> None:
    """What the run itself keeps no more. Whatever happens here, the adapter is there."""
    with suppress(OSError, http.client.HTTPException, ValueError), _opened(url, token) as answer:
        kept = set(json.loads(answer.read()))
        for old in _of_run(cache, run):
            if kept and old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)


def _of_run(cache: Path, run: str) -> Iterator[Path]:
    for path in list(cache.iterdir()):
        if (found := NAME.fullmatch(path.name)) and found["run"] == run:
            yield path


def _opened(url: str, token: str) -> Any:
    here = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    return opener.open(request, timeout=TIMEOUT)


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "counterpoint" / "adapters")


def register() -> None:
    """The entry point: called once in every process of vLLM's."""
    urls = [url.strip() for url in os.environ.get(URL_VARIABLE, "").split(",") if url.strip()]
    if not urls:
        return
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

    token, cache = os.environ.get(TOKEN_VARIABLE, ""), cache_folder()

    class AdapterResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            # In a thread: vLLM's event loop has other requests.
            folder = await asyncio.to_thread(fetch, lora_name, urls, token, cache)
            if folder is None:
                return None
            number = int(lora_name.rpartition("-")[2], 16) + 1  # vLLM counts for itself and puts its own in place
            request = LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))
            if hasattr(request, "is_3d_lora_weight"):
                # Experts' tensors are stacked in PEFT's files. vLLM asks only with --enable-mixed-moe-lora-format.
                request.is_3d_lora_weight = True
            return request

    LoRAResolverRegistry.register_resolver("counterpoint", AdapterResolver())
