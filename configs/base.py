"""What every settings class shares: strict keys, frozen values, docstrings as descriptions, and a few common types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import core_schema

Effort = Literal["low", "medium", "high"]
Device = Literal["auto", "cpu", "cuda"]
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
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

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_sections(cls, given: Any) -> Any:
        """A field's own defaults for a section hold where the section is given in part, too: pydantic takes those of
        the section's class."""
        if not isinstance(given, Mapping):
            return given
        filled: dict[str, Any] = {}
        for name, info in cls.model_fields.items():
            if isinstance(info.default, Settings) and isinstance(part := given.get(name), Mapping):
                filled[name] = {key: getattr(info.default, key) for key in info.default.model_fields_set} | {**part}
        return {**given, **filled} if filled else given


class _OneOrMany:
    """A list in which a single entry may be written without brackets, and null is the empty list."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(_as_list, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _as_list(value: Any) -> Any:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


class _ByType:
    """A section with one class per kind: the annotated class means all classes derived from it that have a `type`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return handler.generate_schema(Annotated[Union[kinds_of(source)], Field(discriminator="type")])  # noqa: UP007


def kinds_of(section: type[Settings]) -> tuple[type[Settings], ...]:
    """The classes that a run file can choose by `type` where it allows `section`, in the order of their definition."""
    kinds: list[type[Settings]] = []
    for derived in section.__subclasses__():
        kinds.extend((derived,) if "type" in derived.__annotations__ else kinds_of(derived))
    return tuple(kinds)


def _unique(values: Sequence[Any]) -> Sequence[Any]:
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"`{value}` is listed twice: write it once")
    return values


BY_TYPE = _ByType()
"""Written on a class of settings: the classes derived from it are its kinds, each named by its literal `type`. A new
kind needs only its class; there is no list to extend."""

OneOrMany = _OneOrMany()
"""The last of a list's annotations: a single entry may be written without brackets, and null is the empty list."""

Unique = AfterValidator(_unique)
"""A list without repeated entries."""

NotEmpty = Field(min_length=1)
