"""What every settings class shares: strict keys, frozen values, docstrings as descriptions, and a few common types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Effort = Literal["low", "medium", "high"]
Device = Literal["auto", "cpu", "cuda"]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class Settings(BaseModel):
    """A section of a run file. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )


def _as_list(value: Any) -> Any:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def _unique(values: Sequence[Any]) -> Sequence[Any]:
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"`{value}` stands in it twice: write it once")
    return values


OneOrMany = BeforeValidator(_as_list)
"""A list in which a single entry may stand without brackets, and null is the empty list."""

Unique = AfterValidator(_unique)
"""A list without repeated entries."""
