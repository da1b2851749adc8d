"""One side of an evaluation: every sample of one model over a suite, drawn now or read from an earlier run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ModelError
from counterpoint.configs.schema import EvaluateRun
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.adapters.quantization import Quantization
from counterpoint.train.checkpoints.find import Found, open_checkpoint
from counterpoint.train.evals.journal import Row
from counterpoint.train.evals.runner import Done, Shard, finished, run_plan
from counterpoint.train.evals.sampling_plan import Draw, plan
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.model.load import device_of, load_vocabulary_of
from counterpoint.train.model.marker import require_whole
from counterpoint.train.sampling.engines import Engine, make_engine
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.scoring.scorers import Scorers


@dataclass(frozen=True)
class Planned:
    """What one model will sample, and where it is kept; building it loads no model."""

    settings: EvaluateRun
    found: Found
    folder: Path
    vocabulary: Vocabulary
    tasks: list[Task]
    draws: list[Draw]
    renderer: Renderer

    @property
    def adapter(self) -> str | None:
        return str(self.found.adapter) if self.found.adapter else None

    @property
    def identity(self) -> dict[str, Any]:
        """What samples depend on besides the plan."""
        model = self.found.base.model_dump(mode="json")
        shards = {"shards": str(self.found.shards)} if self.found.shards else {}
        truncation = Truncation.of(self.settings.eval)
        cut = {} if truncation.whole else {"truncation": asdict(truncation)}
        return {"model": model, "adapter": self.adapter, "engine": self.settings.eval.engine, **shards, **cut}

    def rows(self) -> list[Row] | None:
        """All samples if none is missing, else None; RunError where the folder holds another evaluation."""
        return finished(self.draws, self.folder, self.settings.eval.batch, self.identity)

    def draw(self, progress: Callable[[Done], None], shard: Shard | None = None) -> list[Row] | None:
        """Draw what is missing, of `shard` alone if given; None where other processes have not finished."""
        suite = self.settings.eval
        with Scorers(suite.scorer_seconds) as scorers, ExitStack() as stack:
            engine = self._engine()
            if suite.engine == "server":
                stack.callback(engine.close)  # pyright: ignore[reportAttributeAccessIssue]
            return run_plan(
                self.draws, engine, self.folder, self.vocabulary, scorers,
                batch=suite.batch, identity=self.identity, shard=shard, progress=progress, renderer=self.renderer,
            )  # fmt: skip

    def _engine(self) -> Engine:
        suite, loaded = self.settings.eval, None
        if suite.engine == "vllm" and self.found.shards is not None:
            raise ModelError(
                f"{self.found.source}: parts of a model, which vLLM does not read: `counterpoint export ... --to bf16` "
                "puts them together; or set eval.engine=transformers"
            )
        if suite.engine == "vllm" and Quantization.of(self.found.adapter) is not None:
            raise ModelError(
                f"{self.found.source}: its adapter was trained with rounded experts, which vLLM does not put beside a "
                "base: evaluate what `counterpoint export --to mxfp4` writes, or set eval.engine=transformers"
            )
        if suite.engine == "vllm":  # which reads the folders itself
            for folder in filter(None, (self.found.adapter, Path(self.found.base.name).expanduser())):
                require_whole(folder)
        if suite.engine == "transformers":
            loaded = open_checkpoint(self.found, device_of(self.settings.device))
        return make_engine(suite, loaded=loaded, model=self.found.base, adapter=self.adapter, warn=_warn)


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def planned(settings: EvaluateRun, found: Found, folder: Path, inherited: bool = False) -> Planned:
    """The plan of one model. inherited: as of `build_tasks`. ConfigError or DataError for an invalid task."""
    vocabulary = load_vocabulary_of(found.base)
    rendering = found.run.data if found.run is not None else None
    tasks = build_tasks(settings.eval, inherited=inherited)
    renderer = Renderer(vocabulary, rendering)
    return Planned(settings, found, folder, vocabulary, tasks, plan(tasks, renderer, settings.seed), renderer)
