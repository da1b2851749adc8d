"""The developer message as gpt-oss's chat template writes it, which transformers, llama.cpp and SGLang obey.

Its TypeScript differs from openai-harmony's: no titles, a comma behind a default, `() => any` for an empty object. It
is held against a real template in tests/unit/data/harmony/test_template_declarations.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Tool

_LONGEST_ITEM = 50
_NUMBERS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_NESTED_INDENT, _DEFAULT_INDENT = " " * 16, " " * 20


def template_developer(instructions: str | None, tools: Sequence[Tool], suffix: str = "") -> str:
    """Content of the developer message; suffix: what else belongs to it. Raises RowError where a template fails."""
    text = f"# Instructions\n\n{instructions}\n\n" if instructions else ""
    if tools:
        text += "# Tools\n\n" + _namespace(tools)
    return f"{text}\n\n{suffix}" if text and suffix else text or suffix


def _namespace(tools: Sequence[Tool]) -> str:
    parts = ["## functions\n\nnamespace functions {\n\n"]
    for number, tool in enumerate(tools):
        parts.append(f"// {tool.description}\ntype {tool.name} = ")
        properties = _get(tool.parameters, "properties")
        if not properties:
            parts.append("() => any;\n\n")
            continue
        if not isinstance(properties, Mapping):
            raise _fails(f"tools[{number}].parameters.properties")
        required = _names(tool.parameters)
        parts.append("(_: {\n")
        for name, spec in properties.items():
            if description := _get(spec, "description"):
                parts.append(f"// {_text(description, f'tools[{number}].parameters.properties.{name}')}\n")
            parts.append(f"{name}{'' if name in required else '?'}: {_type(spec)}")
            if isinstance(spec, Mapping) and "default" in spec:
                parts.append(_default(spec, f"tools[{number}].parameters.properties.{name}"))
            parts.append(",\n")
        parts.append("}) => any;\n\n")
    return "".join(parts) + "} // namespace functions"


def _default(spec: Mapping[str, Any], field: str) -> str:
    default = spec["default"]
    if _get(spec, "enum"):
        return f", // default: {_text(default, field)}"
    if _get(spec, "oneOf"):
        return f"// default: {_text(default, field)}"
    return f", // default: {_json(default)}"


def _type(spec: Any) -> str:
    kind = _get(spec, "type")
    if kind == "array":
        return _array(_get(spec, "items")) + (" | null" if _get(spec, "nullable") else "")
    if isinstance(kind, list) and kind:
        return " | ".join(map(str, kind))
    if variants := _get(spec, "oneOf"):
        return _variants(variants)
    if kind == "string" and (values := _get(spec, "enum")):
        return '"' + '" | "'.join(map(str, values)) + '"'
    if kind == "string":
        return "string | null" if _get(spec, "nullable") else "string"
    if isinstance(kind, str) and kind in _NUMBERS:
        return _NUMBERS[kind]
    return _object(spec) if kind == "object" else "any"


def _array(items: Any) -> str:
    if not items:
        return "any[]"
    kind = _get(items, "type")
    if isinstance(kind, str) and kind in _NUMBERS:
        return f"{_NUMBERS[kind]}[]"
    inner = _type(items)
    return "any[]" if inner == "object | object" or len(inner) > _LONGEST_ITEM else f"{inner}[]"


def _variants(variants: Any) -> str:
    parts: list[str] = []
    for number, variant in enumerate(variants):
        parts.append(_type(variant))
        if description := _get(variant, "description"):
            parts.append(f"// {description}")
        if isinstance(variant, Mapping) and "default" in variant:
            parts.append(f"{_DEFAULT_INDENT}// default: {_json(variant['default'])}")
        if number + 1 < len(variants):
            parts.append(" | \n")
    return "".join(parts)


def _object(spec: Any) -> str:
    properties = _get(spec, "properties")
    if not properties:
        return "object"
    required = _names(spec)
    written = [
        f"{name}{'' if name in required else '?'}: \n{_NESTED_INDENT}{_type(child)}"
        for name, child in properties.items()
    ]
    return "{\n" + ", ".join(written) + "}"


def _names(spec: Any) -> Any:
    return _get(spec, "required") or ()


def _get(spec: Any, key: str) -> Any:
    return spec.get(key) if isinstance(spec, Mapping) else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _fails(field)
    return value


def _fails(field: str) -> RowError:
    return RowError(
        "not_served", field, "the chat template fails on it", "write a string, or choose another data.serving"
    )
