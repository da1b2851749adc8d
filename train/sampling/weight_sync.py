"""vLLM, in this process or as a server, that samples from the weights that are being trained.

Before the rollouts of every step it is given an adapter (a folder, under a new name each time, so that nothing computed
with the last one is used again) or the whole merged model.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.checkpoints.merged import write_merged
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.server import ServerEngine
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.vllm_engine import (
    VllmEngine,
    check_cpu,
    check_vocabulary,
    dtype_name,
    installed_version,
    on_cpu,
)

EXPERTS_SINCE = (0, 13)
"""vLLM takes adapters on fused experts since 0.11.2, and on packed ones since its pull request 28971 of November 2025;
0.13 is the first release that surely holds both."""
SCALES_SINCE = (0, 32)
"""Reads a scale of its own for experts, and adapters on the router: seen with 0.32.0, not tested with earlier ones."""


@dataclass
class FollowingEngine:
    """An `Engine`. folder: where weights are written for vLLM. start: makes vLLM on a folder of merged weights. keep:
    versions of the adapter that a server keeps, the newest among them."""

    folder: Path
    engine: Any = None
    start: Callable[[Path], VllmEngine] | None = None
    keep: int = 1
    _versions: list[int] = field(default_factory=list)

    @property
    def each_alone(self) -> bool:
        """Whether each sample is asked for by itself."""
        return bool(getattr(self.engine, "each_alone", False))

    def follow(
        self,
        model: Any,
        write_adapter: Callable[[Path], None],
        version: int,
        *,
        lead: bool = True,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Sample from these weights from now on. Called by every process; lead: the one that updates a server.

        write_adapter: writes the adapter into a folder. wait: a barrier over all processes.
        """
        if self.start is not None:
            target = self.folder / "merged"
            write_merged(model, target)
            if self.engine is None:
                self.engine = self.start(target)
            else:
                self.engine.reload()
            return
        target = self.adapter_folder(version)
        if self.keep == 1 or version not in self._versions:
            write_adapter(target)
        wait()  # collective, here and below: read when all have written it, removed when all have read it
        self.engine.load_adapter(target.absolute(), version, lead)
        wait()
        self._versions = [*(each for each in self._versions if each != version), version]
        for gone in self._versions[: -self.keep]:
            if lead and hasattr(self.engine, "unload_adapter"):
                self.engine.unload_adapter(gone)
        self._versions = self._versions[-self.keep :]
        kept = {self.adapter_folder(each) for each in self._versions}
        for old in self.folder.glob("adapter-*") if lead else ():
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def at(self, version: int) -> Engine:
        """A server that samples with that version, which is one of the last `keep`."""
        return self.engine.named(self.version_name(version))

    def version_name(self, version: int) -> str:
        """What the version is called on the server."""
        return f"counterpoint-{version}"

    def adapter_folder(self, version: int) -> Path:
        """Where the files of the version lie."""
        return self.folder / f"adapter-{version}"

    def adopt(self, version: int, folder: Path) -> None:
        """Take a version back that a checkpoint has kept."""
        target = self.adapter_folder(version)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        self.engine.load_adapter(target.absolute(), version, True)
        self._versions.append(version)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`; every sample has its log-probabilities."""
        assert self.engine is not None, "follow comes first"
        return self.engine.sample(prompts, max_new_tokens, temperature, seed, stop_ids)


def following_engine(settings: GrpoRun, folder: Path) -> FollowingEngine:
    """The engine of `rollout.engine: vllm` or `server`, which `check_engine` has passed."""
    rollout, model = settings.rollout, settings.model
    options: dict[str, Any] = {
        "logprobs": True,
        "truncation": Truncation.of(rollout),
        "routes": rollout.routes == "replay",
    }
    if rollout.engine == "server":
        return FollowingEngine(folder, ServerEngine.connected(rollout.server, **options))
    options["dtype"] = dtype_name(model, settings.train.device)
    if rollout.weights == "merged":
        return FollowingEngine(folder, start=lambda target: VllmEngine.started(str(target), rollout.vllm, **options))
    rank = max(settings.lora.rank, (settings.lora.experts and settings.lora.expert_rank) or 0)
    engine = VllmEngine.started(model.name, rollout.vllm, revision=model.revision, rank=rank, **options)
    return FollowingEngine(folder, engine)


def check_engine(settings: GrpoRun) -> None:
    """ConfigError for an engine that is not installed or cannot serve this, RunError for a server that is not there.

    Starts nothing, so that it can be asked before the model loads.
    """
    rollout = settings.rollout
    if rollout.engine == "server":
        check_adapter(settings.lora, ServerEngine.connected(rollout.server).version())
    elif rollout.engine == "vllm":
        version = installed_version()
        check_vocabulary(settings.model.name)
        if rollout.weights == "merged":
            check_reload(settings.lora)
        else:
            check_adapter(settings.lora, version)
            check_cpu()


def check_adapter(lora: LoraSettings, version: str) -> None:
    """ConfigError where a vLLM of this version does not serve such adapters; an unreadable version passes."""
    found = re.match(r"(\d+)\.(\d+)", version)
    scales = lora.experts and not lora.one_scale
    for wanted, since, what, setting in (
        (lora.experts, EXPERTS_SINCE, "serves no adapters on experts", "lora.experts: false"),
        (scales, SCALES_SINCE, "reads one scale for a whole adapter", "no lora.expert_alpha"),
        (lora.router, SCALES_SINCE, "serves no adapters on the router", "lora.router: false"),
    ):
        if wanted and found and (int(found[1]), int(found[2])) < since:
            raise ConfigError(
                f"rollout.engine: vLLM {version} {what}: update it to {'.'.join(map(str, since))}, set {setting}, or "
                "rollout.engine: vllm with rollout.weights: merged"
            )


def check_reload(lora: LoraSettings) -> None:
    """ConfigError where vLLM would continue with the experts that it was started with.

    Its CPU build (0.32.0) packs their weights when it starts, and does not pack them when it reads them again.
    """
    if on_cpu() and (lora.experts or not lora.enabled):
        raise ConfigError(
            "rollout.engine: vLLM on a CPU does not read changed weights of experts: set lora.experts: false with "
            "lora.enabled: true, or rollout.engine: transformers"
        )
