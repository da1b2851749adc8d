"""YAML for run files: plain values only, every key with its line, and nothing read differently from how it looks.

Differences to PyYAML's safe loader, each for a mistake that would pass unseen: duplicate keys, tags, anchors and
aliases are errors; `off`, `no`, `1:30` and `2025-06-28` are text and not a boolean, a number of minutes, or a date;
`2e-4` is a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from counterpoint.configs.errors import ConfigError

Key = tuple[str | int, ...]
COMMAND_LINE = "command line"
_TOO_LARGE = 1_000_000
_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Document:
    """A value, and for the path of each key or entry in it the place that it was read from (`file:line`)."""

    value: Any
    places: dict[Key, str] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, text: str, where: str) -> None:
        super().__init__(text)
        self.where = where

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        place = _place(self.where, event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{place}: anchors and aliases (`&`, `*`) are not taken: use `extends`, or write it out")
        if (tag := getattr(event, "tag", None)) is not None:
            tag = " ".join(tag.replace(_PREFIX, "!!").split())
            raise ConfigError(f"{place}: the tag `{tag}` is not taken: write a plain value, in quotes if it is text")
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|nan)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_file(path: Path, where: str) -> Document:
    """The mapping in a run file; `where` names the file in messages. An empty file is an empty mapping."""
    try:
        size = path.stat().st_size
        text = path.read_bytes().decode("utf-8-sig") if size <= _TOO_LARGE else ""
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{where}:{line}: not UTF-8: save the file as UTF-8 text") from None
    if size > _TOO_LARGE:
        raise ConfigError(f"{where}: {size / 1e6:.0f} MB is no run file: give the YAML file with the settings")
    document = read_text(text, where)
    if document.value is None:
        return Document({}, document.places)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{where}:1: a run file is a mapping: begin it with `recipe: sft`")
    return document


def read_text(text: str, where: str) -> Document:
    """The value of a YAML text; ConfigError on one line for anything that is not plain YAML."""
    places: dict[Key, str] = {}
    try:
        node = _Loader(text, where).get_single_node()
        value = None if node is None else _value(node, where, (), places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{_place(where, mark)}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply for a run file") from None
    return Document(value, places)


def _place(where: str, mark: Any) -> str:
    return where if mark is None or where == COMMAND_LINE else f"{where}:{mark.line + 1}"


def _value(node: yaml.Node, where: str, path: Key, places: dict[Key, str]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, where, path, places)
    if isinstance(node, yaml.SequenceNode):
        for n, item in enumerate(node.value):
            places[(*path, n)] = _place(where, item.start_mark)
        return [_value(item, where, (*path, n), places) for n, item in enumerate(node.value)]
    return _scalar(node)


def _mapping(node: yaml.MappingNode, where: str, path: Key, places: dict[Key, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = _place(where, key_node.start_mark)
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise ConfigError(f"{place}: a key must be text: name a setting")
        here = (*path, key)
        if key in result:
            name = " ".join(".".join(map(str, here)).split())
            raise ConfigError(f"{place}: `{name}` was set before, at {places[here]}: keep one of them")
        places[here] = place
        result[key] = _value(value_node, where, here, places)
    return result


def _scalar(node: yaml.Node) -> Any:
    text, tag = node.value, node.tag.removeprefix(_PREFIX)
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if tag == "int":
        return int(text, 0) if len(text) < 100 else text
    return text
