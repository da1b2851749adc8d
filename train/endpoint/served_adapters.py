"""Adapters that a running endpoint is given, each under a name of its own, as vLLM takes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel

from counterpoint.configs.errors import ModelError
from counterpoint.train.adapters.attach import load_lora, without_lora
from counterpoint.train.endpoint.requests import RefusedError
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.vllm_resolver import TOKEN_VARIABLE, URL_VARIABLE, cache_folder, fetch


class ServedAdapters:
    """Those on one model without any of its own. name: of the model itself; lock: of everything that computes with it.

    One that was not loaded is downloaded where COUNTERPOINT_ADAPTERS_URL is set (`vllm_resolver.py`).
    """

    def __init__(self, loaded: LoadedModel, name: str, lock: threading.Lock) -> None:
        self.loaded, self.name, self._lock = loaded, name, lock
        self._model: Any = loaded.model
        self._names: dict[str, Path] = {}
        self._downloaded: dict[str, Path] = {}

    @property
    def names(self) -> list[str]:
        return list(self._names)

    def load(self, name: Any, folder: Any) -> None:
        """RefusedError where it has that name already, or the folder holds no adapter of this model."""
        if not isinstance(name, str) or not name or not isinstance(folder, str) or not folder:
            raise RefusedError("lora_name and lora_path: a name and a folder are needed")
        with self._lock:
            if name == self.name or name in self._names:
                raise RefusedError(f"The lora adapter {name!r} has already been loaded.")
            self._add(name, Path(folder))

    def unload(self, name: Any) -> None:
        """RefusedError where there is none of that name."""
        with self._lock:
            if name not in self._names:
                raise RefusedError(f"The lora adapter {name!r} cannot be found.", None, 404)
            del self._names[name]
            if self._names:
                self._model.set_adapter(next(iter(self._names)))  # PEFT warns of an active one that is deleted
                self._model.delete_adapter(name)
            else:
                self._model = self._model.unload()

    @contextmanager
    def active(self, name: str) -> Iterator[LoadedModel]:
        """The model with that adapter, or by its own name without any. The lock is held. RefusedError for no name."""
        if name == self.name:
            if not isinstance(self._model, PeftModel):
                yield self.loaded
                return
            with self._model.disable_adapter():
                yield self.loaded.with_model(self._model)
            return
        if name not in self._names and (folder := self._downloaded.pop(name, None)) is not None:
            self._add(name, folder)
        if name not in self._names:
            raise RefusedError(f"The model `{name}` does not exist.", None, 404)
        self._model.set_adapter(name)
        yield self.loaded.with_model(self._model)

    def _add(self, name: str, folder: Path) -> None:
        try:
            self._model = load_lora(self._model, folder, name=name)
        except Exception as error:
            # PEFT has put its layers in place by then, and those tensors that fit.
            if not self._names:
                self._model = without_lora(self.loaded.model)
            elif name in self._model.peft_config:
                self._model.delete_adapter(name)
            if isinstance(error, ModelError):
                raise RefusedError(str(error)) from None
            raise
        self._names[name] = folder

    def download(self, name: str) -> None:
        """Fetch an adapter that was not loaded, where one is to be had; without the lock, since it may take long."""
        urls = [url.strip() for url in os.environ.get(URL_VARIABLE, "").split(",") if url.strip()]
        if not urls or name == self.name or name in self._names:
            return
        if (folder := fetch(name, urls, os.environ.get(TOKEN_VARIABLE, ""), cache_folder())) is not None:
            self._downloaded[name] = folder
