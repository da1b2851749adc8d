"""pydantic's errors about a run, reported in one line: where, which setting, what was found, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from counterpoint.configs.redact import redact
from counterpoint.configs.schema import RECIPES, RunSettings
from counterpoint.configs.yaml_file import Document, Key

_LONGEST = 60


class _Spot(NamedTuple):
    """Where an error belongs, and what the JSON schema has there. kind: what `type` chose, of kinds."""

    path: Key
    node: dict[str, Any]
    kind: str | None = None
    kinds: Mapping[str, dict[str, Any]] = {}


def explain(error: ValidationError, document: Document, run: type[RunSettings], where: str) -> str:
    """One line on the first problem, unknown keys before all others, and how many more there are."""
    ranked = sorted(filter(_is_told_once, error.errors()), key=lambda problem: problem["type"] != "extra_forbidden")
    # A value that fits no part of a union gives one error for each.
    problems = {(spot := _spot_of(problem, run)).path: (spot, problem) for problem in reversed(ranked)}
    spot, first = next(reversed(problems.values()))
    if first["type"] == "extra_forbidden":
        text = _unknown(spot, document, run, where)
    elif first["type"] == "value_error":
        text = _refused(spot.path, first, document, where)
    else:
        text = _wrong(spot, first, document, run, where)
    return f"{text} ({len(problems) - 1} more)" if len(problems) > 1 else text


def _is_told_once(problem: Any) -> bool:
    """Not so for a list that pydantic finds too short only after it dropped the invalid entries."""
    return problem["type"] != "too_short" or len(problem["input"]) == problem["ctx"]["actual_length"]


def dotted(path: Key) -> str:
    return " ".join(".".join(map(str, path)).split())


def place_of(path: Key, document: Document, where: str) -> str:
    """Where a setting was written, or the nearest section around it."""
    for length in range(len(path), 0, -1):
        if place := document.places.get(path[:length]):
            return place
    return where


def shown(value: Any) -> str:
    """A value as a run file would write it, short and without secrets."""
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, Mapping):
        return "a section" if value else "an empty section"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    text = " ".join(str(redact(value)).split())
    return f"`{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}`"


def setting_paths(model: type[BaseModel]) -> list[str]:
    """All keys of a recipe, dotted, sections included."""
    paths: list[str] = []
    for name, info in model.model_fields.items():
        paths.append(name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            paths.extend(f"{name}.{inner}" for inner in setting_paths(info.annotation))
    return paths


def _spot_of(problem: Any, run: type[RunSettings]) -> _Spot:
    schema, path = _schema_of(run), problem["loc"]
    if problem["type"] == "extra_forbidden":
        spot = _descended(path[:-1], schema)
        return spot._replace(path=(*spot.path, path[-1]))
    spot = _descended(path, schema)
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _Spot((*spot.path, "type"), {"enum": list(_kinds(spot.node, schema))})
    return spot


def _descended(path: Key, schema: dict[str, Any]) -> _Spot:
    """As far as a path leads: pydantic adds the parts of a union, and the kind that a `type` chose, to a setting's."""
    spot = _Spot((), schema)
    for key in path:
        kinds = _kinds(spot.node, schema)
        if key in kinds:
            spot = _Spot(spot.path, kinds[str(key)], str(key), kinds)
        elif (node := _inner(spot.node, key, schema)) is not None:
            spot = _Spot((*spot.path, key), node)
        else:
            break
    return spot


def _unknown(spot: _Spot, document: Document, run: type[RunSettings], where: str) -> str:
    schema, path = _schema_of(run), spot.path
    place, name = place_of(path, document, where), f"`{dotted(path)}`"
    here = [key for option in _options(spot.node, schema) for key in option.get("properties", ())]
    if spot.kind is not None:
        return f"{place}: {_unknown_to_kind(spot, name, [key for key in here if key != 'type'])}"
    text = f"{place}: unknown key {name}"
    if len(path) == 1:
        here.append("extends")
    if meant := _meant(path, here, setting_paths(run)):
        return f"{text}; did you mean `{meant}`?"
    if 0 < len(here) <= 12:
        return f"{text}: known here are {', '.join(here)}"
    recipe = next(name for name, cls in RECIPES.items() if cls is run)
    return f"{text}: `counterpoint configs schema {recipe}` lists them"


def _unknown_to_kind(spot: _Spot, name: str, here: list[str]) -> str:
    key = str(spot.path[-1])
    owners = [f"`{kind}`" for kind, node in spot.kinds.items() if key in node["properties"]]
    allowed = ", ".join(here)
    if owners:
        return f"{name} belongs to type {' and '.join(owners)}, not to `{spot.kind}`, which takes {allowed}"
    close = _closest(key, here)
    meant = f"; did you mean `{dotted((*spot.path[:-1], close))}`?" if close else ""
    return f"unknown key {name}: type `{spot.kind}` takes {allowed}{meant}"


