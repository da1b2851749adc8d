"""vLLM, in this process or as servers, that samples from the weights that are being trained.

Before the rollouts of every step it is given an adapter (a folder, under a new name each time, so that nothing computed
with the last one is used again) or the whole merged model.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.checkpoints.merged import write_merged
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.adapter_files import token
from counterpoint.train.sampling.following_pool import ACCEPTED, FollowingPool
from counterpoint.train.sampling.pool import ServerPool
from counterpoint.train.sampling.sample import Sampled
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
    """An `Engine` of vLLM in this process. folder: where weights are written for it. start: makes vLLM on a folder of
    merged weights."""

    folder: Path
    engine: Any = None
    start: Callable[[Path], VllmEngine] | None = None

    def follow(
        self,
        model: Any,
        write_adapter: Callable[[Path], None],
        version: int,
        *,
        lead: bool = True,
        wait: Callable[[], None] = lambda: None,
        share: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        """Sample from these weights from now on. Called by every process; lead: the one that removes old files.

        write_adapter: writes the adapter into a folder. wait: a barrier over all processes. share: of servers alone.
        """
        if self.start is not None:
            target = self.folder / "merged"
            write_merged(model, target)
            if self.engine is None:
                self.engine = self.start(target)
            else:
                self.engine.reload()
            return
        target = self.folder / f"adapter-{version}"
        write_adapter(target)
        wait()  # collective, here and below: read when all have written it, removed when all have read it
        self.engine.load_adapter(target.absolute(), version)
        wait()
        for old in self.folder.glob("adapter-*") if lead else ():
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

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


def following_engine(
    settings: GrpoRun,
    folder: Path,
    loaded: LoadedModel | None = None,
    probes: Sequence[Sequence[int]] = (),
    tell: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> FollowingEngine | FollowingPool:
    """The engine of `rollout.engine: vllm` or `server`, which `check_engine` has passed. loaded to warn: as of
    `FollowingPool`."""
    rollout, model = settings.rollout, settings.model
    options = _options(settings)
    if rollout.engine == "server":
        options |= {"tell": tell, "warn": warn}
        return FollowingPool(rollout.server, folder, folder.parent.name, loaded, probes, **options)
    options["dtype"] = dtype_name(model, settings.train.device)
    if rollout.weights == "merged":
        return FollowingEngine(folder, start=lambda target: VllmEngine.started(str(target), rollout.vllm, **options))
    rank = max(settings.lora.rank, (settings.lora.experts and settings.lora.expert_rank) or 0)
    engine = VllmEngine.started(model.name, rollout.vllm, revision=model.revision, rank=rank, **options)
    return FollowingEngine(folder, engine)


def accepted_servers(settings: GrpoRun, folder: Path) -> ServerPool:
    """For a process beside the one that has the `FollowingPool` of `folder`: those servers that count there."""
    server, accepted = settings.rollout.server, folder / ACCEPTED
    if accepted.is_file():
        server = server.model_copy(update={"url_file": str(accepted)})
    return ServerPool.connected(server, poll=1.0, **_options(settings))


def _options(settings: GrpoRun) -> dict[str, Any]:
    rollout = settings.rollout
    return {"logprobs": True, "truncation": Truncation.of(rollout), "routes": rollout.routes == "replay"}


def check_engine(settings: GrpoRun) -> None:
    """ConfigError for an engine that is not installed or cannot serve this, RunError where no server is there.

    Starts nothing, so that it can be asked before the model loads.
    """
    rollout = settings.rollout
    if rollout.engine == "server":
        if rollout.server.adapters == "http":
            token()
        pool = ServerPool.connected(rollout.server, **_options(settings))
        try:
            for member in pool.members:
                check_adapter(settings.lora, member.server.version())
        finally:
            pool.close()
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
