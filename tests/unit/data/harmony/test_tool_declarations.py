"""Tools come in as many shapes as there are APIs; they are all the same tool."""

import json

import pytest

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Notice, Tool
from counterpoint.data.harmony.tool_declarations import read_tools

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}, "required": ["city"]}
WANTED = Tool("weather", "Weather of a city.", SCHEMA)
FUNCTION = {"name": "weather", "description": "Weather of a city."}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (
            [{"type": "function", "function": {**FUNCTION, "parameters": SCHEMA, "strict": True}}],
            "tools[0].function.parameters",
        ),
        ([{"type": "function", **FUNCTION, "parameters": SCHEMA}], "tools[0].parameters"),
        ([{**FUNCTION, "input_schema": SCHEMA}], "tools[0].input_schema"),
        ([{**FUNCTION, "inputSchema": SCHEMA}], "tools[0].inputSchema"),
        ({"tools": [{**FUNCTION, "inputSchema": SCHEMA}]}, "tools.tools[0].inputSchema"),
    ],
)
def test_one_tool_in_every_shape(value, path):
    read = read_tools(value, "tools")
    assert read.tools == (WANTED,)
    assert [(n.kind, n.field) for n in read.notices] == [("schema_lost", f"{path}.properties.city.minLength")]


def test_tools_as_json_text():
    assert read_tools('[{"name": "f"}]', "tools").tools == (Tool("f"),)
    assert read_tools("", "tools").tools == ()
    with pytest.raises(RowError, match=r"tools: not JSON \(") as caught:
        read_tools("[{]", "tools")
    assert caught.value.kind == "tools_not_json"


def test_built_in_tools_are_told_apart():
    read = read_tools(
        [{"type": "code_interpreter", "container": {}}, {"type": "web_search"}, {"name": "python"}], "tools"
    )
    assert read.builtin_tools == ("python", "browser")
    assert [tool.name for tool in read.tools] == ["python"]


def test_fields_that_the_prompt_does_not_show_are_told():
    read = read_tools([{"name": "f", "annotations": {"readOnlyHint": True}}], "tools")
    assert read.notices == (Notice("tool_field", "tools[0].annotations", "not shown in the prompt"),)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (5, "tools"),
        ([5], "tools[0]"),
        ([{}], "tools[0].name"),
        ([{"name": ""}], "tools[0].name"),
        ([{"name": "f", "description": 5}], "tools[0].description"),
        ([{"name": "f", "parameters": "x"}], "tools[0].parameters"),
    ],
)
def test_what_is_no_tool_is_refused(value, field):
    with pytest.raises(RowError) as caught:
        read_tools(value, "tools")
    assert caught.value.field == field


def test_a_schema_that_is_none_is_refused_where_it_is_rewritten():
    value = [{"function": {"name": "f", "parameters": {"properties": 1}}}]
    with pytest.raises(RowError) as caught:
        read_tools(value, "tools", "cleaned")
    assert caught.value.field == "tools[0].function.parameters.properties"


def test_the_same_tool_in_another_place_has_its_own_path():
    tools = [{"name": "f", "parameters": {"type": "dict"}}]
    assert read_tools(tools, "a").notices[-1].field == "a[0].parameters.type"
    assert read_tools([{"name": "g"}, *tools], "b").notices[-1].field == "b[1].parameters.type"


def test_a_schema_that_is_no_object_is_told():
    kinds = [n.kind for n in read_tools([{"name": "f", "parameters": {"type": "string"}}], "tools").notices]
    assert kinds == ["schema_not_object"]


def test_a_default_beyond_64_bits_is_kept_where_the_tool_was_no_json():
    schema = {"type": "object", "properties": {"wei": {"type": "integer", "default": 98765432109876543210123}}}
    (tool,) = read_tools([{"name": "f", "parameters": schema}], "tools").tools
    assert tool.parameters == schema


def test_tools_as_json_texts_by_name_and_with_arguments_listed_by_name():
    tool = {"name": "f", "description": "F", "parameters": {"type": "object"}}
    for value in ([json.dumps(tool)], {"f": {"description": "F", "parameters": {"type": "object"}}}, tool):
        assert read_tools(value, "tools").tools == read_tools([tool], "tools").tools
    listed = {"type": {"type": "str", "default": "b"}, "n": {"type": "int, optional"}, "x": {"type": "List[str]"}}
    read = read_tools([{"name": "f", "parameters": listed}], "tools")
    assert [notice.kind for notice in read.notices] == ["schema_rewritten"]
    assert read.tools[0].parameters == {
        "type": "object",
        "properties": {"type": {"type": "string", "default": "b"}, "n": {"type": "integer"}, "x": {"type": "array"}},
        "required": ["x"],
    }
