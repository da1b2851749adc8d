"""JSON schemas of tools, rewritten for `data.tool_schemas: cleaned`.

`clean` makes a valid schema out of what data sets hold, and `writable` expresses the same in the keywords that
openai-harmony 0.0.8 writes (`lost_keywords` has what it does not).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice

_ALIASES = {
    "dict": "object",
    "map": "object",
    "hashmap": "object",
    "struct": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "str": "string",
    "text": "string",
    "char": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "arraylist": "array",
    "none": "null",
    "nonetype": "null",
}
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_META = frozenset({"$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "strict"})
_TEXTS = ("description", "title", "default", "examples", "enum", "const")
_VALUES = frozenset({"default", "const", "enum", "examples"})
_LISTS = ("anyOf", "oneOf", "allOf")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("description", "title"), str),
    **dict.fromkeys(("enum", "examples", *_LISTS), list),
    "nullable": bool,
}
_MAX_NODES = 20_000
_MAX_DEPTH = 60


def clean(schema: Mapping[str, Any], field: str) -> tuple[dict[str, Any], list[Notice]]:
    """A valid schema with the meaning of `schema`, and what was changed. Raises RowError.

    `$ref` is inlined (a cycle becomes "anything"), type names of other languages are translated, missing types are
    inferred, line breaks in texts are collapsed: openai-harmony lets them escape their comment.
    """
    cleaner = _Cleaner(schema, field)
    return cleaner.node(schema, field, ()), cleaner.notices


class _Cleaner:
    def __init__(self, root: Mapping[str, Any], field: str) -> None:
        self.root = root
        self.field = field
        self.notices: list[Notice] = []
        self.nodes = 0

    def notice(self, kind: str, path: str, detail: str) -> None:
        self.notices.append(Notice(kind, path, detail))

    def node(self, value: Any, path: str, refs: tuple[str, ...]) -> dict[str, Any]:
        self.nodes += 1
        if isinstance(value, bool):
            return {}
        if not isinstance(value, Mapping):
            raise RowError("tool_schema", path, "is not a JSON schema", "write an object")
        if self.nodes > _MAX_NODES or path.count(".") > _MAX_DEPTH * 2:
            raise RowError("tool_schema", self.field, "is too large or too deep", "write a smaller JSON schema")
        if isinstance(value.get("$ref"), str):
            return self._reference(value, path, refs)
        out = {k: v for k, v in value.items() if k not in _META and (v is not None or k in _VALUES)}
        self._kinds(out, path)
        self._type(out, path)
        self._texts(out, path)
        self._children(out, path, refs)
        return out

    def _reference(self, value: Mapping[str, Any], path: str, refs: tuple[str, ...]) -> dict[str, Any]:
        name = value["$ref"]
        siblings = {k: v for k, v in value.items() if k != "$ref"}
        target = _resolve(self.root, name)
        if name in refs or target is None:
            why = "refers to itself" if name in refs else "refers to nothing in the schema"
            self.notice("schema_ref", f"{path}.$ref", f"{name[:80]} {why}: anything is allowed there")
            return self.node(siblings, path, refs)
        if not isinstance(target, Mapping):
            return self.node(target, path, refs)
        return self.node({**target, **siblings}, path, (*refs, name))

    def _kinds(self, out: dict[str, Any], path: str) -> None:
        """Keywords that hold what no schema has there are left out."""
        for key, kind in _KINDS.items():
            if key in out and not isinstance(out[key], kind):
                self.notice("schema_keyword", f"{path}.{key}", "holds what no JSON schema has there: left out")
                del out[key]

    def _type(self, out: dict[str, Any], path: str) -> None:
        given = out.get("type")
        if isinstance(given, list):
            names = [self._named(name, f"{path}.type") for name in given]
            kept = [name for name in names if name is not None]
            if kept and len(kept) == len(names):
                out["type"] = kept if len(kept) > 1 else kept[0]
            else:
                del out["type"]
        elif given is not None:
            name = self._named(given, f"{path}.type")
            if name is None:
                del out["type"]
            else:
                out["type"] = name
        if "type" not in out and (inferred := _inferred(out)) is not None:
            out["type"] = inferred
            self.notice("schema_type", f"{path}.type", f"missing: {inferred} was inferred")

    def _named(self, name: Any, path: str) -> str | None:
        if not isinstance(name, str):
            raise RowError("tool_schema", path, "is not the name of a type", "write object, string, number, ...")
        if name in _TYPES:
            return name
        lower = name.strip().lower()
        found = lower if lower in _TYPES else _ALIASES.get(lower)
        read = f"was read as {found}" if found else "is no JSON type: anything is allowed"
        self.notice("schema_type", path, f"{name[:40]!r} {read}")
        return found

    def _texts(self, out: dict[str, Any], path: str) -> None:
        for key in _TEXTS:
            value = out.get(key)
            texts = value if isinstance(value, list) else [value]
            if any(isinstance(text, str) and _breaks(text) for text in texts):
                one_line = [" ".join(text.split()) if isinstance(text, str) else text for text in texts]
                out[key] = one_line if isinstance(value, list) else one_line[0]
                self.notice("schema_line_break", f"{path}.{key}", "line breaks were collapsed into spaces")

    def _children(self, out: dict[str, Any], path: str, refs: tuple[str, ...]) -> None:
        properties = out.get("properties")
        if properties is not None:
            if not isinstance(properties, Mapping):
                raise RowError("tool_schema", f"{path}.properties", "is not an object", "write name: schema")
            out["properties"] = self._properties(properties, out, path, refs)
        required = out.get("required")
        if required is not None and not (isinstance(required, list) and all(isinstance(r, str) for r in required)):
            self.notice("schema_required", f"{path}.required", "is not a list of names: left out")
            del out["required"]
        for key in ("items", "additionalProperties"):
            if isinstance(out.get(key), Mapping):
                out[key] = self.node(out[key], f"{path}.{key}", refs)
        for key in _LISTS:
            if isinstance(out.get(key), list):
                out[key] = [self.node(v, f"{path}.{key}[{i}]", refs) for i, v in enumerate(out[key])]

    def _properties(
        self, properties: Mapping[str, Any], out: dict[str, Any], path: str, refs: tuple[str, ...]
    ) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, child in properties.items():
            where = f"{path}.properties.{name}"
            if _breaks(name):
                raise RowError("tool_schema", where[:200], "a line break in a property's name", "rename the property")
            if child is None:
                continue
            if isinstance(child, Mapping) and isinstance(child.get("required"), bool):
                names = out.get("required")
                listed = list(names) if isinstance(names, list) else []
                if child["required"] and name not in listed:
                    out["required"] = [*listed, name]
                child = {k: v for k, v in child.items() if k != "required"}
                self.notice("schema_required", f"{where}.required", "true or false was moved to the object's list")
            kept[name] = self.node(child, where, refs)
        return kept


def _resolve(root: Mapping[str, Any], name: str) -> Any:
    """What a local reference (`#/$defs/x`) points to; None where nothing."""
    if not name.startswith("#"):
        return None
    value: Any = root
    for part in name[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _inferred(node: Mapping[str, Any]) -> str | None:
    if isinstance(node.get("properties"), Mapping):
        return "object"
    if isinstance(node.get("items"), Mapping):
        return "array"
    values = node["enum"] if isinstance(node.get("enum"), list) else [node["const"]] if "const" in node else []
    if values and all(isinstance(value, str) for value in values):
        return "string"
    return None


def _breaks(text: str) -> bool:
    return len(text.splitlines()) > 1 or text[-1:] in _LINE_ENDS


_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


def cleaned_parameters(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The parameters of a tool as `data.tool_schemas: cleaned` declares them: clean, and in the keywords that
    openai-harmony writes. Raises RowError."""
    return writable(clean(schema, "parameters")[0]) if schema else None


