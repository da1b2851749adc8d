"""The developer message and the arguments of calls as Ollama writes them: a Go template over Go values.

Held against Ollama's own code by tests/golden/served/ollama-*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Tool

BUILTIN = frozenset({"python", "browser.search", "browser.open", "browser.find"})
_IDENTIFIER = re.compile(r"(?!\d)(?:\w|\$)+")
_ESCAPED = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
_ESCAPES = re.compile("[<>&\u2028\u2029]")
_LARGEST, _SMALLEST = 1e21, 1e-6


def ollama_developer(instructions: str | None, tools: Sequence[Tool], suffix: str = "") -> str:
    """Content of the developer message; suffix: what else belongs to it. Raises RowError where Ollama fails, or where
    it would declare a tool under another name."""
    parts: list[str] = []
    if tools:
        parts.append("# Tools\n\n## functions\n\nnamespace functions {")
        parts += [_declared(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
        parts.append("\n\n} // namespace functions")
    if instructions:
        parts.append(f"\n\n# Instructions\n\n{instructions}")
    text = "".join(parts)
    return f"{text}\n\n{suffix}" if text and suffix else text or suffix


def _declared(tool: Tool, field: str) -> str:
    if tool.name in BUILTIN:
        raise _refused(f"{field}.name", f"ollama takes {tool.name} for a built-in tool")
    if not _IDENTIFIER.fullmatch(tool.name):
        raise _refused(f"{field}.name", f"ollama declares {tool.name} under another name")
    described = f"\n// {tool.description}" if tool.description else ""
    properties = (tool.parameters or {}).get("properties")
    if not properties:
        return f"\n{described}\ntype {tool.name} = () => any;"
    if not isinstance(properties, Mapping):
        raise _refused(f"{field}.parameters.properties", "ollama refuses it")
    lines = [_property(name, properties[name], f"{field}.parameters.properties") for name in sorted(properties)]
    return f"\n{described}\ntype {tool.name} = (_: {{{''.join(lines)}\n}}) => any;"


def _property(name: str, spec: Any, field: str) -> str:
    kinds = spec.get("type") if isinstance(spec, Mapping) else None
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise _refused(f"{field}.{name}", "ollama's template fails on a property without a type")
    description = spec.get("description")
    if not isinstance(description, str | None):
        raise _refused(f"{field}.{name}.description", "ollama refuses it")
    described = f"\n  // {description}" if description else ""
    return f"{described}\n  {name}: {' | '.join(kinds)},"


def _refused(field: str, what: str) -> RowError:
    return RowError("not_served", field, what, "rewrite the tool, or choose another data.serving")


def go_json(value: Any) -> str:
    """`value` as Go's encoding/json writes what it has read: keys sorted, numbers as 64-bit floats, `<>&` escaped."""
    if isinstance(value, Mapping):
        items = sorted(value.items())
        return "{" + ",".join(f"{go_json(key)}:{go_json(item)}" for key, item in items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(go_json, value)) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _go_number(float(value))
    return _ESCAPES.sub(lambda found: _ESCAPED[found[0]], json.dumps(value, ensure_ascii=False))


def _go_number(value: float) -> str:
    if value == 0:
        return "-0" if str(value).startswith("-") else "0"
    if _SMALLEST <= abs(value) < _LARGEST:
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = exponent + len(digits) - 1
    first, rest = str(digits[0]), "".join(map(str, digits[1:]))
    return f"{'-' * sign}{first}{'.' * bool(rest)}{rest}e{'-' if power < 0 else '+'}{abs(power):02d}".replace(
        "e-0", "e-"
    )
