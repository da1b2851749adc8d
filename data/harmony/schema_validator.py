"""jsonschema's validators under one deadline: whatever a schema asks for, a validation ends.

Every keyword looks at the clock when it begins; regular expressions, which run outside Python's reach, get what is left
of the time; and those keywords that take a time of their own in one step (`uniqueItems`, `enum`, `const`) are computed
by hashing. References resolve inside the schema only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

SECONDS = 1.0
"""CPU seconds of one validation, the schema's own included."""
_REGEXES_ELSEWHERE = ("unevaluatedProperties", "patternProperties")
_limit = threading.local()


class TooLongError(Exception):
    """A validation has used up its time."""


@contextmanager
def deadline() -> Iterator[None]:
    """TooLongError in what is validated here once the time is over; inside another deadline, that one counts."""
    if getattr(_limit, "ends", None) is not None:
        yield
        return
    _limit.ends = time.thread_time() + SECONDS
    try:
        yield
    finally:
        _limit.ends = None


class SchemaObject(dict[str, Any]):
    """An object of a schema. jsonschema asks it for keywords where it walks through a schema outside of keywords."""

    def get(self, key: Any, default: Any = None) -> Any:
        _left()
        return super().get(key, default)


@lru_cache(maxsize=16)
def limited(base: Any) -> Any:
    """A validator class of jsonschema whose keywords keep the deadline."""
    import attrs
    from jsonschema.validators import extend

    known = base.VALIDATORS
    ours = {name: function for name, function in _OURS.items() if name in known}
    made: Any = extend(base, {name: _timed(ours.get(name) or function) for name, function in known.items()})
    # jsonschema's own takes the class of a `$schema` that stands further inside, whose keywords keep no deadline.
    made.evolve = lambda validator, **changes: attrs.evolve(validator, **changes)
    return made


def uncheckable(text: bytes) -> str | None:
    """Why a schema cannot be judged in bounded time; None where it can."""
    if all(f'"{keyword}"'.encode() in text for keyword in _REGEXES_ELSEWHERE):
        return "unevaluatedProperties together with patternProperties is not supported"
    return None


def _left() -> float:
    """Seconds that are left. TooLongError where none are."""
    ends = getattr(_limit, "ends", None)
    left = SECONDS if ends is None else ends - time.thread_time()
    if left <= 0:
        raise TooLongError
    return left


def _timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _left()
        yield from function(validator, value, instance, schema) or ()

    return keyword


def _matches(pattern: str, text: str) -> bool:
    import regex

    try:
        return regex.search(pattern, text, timeout=_left()) is not None
    except TimeoutError:
        raise TooLongError from None


def _pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _matches(wanted, instance):
        yield _error(f"{instance[:60]!r} does not match {wanted!r}")


def _pattern_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, inner in wanted.items():
        for name, value in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    extras = [n for n in instance if n not in named and not any(_matches(pattern, n) for pattern in patterns)]
    if validator.is_type(wanted, "object"):
        for name in extras:
            yield from validator.descend(instance[name], wanted, path=name)
    elif not wanted and extras:
        names = ", ".join(map(repr, extras))
        were = "was" if len(extras) == 1 else "were"
        told = f"Additional properties are not allowed ({names} {were} unexpected)"
        if patterns:
            do = "does" if len(extras) == 1 else "do"
            told = f"{names} {do} not match any of the regexes: {', '.join(map(repr, patterns))}"
        yield _error(told)


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if wanted and validator.is_type(instance, "array") and len({_key(item) for item in instance}) < len(instance):
        yield _error(f"{instance!r} has non-unique elements")


def _enum(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if _key(instance) not in {_key(value) for value in wanted}:
        yield _error(f"{instance!r} is not one of {wanted!r}")


def _const(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if _key(instance) != _key(wanted):
        yield _error(f"{wanted!r} was expected")


def _key(value: Any) -> Any:
    """Equal for equal JSON values: 1 is 1.0, true is not 1."""
    if isinstance(value, dict):
        return "object", frozenset((name, _key(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_key, value))
    return ("boolean", value) if isinstance(value, bool) else value


def _error(told: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(told)


_OURS: dict[str, Callable[..., Any]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    "enum": _enum,
    "const": _const,
}
