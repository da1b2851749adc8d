"""Arguments of calls keep what they were: digits, order, nulls that their schema requires."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.rows.strict_json import loads

BIG = '{"wei":98765432109876543210123,"x":12345678901234567890.123456789,"price":0.1}'
ASKED = {"role": "user", "content": "Q"}


def called(conversation):
    assert isinstance(conversation, Conversation)
    (text,) = [message.content for message in conversation.messages if message.is_call]
    return text


@pytest.mark.parametrize(
    "message",
    [
        f'{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{BIG}}}}}]}}',
        f'{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{json.dumps(BIG)}}}}}]}}',
        f'{{"from":"function_call","value":{json.dumps(f"""{{"name":"f","arguments":{BIG}}}""")}}}',
        f'{{"role":"assistant","content":{json.dumps(f"""<tool_call>{{"name":"f","arguments":{BIG}}}</tool_call>""")}}}',
        f'{{"role":"assistant","content":[{{"type":"tool_use","id":"a","name":"f","input":{BIG}}}]}}',
    ],
)
def test_numbers_of_any_size_keep_their_digits_where_they_became_9_87e22(message):
    row = loads(f'{{"messages":[{json.dumps(ASKED)},{message}]}}'.encode())
    assert called(convert(row)) == BIG


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "default": 98765432109876543210123}}}
DECLARED = json.dumps({"type": "function", "function": {"name": "f", "description": "F", "parameters": SCHEMA}})


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {"role": "assistant", "content": "A"}], "tools": f"[{DECLARED}]"},
        {"messages": [ASKED, {"role": "assistant", "content": "A"}], "tools": [DECLARED]},
        {"messages": [{"role": "system", "content": f"<tools>[{DECLARED}]</tools>"}, ASKED, {"role": "assistant", "content": "A"}]},
        {"messages": [{"role": "system", "content": f"<tools>{DECLARED}\n{DECLARED}</tools>"}, ASKED, {"role": "assistant", "content": "A"}]},
    ],
)  # fmt: skip
def test_schemas_given_as_text_keep_their_digits(row):
    conversation = convert(row)
    assert isinstance(conversation, Conversation)
    (tool,) = conversation.tools
    assert tool.parameters == SCHEMA


def test_messages_and_results_given_as_text_keep_their_digits():
    call = f'{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{BIG}}}}}]}}'
    assert called(convert({"messages": f"[{json.dumps(ASKED)},{call}]"})) == BIG
    turns = [
        {"role": "assistant", "content": '<tool_call>{"name":"f","arguments":{}}</tool_call>'},
        {"role": "user", "content": f'<tool_response>{{"name":"f","content":{BIG}}}</tool_response>'},
        {"role": "assistant", "content": "A"},
    ]
    conversation = convert({"messages": [ASKED, *turns]})
    assert isinstance(conversation, Conversation)
    assert [message.content for message in conversation.messages if message.role == "tool"] == [BIG]


def test_arguments_that_are_a_text_keep_their_bytes():
    for text in ('{ "b" : 1.0,\n "a":0.1000 }', '{"u":"\\u00fc","n":1E400}'):
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
        assert called(convert({"messages": [ASKED, call]})) == text


@pytest.mark.parametrize("unit", [{"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}])
def test_a_null_that_the_schema_requires_is_there_after_arrow_where_it_was_lost(tmp_path, unit):
    def tool(required):
        properties = {"unit": unit, "q": {"type": "string"}, "in": {"type": "object", "properties": {"unit": unit}}}
        properties["in"]["required"] = required
        return json.dumps(
            [{"name": "f", "parameters": {"type": "object", "properties": properties, "required": required}}]
        )

    arguments = {"unit": None, "q": "x", "pad": None, "in": {"unit": None, "n": 1}}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    rows = [{"messages": [ASKED, call], "tools": tool(required)} for required in (["unit", "q"], ["q"])]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_conversations([str(tmp_path / "a.parquet")])
    assert called(first) == '{"unit":null,"q":"x","in":{"unit":null,"n":1}}'
    assert called(second) == '{"q":"x","in":{"n":1}}'