def writable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A clean schema in the keywords that openai-harmony writes: for the prompt, not for checking arguments.

    anyOf -> oneOf, null among types or variants -> nullable, const -> enum, one variant -> itself, allOf -> merged.
    """
    node = _merged(dict(schema))
    if "const" in node and "enum" not in node:
        node["enum"] = [node.pop("const")]
    nullable = _split_null_type(node)
    if isinstance(node.get("enum"), list) and None in node["enum"]:
        node["enum"] = [value for value in node["enum"] if value is not None]
        nullable = True
    if isinstance(node.get("properties"), Mapping):
        node["properties"] = {name: writable(child) for name, child in node["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            node[key] = writable(node[key])
    node = _variants(node)
    if nullable:
        node["nullable"] = True
    return _null_to_last_variant(node)


def _null_to_last_variant(node: dict[str, Any]) -> dict[str, Any]:
    """openai-harmony does not write `nullable` next to `oneOf`, but it does on a variant."""
    variants = node.get("oneOf")
    if node.get("nullable") is not True or "type" in node or not isinstance(variants, list) or not variants:
        return node
    last = _null_to_last_variant({**variants[-1], "nullable": True})
    return {**{k: v for k, v in node.items() if k != "nullable"}, "oneOf": [*variants[:-1], last]}


def _merged(node: dict[str, Any]) -> dict[str, Any]:
    """allOf merged into the node itself, where no keyword has two different values."""
    parts = node.get("allOf")
    if not isinstance(parts, list) or not parts:
        return node
    out = {key: value for key, value in node.items() if key != "allOf"}
    for part in (_merged(dict(part)) for part in parts):
        for key, value in part.items():
            if key == "properties" and isinstance(out.get(key), Mapping):
                out[key] = {**out[key], **value}
            elif key == "required" and isinstance(out.get(key), list):
                out[key] = list(dict.fromkeys((*out[key], *value)))
            elif key in ("description", "title", "default", "examples"):
                out.setdefault(key, value)
            elif out.setdefault(key, value) != value:
                return node
    return out


def _split_null_type(node: dict[str, Any]) -> bool:
    """Takes null out of a list of types; types that are more than a name become variants."""
    types = node.get("type")
    if not isinstance(types, list):
        return False
    kept = [name for name in types if name != "null"]
    if len(kept) == 1:
        node["type"] = kept[0]
    elif {"object", "array"} & set(kept) and "oneOf" not in node and "anyOf" not in node:
        del node["type"]
        node["oneOf"] = [_only(node, name) for name in kept]
        for key in ("properties", "required", "items"):
            node.pop(key, None)
    else:
        node["type"] = kept
    return len(kept) < len(types)


def _only(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    keys = {"object": ("properties", "required"), "array": ("items",)}.get(name, ())
    return {"type": name, **{key: node[key] for key in keys if key in node}}


def _variants(node: dict[str, Any]) -> dict[str, Any]:
    """anyOf and oneOf as oneOf without null; a single variant takes the node's place. Next to a type they are
    hidden."""
    key = "oneOf" if isinstance(node.get("oneOf"), list) else "anyOf"
    variants = node.get(key)
    if not isinstance(variants, list) or not variants:
        return node
    if "type" in node or "properties" in node:
        # openai-harmony would write the variants and drop the type that they narrow.
        return {"anyOf" if k == "oneOf" else k: v for k, v in node.items() if k != "anyOf" or key == "anyOf"}
    kept = [writable(variant) for variant in variants if variant.get("type") != "null"]
    outer = {k: v for k, v in node.items() if k != key}
    if len(kept) < len(variants):
        outer["nullable"] = True
    if len(kept) == 1:
        return {**kept[0], **outer}
    return {**outer, "oneOf": kept} if kept else outer