def _closest(word: str, candidates: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, candidates, n=1)), None)


def _meant(path: Key, here: list[str], paths: list[str]) -> str | None:
    """The same key in another section, else a key like it in this one, else one like it in another."""
    key = str(path[-1])
    elsewhere = {path.rpartition(".")[2]: path for path in reversed(paths)}
    if key in elsewhere:
        return elsewhere[key]
    if close := _closest(key, here):
        return dotted((*path[:-1], close))
    close = _closest(key, elsewhere)
    return elsewhere[close] if close else None


def _refused(path: Key, problem: Any, document: Document, where: str) -> str:
    reason = str(problem["ctx"]["error"])
    place = place_of(path, document, where)
    if not path:
        return f"{place}: {reason}"
    value = problem["input"]
    found = "" if isinstance(value, Mapping | BaseModel) else f" is {shown(value)}"
    return f"{place}: `{dotted(path)}`{found}: {reason}"


def _wrong(spot: _Spot, problem: Any, document: Document, run: type[RunSettings], where: str) -> str:
    schema, path, found = _schema_of(run), spot.path, problem["input"]
    place = place_of(path, document, where)
    allowed = _described(spot.node, schema) + (" (finite)" if problem["type"] == "finite_number" else "")
    if problem["type"] in ("missing", "union_tag_not_found"):
        return f"{place}: `{dotted(path)}` is missing: it must be {allowed}"
    if problem["type"] == "union_tag_invalid":
        found = found["type"]
    text = f"{place}: `{dotted(path)}` is {shown(found)}: it must be {allowed}"
    words = [str(word) for option in _options(spot.node, schema) for word in _words(option)]
    meant = _closest(str(found), words)
    return f"{text}; did you mean `{meant}`?" if meant else text


@cache
def _schema_of(run: type[RunSettings]) -> dict[str, Any]:
    return run.model_json_schema()


def _inner(node: dict[str, Any], key: str | int, schema: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a node that a key or an index leads to; None where it leads nowhere."""
    for option in _options(node, schema):
        if isinstance(key, int) and option.get("type") == "array":
            prefix = option.get("prefixItems", [])
            return _resolved(prefix[key] if key < len(prefix) else option.get("items", {}), schema)
        if isinstance(key, str) and key in option.get("properties", {}):
            return _resolved(option["properties"][key], schema)
        names = option.get("propertyNames", {})
        if isinstance(option.get("additionalProperties"), dict) and key in names.get("enum", [key]):
            return _resolved(option["additionalProperties"], schema)
    return None


def _options(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    node = _resolved(node, schema)
    return [_resolved(option, schema) for option in node["anyOf"]] if "anyOf" in node else [node]


def _kinds(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections that a node offers by `type`; none where it offers no such choice."""
    kinds = [_resolved(kind, schema) for option in _options(node, schema) for kind in option.get("oneOf", ())]
    return {word: kind for kind in kinds for word in _words(kind["properties"]["type"])}


def _words(node: dict[str, Any]) -> list[Any]:
    """The only values that a node allows, where it lists them."""
    return node.get("enum") or ([node["const"]] if "const" in node else [])


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def _described(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a part of a JSON schema allows, in words."""
    node = _resolved(node, schema)
    if "anyOf" in node:
        return _described_choice(node["anyOf"], schema)
    if kinds := _kinds(node, schema):
        return f"a section whose `type` is one of {', '.join(kinds)}"
    if words := _words(node):
        return f"one of {', '.join(map(str, words))}" if len(words) > 1 else f"`{words[0]}`"
    kind = node.get("type", "a value")
    if kind == "object":
        keys = list(node.get("properties") or node.get("propertyNames", {}).get("enum", ()))
        return f"a section with {', '.join(keys)}" if 0 < len(keys) <= 6 else "a section of settings"
    if kind == "array":
        return _described_list(node, schema)
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    text = words.get(kind, "text")
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {node[bound]}" for bound, word in bounds.items() if bound in node]
    if node.get("minLength"):
        limits.append("not empty")
    return f"{text}, {' and '.join(limits)}" if limits else text


def _described_choice(options: list[dict[str, Any]], schema: dict[str, Any]) -> str:
    first, last = options[0], options[-1]
    if last.get("items") == first:
        return f"{_described(first, schema)}; or a list of such"
    texts = [_described(option, schema) for option in options]
    return f"{', '.join(texts[:-1])}, or {texts[-1]}"


def _described_list(node: dict[str, Any], schema: dict[str, Any]) -> str:
    if "prefixItems" in node:
        return f"a list of {' and '.join(_described(item, schema) for item in node['prefixItems'])}"
    return f"a list of {_described(node.get('items', {}), schema)}"
