"""Settings of `recipe: distill`: section `distill`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterpoint.configs.base import Count, Positive, Settings, Text


class DistillSettings(Settings):
    """How reasoning is sampled for rows that hold answers only, and which of it is kept."""

    samples: Count = 8
    """Maximum samples per row; a row without a correct one is left out and counted."""

    scorer: Text | None = None
    """How the sample is compared with the row's answer; null takes the scorer that fits it (`exact`, `number`, ...)."""

    keep_answer: bool = True
    """Write the row's own answer as the final; false keeps the sampled one."""

    least_tokens: Annotated[int, Field(ge=1)] = 1
    """Minimum tokens of analysis for a sample to be accepted."""

    max_new_tokens: Count = 512
    """Longest sample."""

    temperature: Positive = 1.0
    """Temperature of sampling."""

    batch: Count = 32
    """Rows sampled at a time."""
