"""Settings of the servers that a run of `recipe: grpo` starts beside itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterpoint.configs.base import Count, CountOrZero, Settings, Text
from counterpoint.configs.train_section import LaunchSettings


class ServeSettings(Settings):
    """vLLM servers for `rollout.engine: server`, on the GPUs of this machine that the training processes leave free.
    They end with the run; one that dies is started again."""

    servers: CountOrZero = 0
    """How many are started; 0 starts none, and `rollout.server` names those that run already."""

    gpus: Count = 1
    """GPUs of each (tensor parallel)."""

    port: Annotated[int, Field(ge=1024, le=65000)] = 8100
    """Port of the first; the others have the next ones."""

    command: Text = "vllm"
    """The program of vLLM: a path where it is in an environment of its own."""

    arguments: tuple[Text, ...] = ()
    """Further arguments of `vllm serve`."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of the servers, up to `/v1`."""
        return tuple(f"http://127.0.0.1:{self.port + number}/v1" for number in range(self.servers))


class RewardLaunchSettings(LaunchSettings):
    """Processes on one or several machines, and the servers that sample for them."""

    serve: ServeSettings = ServeSettings()
    """Servers of vLLM beside the training processes, on one machine."""
