"""Texts with `{{ variables }}`, as judges and OpenAI's graders are written, read before anything is sampled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import ConfigError

_VARIABLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*([A-Za-z_]\w*)((?:\.[\w-]+|\[\d+\])*)\s*")
_STEP = re.compile(r"\.([\w-]+)|\[(\d+)\]")


class MissingValueError(Exception):
    """A row lacks what a variable names, or a sample does."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`row.answer` is ("row", "answer")."""

    path: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Template:
    """Text and variables in turn."""

    parts: tuple[str | Variable, ...]

    @classmethod
    def read(cls, text: str, where: str, known: Collection[str], any_below: Collection[str]) -> Template:
        """ConfigError for a variable that is neither one of `known` nor a field of one of `any_below`."""
        parts: list[str | Variable] = []
        at = 0
        for found in _VARIABLE.finditer(text):
            path = _PATH.fullmatch(found[1])
            steps = () if path is None else (path[1], *(a or b for a, b in _STEP.findall(path[2])))
            named = ".".join(steps)
            roots = [name for name in known if named == name or named.startswith(f"{name}.")]
            if not steps or not (roots or (steps[0] in any_below and len(steps) > 1)):
                can = ", ".join(f"`{{{{{name}}}}}`" for name in [*known, *(f"{name}.NAME" for name in any_below)])
                raise ConfigError(f"{where}: unknown variable `{found[0]}`: take one of {can}")
            parts += [text[at : found.start()], Variable(steps)]
            at = found.end()
        return cls((*parts, text[at:]))

    def variables(self) -> Iterator[Variable]:
        yield from (part for part in self.parts if isinstance(part, Variable))

    def filled(self, values: Mapping[str, Any], quoted: Collection[str] = ()) -> str:
        """quoted: variables, or the first names of them, whose values stand between tags that no text can close.
        MissingValueError where a value is not there."""
        out: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
                continue
            text = as_text(value_of(part, values))
            out.append(between_tags(str(part), text) if part.path[0] in quoted or str(part) in quoted else text)
        return "".join(out)


def value_of(variable: Variable, values: Mapping[str, Any]) -> Any:
    value: Any = values
    for step in variable.path:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, Sequence) and not isinstance(value, str) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise MissingValueError(str(variable))
    if value is None:
        raise MissingValueError(str(variable))
    return value


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def between_tags(name: str, text: str) -> str:
    """The text between tags that carry its own hash, so that nothing in it can be the end of it."""
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f'<{name} id="{mark}">\n{text}\n</{name} id="{mark}">'
