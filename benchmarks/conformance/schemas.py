"""Cases of tool declarations: one property of a JSON schema each, declared as the client sends it."""

from __future__ import annotations

from typing import Any

from building import Category, Json, calls, tool, user

STRING: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
SLOT: Json = {"type": "object", "properties": {"day": STRING}, "required": ["day"]}

VALUES: dict[str, Any] = {
    "a string": STRING,
    "a number": NUMBER,
    "an integer": {"type": "integer"},
    "a boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "an array of strings": {"type": "array", "items": STRING},
    "an array of numbers": {"type": "array", "items": NUMBER},
    "an array of booleans": {"type": "array", "items": {"type": "boolean"}},
    "an array without items": {"type": "array"},
    "an array of arrays": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    "an array of objects": {"type": "array", "items": SLOT},
    "an array of enums": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
    "an array with a length": {"type": "array", "items": STRING, "minItems": 1, "maxItems": 3, "uniqueItems": True},
    "a tuple": {"type": "array", "prefixItems": [STRING, NUMBER]},
    "a nested object": SLOT,
    "a nested object without properties": {"type": "object"},
    "a nested object with empty properties": {"type": "object", "properties": {}},
    "four levels of objects": {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": SLOT}}}},
    "an empty schema": {},
    "the schema true": True,
    "a list of types": {"type": ["string", "null"]},
    "a list of three types": {"type": ["string", "number", "boolean"]},
    "nullable": {"type": "string", "nullable": True},
    "an enum of strings": {"type": "string", "enum": ["c", "f"]},
    "an enum of one": {"type": "string", "enum": ["c"]},
    "an enum without type": {"enum": ["a", "b"]},
    "an enum of integers": {"type": "integer", "enum": [1, 2, 3]},
    "an enum of mixed values": {"enum": ["a", 1, None, True]},
    "an enum with quotes": {"type": "string", "enum": ['say "a"', "it's"]},
    "an enum not in ASCII": {"type": "string", "enum": ["é", "日本"]},
    "an enum with null": {"type": ["string", "null"], "enum": ["a", None]},
    "a constant": {"const": "fixed"},
    "a typed constant": {"type": "string", "const": "fixed"},
    "anyOf of two types": {"anyOf": [STRING, NUMBER]},
    "anyOf with null": {"anyOf": [STRING, {"type": "null"}]},
    "anyOf with null and a default": {"anyOf": [STRING, {"type": "null"}], "default": None, "title": "Note"},
    "anyOf of objects": {"anyOf": [SLOT, {"type": "object", "properties": {"n": NUMBER}}]},
    "oneOf of two types": {"oneOf": [STRING, NUMBER]},
    "oneOf with descriptions": {"oneOf": [{**STRING, "description": "a name"}, {**NUMBER, "description": "an id"}]},
    "oneOf of objects": {"oneOf": [SLOT, {"type": "object", "properties": {"n": NUMBER}}]},
    "oneOf with a default": {"oneOf": [STRING, NUMBER], "default": "x"},
    "allOf": {"allOf": [SLOT, {"type": "object", "properties": {"n": NUMBER}}]},
    "not": {"type": "string", "not": {"enum": ["x"]}},
    "a pattern": {"type": "string", "pattern": "^[a-z]+$"},
    "a format": {"type": "string", "format": "date-time"},
    "a length": {"type": "string", "minLength": 1, "maxLength": 9},
    "a range": {"type": "integer", "minimum": 0, "maximum": 10},
    "a multiple": {"type": "number", "multipleOf": 0.5},
    "a title": {"type": "string", "title": "The City"},
    "examples": {"type": "string", "examples": ["Oslo"]},
    "deprecated": {"type": "string", "deprecated": True},
    "a default string": {"type": "string", "default": "c"},
    "a default of an enum": {"type": "string", "enum": ["c", "f"], "default": "c"},
    "a default number": {"type": "number", "default": 1.5},
    "a default of zero": {"type": "integer", "default": 0},
    "a default boolean": {"type": "boolean", "default": False},
    "a default null": {"type": "string", "default": None},
    "a default list": {"type": "array", "items": STRING, "default": []},
    "a default object": {"type": "object", "properties": {}, "default": {"a": 1}},
    "a description": {"type": "string", "description": "The city."},
    "a description on two lines": {"type": "string", "description": "The city.\nIn English."},
    "a description that ends in a newline": {"type": "string", "description": "The city.\n"},
    "a description with a comment mark": {"type": "string", "description": "a // b /* c */"},
    "a description with quotes": {"type": "string", "description": 'Say "Oslo".'},
    "a description not in ASCII": {"type": "string", "description": "Die Straße 🏙️"},
    "an empty description": {"type": "string", "description": ""},
    "a description of a nested object": {**SLOT, "description": "When."},
    "a description inside a nested object": {
        "type": "object",
        "properties": {"d": {**STRING, "description": "The day."}},
    },
    "a description of an array": {"type": "array", "items": STRING, "description": "Names."},
    "a description of an array's items": {"type": "array", "items": {**STRING, "description": "A name."}},
    "description and default": {"type": "string", "description": "Unit.", "default": "c"},
    "no additional properties": {**SLOT, "additionalProperties": False},
    "typed additional properties": {"type": "object", "additionalProperties": STRING},
    "the type dict": {"type": "dict", "properties": {"a": STRING}},
}

ORDER: Json = {"type": "object", "properties": {"city": STRING, "unit": STRING}}
WHOLE: dict[str, Any] = {
    "no parameters": None,
    "empty parameters": {},
    "no properties": {"type": "object"},
    "empty properties": {"type": "object", "properties": {}},
    "nothing required": ORDER,
    "one of two required": {**ORDER, "required": ["unit"]},
    "all required": {**ORDER, "required": ["city", "unit"]},
    "required before properties": {"required": ["city"], **ORDER},
    "no type at the top": {"properties": {"city": STRING}},
    "the type dict at the top": {"type": "dict", "properties": {"city": STRING}},
    "a description at the top": {**ORDER, "description": "Where."},
    "strict additional properties": {**ORDER, "additionalProperties": False},
    "a reference": {"type": "object", "properties": {"at": {"$ref": "#/$defs/S"}}, "$defs": {"S": SLOT}},
    "a reference of the old form": {
        "type": "object",
        "properties": {"at": {"$ref": "#/definitions/S"}},
        "definitions": {"S": SLOT},
    },
    "a schema address": {"$schema": "https://json-schema.org/draft/2020-12/schema", **ORDER},
    "twenty properties": {"type": "object", "properties": {f"field_{i}": STRING for i in range(20)}},
    "a property with a dash": {"type": "object", "properties": {"x-y": STRING}},
    "a property with a space": {"type": "object", "properties": {"a b": STRING}},
    "a property not in ASCII": {"type": "object", "properties": {"größe": NUMBER}},
    "a property with a dollar": {"type": "object", "properties": {"$top": {"type": "integer"}}},
    "pydantic's titles": {
        "type": "object",
        "title": "Args",
        "properties": {"city": {"title": "City", "type": "string"}},
        "required": ["city"],
    },
}


def schemas() -> Category:
    c = Category("schemas", "how a function's JSON schema is declared")

    def declared(what: str, tools: list[Json], called: str = "f") -> None:
        c.render(what, [user("Call it."), calls((called, "{}"), thinking="Call.")], tools)

    for what, schema in VALUES.items():
        declared(f"a property: {what}", [tool("f", "Does it.", {"type": "object", "properties": {"p": schema}})])
    for what, schema in WHOLE.items():
        declared(f"the parameters: {what}", [tool("f", "Does it.", schema)])
    for what, description in (
        ("missing", None),
        ("empty", ""),
        ("on two lines", "Does it.\nWell."),
        ("with a blank line", "Does it.\n\nWell."),
        ("not in ASCII", "Grüße 👋"),
        ("with Markdown", "**Does** `it`."),
    ):
        declared(f"the description of a function: {what}", [tool("f", description, ORDER)])
    for name in ("get_weather", "getWeather", "f2", "a_very_long_name_of_a_function_that_does_it", "get-weather"):
        declared(f"a name: {name}", [tool(name, "Does it.", ORDER)], name)
    declared("two functions", [tool("f", "Does it.", ORDER), tool("g", "Does that.", ORDER)])
    declared("two functions, the second called", [tool("f", "Does it."), tool("g", "Does that.")], "g")
    declared("six functions", [tool(name, "Does it.", ORDER) for name in "fghijk"])
    declared(
        "a strict function",
        [{"type": "function", "function": {**tool("f", "Does.", ORDER)["function"], "strict": True}}],
    )
    return c
