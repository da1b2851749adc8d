"""Settings of the evaluation by sampling: section `eval`."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from counterpoint.configs.base import Count, Effort, NotEmpty, NotNegative, OneOrMany, Settings, Share, Text, Unique


class SamplingSettings(Settings):
    """Fixed prompts, sampled token in and token out at each effort, and checked on ids."""

    prompts: Text | None = None
    """File of conversations that end where the model should answer, or `example:NAME`; null takes the prompts that the
    package brings."""

    efforts: Annotated[tuple[Effort, ...], NotEmpty, Unique, OneOrMany] = ("low", "medium", "high")
    """Efforts at which every prompt is sampled."""

    samples: Count = 1
    """Samples of each prompt at each effort."""

    max_new_tokens: Count = 512
    """A sample that does not stop within so many tokens counts as truncated."""

    temperature: NotNegative = 1.0
    """Temperature of sampling; 0 is greedy."""

    batch: Count = 32
    """Prompts sampled at a time."""

    base: bool = True
    """Measure the base model as well, with the adapter switched off, for comparison."""


class EvalSettings(SamplingSettings):
    """The hook that samples from the live model before, during and after training."""

    every: Count | None = None
    """Steps between evaluations; null for none in between."""

    at_start: bool = True
    """Evaluate before the first step."""

    at_end: bool = True
    """Evaluate after the last step."""

    stop_below: Share | None = None
    """A channel-correct rate below this stops the run (never at the start); null never stops it."""

    warn_below: Share | None = None
    """A channel-correct rate below this is warned of; null never warns."""

    @model_validator(mode="after")
    def _checks(self) -> EvalSettings:
        if self.stop_below is not None and self.warn_below is not None and self.warn_below < self.stop_below:
            raise ValueError(
                f"`warn_below` ({self.warn_below}) is under `stop_below` ({self.stop_below}), so it would never warn: "
                "raise the first or lower the second"
            )
        return self
