"""A Python function as a tool: its signature as the schema, its docstring as the description, its value as text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast, get_type_hints

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Tool

CONTEXT = "ctx"
"""Parameter that is passed by us and not by the model."""


def described(function: Any, owner: str = "") -> Tool:
    """The declaration of a function, or of a method of the class `owner`. ConfigError for a signature without a
    schema."""
    name = _plain(function).__name__
    try:
        schema = _adapter(function, bool(owner)).json_schema()
    except Exception as error:  # pydantic's own, NameError of an annotation, ...
        where = f"{owner}.{name}" if owner else name
        raise ConfigError(f"function `{where}`: its signature has no JSON schema ({error}): annotate it") from None
    for parameter in schema.get("properties", {}).values():
        parameter.pop("title", None)
    description = (_plain(function).__doc__ or "").strip().split("\n\n")[0]
    return Tool(name, " ".join(description.split()), schema)


def validated(function: Any, arguments: dict[str, Any], method: bool = False) -> dict[str, Any]:
    """Arguments as the function's annotations want them. ValidationError (of pydantic) for others."""
    from pydantic_core import ArgsKwargs

    return _adapter(function, method).validate_python(ArgsKwargs((), arguments))


def text_of(value: Any) -> str:
    """A tool's value as the model reads it: JSON for what is no string."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@lru_cache(maxsize=256)
def _adapter(function: Any, method: bool) -> Any:
    """Validates the arguments that the model gives, and returns them."""
    from pydantic import TypeAdapter

    plain = _plain(function)
    parameters = list(inspect.signature(plain).parameters.values())
    if method and not isinstance(function, staticmethod):
        parameters = parameters[1:]
    parameters = [_by_name(parameter) for parameter in parameters if parameter.name != CONTEXT]
    hints = get_type_hints(plain, include_extras=True)

    def given(**arguments: Any) -> dict[str, Any]:
        return arguments

    cast(Any, given).__signature__ = inspect.Signature(parameters)
    given.__annotations__ = {p.name: hints[p.name] for p in parameters if p.name in hints}
    return cast(Any, TypeAdapter)(given)


def _by_name(parameter: inspect.Parameter) -> inspect.Parameter:
    """A model gives arguments by their names."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) if parameter.kind in positional else parameter


def _plain(function: Any) -> Callable[..., Any]:
    return function.__func__ if isinstance(function, staticmethod | classmethod) else function
