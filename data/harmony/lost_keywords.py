"""What openai-harmony 0.0.8 does not show of a tool's JSON schema, and what a rewriting changes of it.

It writes a schema as TypeScript and silently skips what it does not know. What is written where was measured keyword by
keyword; tests/unit/data/harmony/test_tool_schema.py measures it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_WRITTEN_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean"})
_JSON_TYPES = _WRITTEN_TYPES | {"null"}
_PYTHON_TYPES = frozenset({"dict", "float", "tuple"})
_META = frozenset({"$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "strict"})
_TEXTS = ("description", "title", "default", "examples", "enum", "const")
_VALUES = frozenset({"default", "const", "enum", "examples"})
_LISTS = ("anyOf", "oneOf", "allOf")


def lost_keywords(schema: Mapping[str, Any], field: str) -> Iterator[str]:
    """Paths of the keywords of a schema that its TypeScript does not show."""
    yield from _lost(schema, field, "top")


def rewritten_keywords(schema: Mapping[str, Any], field: str) -> Iterator[tuple[str, str]]:
    """What `clean` and `writable` express in another way: the first path of each kind, and how."""
    found: dict[str, tuple[str, str]] = {}
    for path, node in _nodes(schema, field):
        for key, how in _REWRITES.items():
            if key in node and key not in found:
                found[key] = (f"{path}.{key}", how)
        if isinstance(node.get("type"), list) and "type" not in found:
            found["type"] = (f"{path}.type", "null among the types becomes nullable, several types become oneOf")
    yield from found.values()


_REWRITES = {
    "$ref": "what it refers to stands in its place",
    "anyOf": "becomes oneOf, null in it nullable",
    "allOf": "is merged into one schema where that is possible",
    "const": "becomes an enum of one value",
}


def multi_line_texts(schema: Mapping[str, Any], field: str) -> Iterator[str]:
    """Paths of the descriptions below the top level whose later lines openai-harmony writes without their `//`."""
    for path, node in _nodes(schema, field):
        for key in ("description", "title"):
            if path != field and isinstance(node.get(key), str) and "\n" in node[key]:
                yield f"{path}.{key}"


def unserved_schemas(schema: Mapping[str, Any], field: str, types: str) -> Iterator[tuple[str, str]]:
    """Paths of what a server refuses or rewrites in a schema, and what it does; types: `ServedForm.types`."""
    for path, node in _nodes(schema, field):
        kinds = node.get("type")
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if types == "json" and isinstance(kind, str) and kind not in _JSON_TYPES:
                yield f"{path}.type", f"it knows no type {kind!r}"
            if types == "python" and isinstance(kind, str) and kind in _PYTHON_TYPES:
                yield f"{path}.type", f"it rewrites the type {kind!r}"
        if types == "json" and node.get("enum") == []:
            yield f"{path}.enum", "it takes no empty enum"
        if types == "json" and kinds == "array" and path != field and "items" not in node:
            yield path, "its template fails on an array without `items`"


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema inside a schema, itself first, each with its path."""
    if not isinstance(node, Mapping):
        return
    yield path, node
    for key in ("items", "additionalProperties"):
        yield from _nodes(node.get(key), f"{path}.{key}")
    for key in ("properties", "$defs", "definitions"):
        inner = node.get(key)
        for name, child in inner.items() if isinstance(inner, Mapping) else ():
            yield from _nodes(child, f"{path}.{key}.{name}")
    for key in _LISTS:
        inner = node.get(key)
        for i, child in enumerate(inner) if isinstance(inner, list) else ():
            yield from _nodes(child, f"{path}.{key}[{i}]")


def _lost(node: Mapping[str, Any], path: str, place: str) -> Iterator[str]:
    for key, value in node.items():
        if key not in _META and not _shown(node, key, value, place):
            yield f"{path}.{key}"
    if node.get("type") == "object" and isinstance(node.get("properties"), Mapping):
        for name, child in node["properties"].items():
            if isinstance(child, Mapping):
                yield from _lost(child, f"{path}.properties.{name}", "property")
    elif node.get("type") == "array" and isinstance(node.get("items"), Mapping):
        yield from _lost(node["items"], f"{path}.items", "items")
    elif "type" not in node and isinstance(node.get("oneOf"), list):
        for i, variant in enumerate(node["oneOf"]):
            if isinstance(variant, Mapping):
                yield from _lost(variant, f"{path}.oneOf[{i}]", "variant")


def _says_null(node: Mapping[str, Any], place: str) -> bool:
    """Whether the text of a node's type holds the word null anyway: openai-harmony then takes it for nullable."""
    keys = {"type", "properties", "items", "enum", "oneOf"} | (
        {"description"} if node.get("type") == "object" else set()
    )
    inside = {key: value for key, value in node.items() if key in keys}
    return any("null" in text for text in _written(inside, place))


def _written(node: Mapping[str, Any], place: str) -> Iterator[str]:
    """Texts of a node that openai-harmony writes."""
    for key, value in node.items():
        if not _shown(node, key, value, place):
            continue
        if key == "nullable" and value is True:
            yield "null"
        elif key == "type" and isinstance(value, list):
            yield from map(str, value)
        elif key in _TEXTS:
            yield json.dumps(value, ensure_ascii=False)
        elif key == "properties" and isinstance(value, Mapping):
            for name, child in value.items():
                yield name
                if isinstance(child, Mapping):
                    yield from _written(child, "property")
        elif key == "items" and isinstance(value, Mapping):
            yield from _written(value, "items")
        elif key == "oneOf" and isinstance(value, list):
            for variant in value:
                if isinstance(variant, Mapping):
                    yield from _written(variant, "variant")


def _shown(node: Mapping[str, Any], key: str, value: Any, place: str) -> bool:
    """Whether openai-harmony writes `key` of a node in this place, or it has no effect anyway."""
    kind = node.get("type")
    if key == "type":
        return bool(kind) if isinstance(kind, list) else isinstance(kind, str) and kind in _WRITTEN_TYPES
    if value in ({}, [], "", False) or (value is None and key not in _VALUES):
        return True
    if key == "properties":
        return kind == "object"
    if key == "required":
        return kind == "object" and isinstance(node.get("properties"), Mapping)
    if key == "items":
        return kind == "array" and isinstance(value, Mapping)
    if key == "oneOf":
        return "type" not in node
    if key == "enum":
        return kind == "string" and isinstance(value, list) and all(isinstance(v, str) for v in value)
    if key == "description":
        return place in ("property", "variant") or kind == "object"
    if key in ("title", "examples"):
        return place == "property"
    if key == "default":
        return place in ("property", "variant")
    if key == "nullable" and isinstance(kind, list) and "null" in kind:
        return True  # said twice
    if key == "nullable":
        written = place == "variant" or (place == "property" and "oneOf" not in node)
        return written and not _says_null(node, place)
    return False
