"""Settings of `recipe: distill`: section `distill`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from counterpoint.configs.base import Count, Positive, Settings, Text


class DistillSettings(Settings):
    """How reasoning is sampled for rows that hold answers only, and which of it is kept."""

    samples: Count = 8
    """Most samples of a row; a row that none of them answers rightly is left out and counted."""

    scorer: Text | None = None
    """Comparison with the row's answer; null takes the one that fits it (`exact`, `number`, ...)."""

    keep_answer: bool = True
    """Write the row's own answer as the final; false keeps the sampled one."""

    least_tokens: Annotated[int, Field(ge=1)] = 1
    """Fewest tokens of analysis that are accepted."""

    max_new_tokens: Count = 512
    """Longest sample."""

    temperature: Positive = 1.0
    """Temperature of sampling."""

    batch: Count = 32
    """Rows sampled at a time."""
