"""What samples: transformers in this process, vLLM in this process, or a server. Token ids in, token ids out.

Each takes prompts as real ids and returns real ids up to and with the stop token, so that the checks read the same
kind of thing whatever drew it. Their random numbers differ; prompts, limits and seeds are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import SuiteSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.sample import Sampled, Sampler
from counterpoint.train.sampling.truncation import Truncation


class Engine(Protocol):
    """`Sampler` is one."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """One completion for each prompt, in order; `seed` is one for all or one a prompt."""
        ...


@runtime_checkable
class Cuttable(Protocol):
    """An engine whose distribution can be truncated otherwise."""

    def cut(self, truncation: Truncation) -> Engine:
        """The same one, drawing from this part of the distribution."""
        ...


def cut(engine: Engine, truncation: Truncation | None) -> Engine:
    """The engine, drawing from this part of the distribution; None leaves its own."""
    if truncation is None:
        return engine
    assert isinstance(engine, Cuttable), f"{type(engine).__name__} draws from the whole distribution"
    return engine.cut(truncation)


def make_engine(
    settings: SuiteSettings,
    *,
    loaded: LoadedModel | None = None,
    model: ModelSettings | None = None,
    adapter: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Engine:
    """The engine of the settings.

    loaded: of `transformers`, the model in memory. model, adapter: of `vllm`, what it loads. warn: of servers that
    join and leave. ConfigError for a package that is not installed.
    """
    if settings.engine == "server":
        from counterpoint.train.sampling.pinned import PinnedEngine
        from counterpoint.train.sampling.pool import ServerPool

        pool = ServerPool.connected(settings.server, truncation=Truncation.of(settings), tell=warn, warn=warn)
        return PinnedEngine(pool, None)
    if settings.engine == "vllm":
        from counterpoint.train.sampling.vllm_engine import VllmEngine, dtype_name

        assert model is not None
        return VllmEngine.started(
            model.name,
            settings.vllm,
            adapter,
            revision=model.revision,
            dtype=dtype_name(model),
            truncation=Truncation.of(settings),
        )
    if loaded is None:
        raise ConfigError("eval.engine: transformers samples a model in memory, and none was loaded")
    return Sampler(loaded, batch_rows=settings.batch, truncation=Truncation.of(settings))
