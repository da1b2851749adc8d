"""Settings of what samples beside the model in memory: sections `server` and `vllm` of `eval` and `rollout`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from counterpoint.configs.base import (
    Count,
    CountOrZero,
    NotEmpty,
    NotNegative,
    OneOrMany,
    Positive,
    Settings,
    Text,
    Unique,
)


class ServerSettings(Settings):
    """Servers with OpenAI's `/v1/completions`, given token ids and returning token ids (vLLM, with its
    `return_token_ids`). A key is read from COUNTERPOINT_SERVER_KEY, never from a run file."""

    url: Annotated[tuple[Text, ...], NotEmpty, Unique, OneOrMany] = ("http://127.0.0.1:8000/v1",)
    """Address, up to `/v1`, or a list of addresses: requests are shared among all servers, and those of one that fails
    go to the others, with the same seeds."""

    url_file: Text | None = None
    """A file of addresses in place of `url`, one a line, relative to the current folder. It is read again every 5
    seconds, so that servers join and leave."""

    model: Text | None = None
    """Name that the server gives the model; null takes the first one listed."""

    parallel: Count = 16
    """Concurrent requests to one server."""

    timeout: Positive = 600.0
    """Timeout of one request in seconds. A server that lets one wait longer is asked no more until it works again."""

    retries: CountOrZero = 3
    """Retries of a request that failed. Where there are several servers, another one is asked at once."""

    chunk_tokens: Count = 2048
    """Most tokens of a request. A longer completion goes on from what was sampled, with a seed of its own for each
    request, so that a server that dies costs at most these tokens."""

    wait: NotNegative = 600.0
    """Seconds without a server after which the run ends; a run that trains writes a checkpoint first."""

    @model_validator(mode="after")
    def _one_list(self) -> ServerSettings:
        if self.url_file is not None and self.url != type(self).model_fields["url"].default:
            raise ValueError("`url` and `url_file` exclude each other: write all addresses into the file")
        return self


class RolloutServerSettings(ServerSettings):
    """Servers that sample for training, and are given the adapter of each step."""

    adapters: Literal["folder", "http"] = "folder"
    """How a server gets an adapter: `folder` has it read from the run folder, which it must see under the same path;
    `http` has it downloaded from the first training process, by the plugin that this package brings to vLLM."""

    adapters_port: Annotated[int, Field(ge=0, le=65535)] = 8765
    """Port on which the adapters of `http` are served; 0 takes a free one."""


class VllmSettings(Settings):
    """vLLM in this process (extra `vllm`)."""

    tensor_parallel: Count = 1
    """GPUs over which the model is split."""

    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of each GPU's memory that vLLM may use."""

    max_model_len: Count | None = None
    """Maximum tokens of prompt and completion together; null takes the model's limit."""
