"""Tool declarations of chat templates against a real one: gpt-oss's, which TRL ships, in transformers' own jinja."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import texts
from transformers.utils.chat_template_utils import _compile_jinja_template

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.template_declarations import template_developer

assert trl.__file__
TEMPLATE = _compile_jinja_template(
    (Path(trl.__file__).parent / "chat_templates" / "gptoss.jinja").read_text(encoding="utf-8")
)
_BEGINS, _ENDS = "<|start|>developer<|message|>", "<|end|><|start|>user<|message|>"


def by_template(instructions: str, tools: list[Tool]) -> str:
    """The developer message of the template. Raises jinja2's or Python's error where the template fails."""
    declared = [{"function": {"name": t.name, "description": t.description, "parameters": t.parameters}} for t in tools]
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": "\0\0"}]
    text = TEMPLATE.render(messages=messages, tools=declared, add_generation_prompt=True)
    return text[text.index(_BEGINS) + len(_BEGINS) : text.rindex(f"{_ENDS}\0\0")]


scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
names = st.sampled_from(["a", "b_c", "d-e", "é", "items", "required", "type", ""])
TYPES = ["string", "number", "integer", "boolean", "null", "object", "array", "dict", "float", ""]


def nodes(children: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas, well-formed and not: every keyword that the template reads, and some that it does not."""
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), max_size=3),
            "description": texts,
            "title": texts,
            "default": values,
            "nullable": st.booleans(),
            "enum": st.lists(texts | st.integers() | st.none(), max_size=3),
            "oneOf": st.lists(children, max_size=3),
            "anyOf": st.lists(children, max_size=2),
            "items": children,
            "properties": st.dictionaries(names, children, max_size=3),
            "required": st.lists(names, max_size=3) | st.none(),
            "$ref": st.just("#/$defs/X"),
            "const": values,
        },
    )


schemas = st.recursive(st.just({}) | nodes(st.just({"type": "string"})), nodes, max_leaves=6)
parameters = (
    st.none()
    | schemas
    | st.dictionaries(names, schemas, max_size=3).map(lambda properties: {"type": "object", "properties": properties})
)
tools = st.lists(st.builds(Tool, name=names, description=texts, parameters=parameters), min_size=1, max_size=2)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.just("") | texts, tools)
def test_declarations_are_those_of_the_template(instructions: str, declared: list[Tool]) -> None:
    try:
        wanted = by_template(instructions, declared)
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(RowError) as caught:
            template_developer(instructions, declared)
        assert caught.value.kind == "not_served"
        return
    assert template_developer(instructions, declared) == wanted


GOLDEN = Path(__file__).parents[3] / "golden" / "served" / "requests.jsonl"


def test_declarations_of_the_requests_are_those_of_the_template() -> None:
    """The schemas of the golden requests, whatever template their ids were made with."""
    compared = 0
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        functions = [tool["function"] for tool in json.loads(line)["request"].get("tools", ())]
        declared = [Tool(f["name"], f.get("description", ""), f.get("parameters")) for f in functions]
        if declared:
            assert template_developer("Be kind.", declared) == by_template("Be kind.", declared)
            compared += 1
    assert compared > 150
