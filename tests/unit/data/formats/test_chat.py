"""One reader of chats: every name, every shape, every key means the same wherever it stands."""

import json

import pytest
from read_rows import ANSWERED, ASKED, read

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Message

THOUGHT = Message("assistant", "T", "analysis")
TOOL = {"name": "f", "description": "F", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}


def kinds(conversation):
    return [notice.kind for notice in conversation.notices if notice.kind != "missing_thinking"]


def chat(**fields):
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], **fields}


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"conversation": [{"role": "human", "content": "Q"}, {"role": "ai", "content": "A"}]},
        {"dialogue": [{"role": "User", "content": "Q"}, {"role": "Assistant", "content": "A"}]},
        {"trajectory": [{"role": "user", "content": "Q"}, {"role": "model", "content": "A"}]},
        {"items": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"messages": [{"type": "human", "content": "Q"}, {"type": "ai", "content": "A"}]},
        {"contents": [{"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}]},
        {"conversation": [{"human": "Q", "assistant": "A"}]},
        [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}],
        {"messages": [{"role": "user", "content": "Q"}], "response": "A"},
        {"messages": [{"role": "user", "content": "Q"}], "choices": [{"message": {"role": "assistant", "content": "A"}}]},
        {"messages": [{"role": "user", "content": "Q"}], "output": {"role": "assistant", "content": "A"}},
    ],
)  # fmt: skip
def test_a_chat_is_read_whatever_holds_it_where_it_was_refused_or_a_prompt(row):
    conversation = read(row)
    assert conversation.messages == (ASKED, ANSWERED)
    assert kinds(conversation) == []


@pytest.mark.parametrize(
    "message",
    [
        {"content": "A", "thinking": "T"},
        {"content": "A", "reasoning_content": "T"},
        {"content": "A", "reasoning_details": [{"type": "reasoning.text", "text": "T"}]},
        {"content": "A", "reasoning": "T", "reasoning_details": [{"type": "reasoning.text", "text": "T"}]},
        {"content": "A", "thinking_blocks": [{"type": "thinking", "thinking": "T", "signature": "s"}]},
        {"content": [{"type": "thinking", "thinking": "T"}, {"type": "text", "text": "A"}]},
        {"content": [{"type": "reasoning", "text": "T"}, {"type": "text", "text": "A"}]},
        {"content": [{"type": "reasoning", "value": "T"}, {"type": "text", "value": "A"}]},
        {"content": "<think>T</think>A"},
    ],
)
@pytest.mark.parametrize(
    "beside", [{}, {"system": "S"}, {"tools": [{"name": "f", "input_schema": {"type": "object"}}]}]
)
def test_reasoning_is_analysis_wherever_it_stands_where_a_row_with_a_system_or_input_schema_lost_it(message, beside):
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", **message}], **beside}
    conversation = read(row)
    assert conversation.messages == (ASKED, THOUGHT, ANSWERED)
    assert conversation.instructions == beside.get("system")
    assert kinds(conversation) == []
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", **message}]
    assert read({"conversations": turns}).messages == (ASKED, THOUGHT, ANSWERED)


CALL = Message("assistant", '{"q":"x"}', "commentary", "functions.f", content_type="<|constrain|>json")
RESULT = Message("tool", "4", "commentary", name="functions.f")
ARGUMENTS = {"q": "x"}


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ({"role": "tool_call", "content": '{"name": "f", "arguments": {"q": "x"}}'}, {"role": "tool_response", "content": "4"}),
        ({"from": "function_call", "value": '[{"name": "f", "arguments": {"q": "x"}}]'}, {"from": "observation", "value": "4"}),
        ({"role": "assistant", "tool_calls": [{"id": "a", "name": "f", "args": ARGUMENTS}]}, {"role": "ipython", "content": "4"}),
        ({"role": "assistant", "tool_calls": json.dumps([{"function": {"name": "f", "arguments": ARGUMENTS}}])}, {"role": "tool", "content": "4"}),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": '{"q":"x"}'}}, {"role": "function", "name": "f", "content": "4"}),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": ARGUMENTS}]}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "4"}]}),
        ({"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "a", "toolName": "f", "args": ARGUMENTS}]}, {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "a", "toolName": "f", "result": "4"}]}),
        ({"role": "model", "parts": [{"functionCall": {"name": "f", "args": ARGUMENTS}}]}, {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": "4"}}]}),
        ({"role": "assistant", "content": '<tool_call>{"name": "f", "arguments": {"q": "x"}}</tool_call>'}, {"role": "tool", "content": "<tool_response>4</tool_response>"}),
        ({"role": "assistant", "content": "<tool_call>\n<function=f>\n<parameter=q>\nx\n</parameter>\n</function>\n</tool_call>"}, {"role": "tool", "content": "4"}),
    ],
)  # fmt: skip
def test_a_call_is_a_call_in_every_form(call, result):
    asked = {"role": "user", "content": "Q"}
    row = {"messages": [asked, call, result, {"role": "assistant", "content": "A"}], "tools": [TOOL]}
    assert read(row).messages == (ASKED, CALL, RESULT, ANSWERED)


def test_the_closing_tag_inside_of_an_argument_and_a_call_in_a_block_of_code():
    text = '<tool_call>{"name": "f", "arguments": {"q": "</tool_call>"}}</tool_call>'
    conversation = read({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]})
    assert conversation.messages[1].content == '{"q":"</tool_call>"}'
    quoted = f"So:\n```\n{text}\n```"
    conversation = read({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": quoted}]})
    assert conversation.messages[1] == Message("assistant", quoted, "final")


@pytest.mark.parametrize(("result", "text"), [({"t": 1}, '{"t":1}'), ([{"t": 1}], '[{"t":1}]'), (4.5, "4.5")])
def test_a_result_that_is_no_text_is_written_as_json_where_an_object_was_an_unknown_part_of_type_null(result, text):
    call = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    answer = {"role": "tool", "tool_call_id": "a", "content": result}
    conversation = read({"messages": [{"role": "user", "content": "Q"}, call, answer]})
    assert conversation.messages[2].content == text
    assert "object_result" in kinds(conversation)


@pytest.mark.parametrize("key", ["system", "system_prompt", "instructions", "system_message"])
def test_a_system_text_beside_the_messages_is_the_instructions_where_it_was_an_unused_field(key):
    assert read(chat(**{key: "S"})).instructions == "S"
    repeated = chat(**{key: "S"})
    repeated["messages"] = [{"role": "system", "content": "S"}, *repeated["messages"]]
    conversation = read(repeated)
    assert (conversation.instructions, conversation.messages) == ("S", (ASKED, ANSWERED))
    assert kinds(conversation) == ["same_system"]


def test_tools_are_objects_texts_or_objects_by_name():
    parameters = TOOL["parameters"]
    for tools in ([TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], {"f": TOOL}, {"function": TOOL}):
        (tool,) = read(chat(tools=tools)).tools
        assert (tool.name, tool.parameters) == ("f", parameters)
    assert read(chat(tools="")).tools == read(chat(tools="[]")).tools == ()


def test_arguments_listed_by_name_are_a_schema_where_an_argument_called_type_cost_the_row():
    listed = {
        "type": {"type": "str", "description": "D", "default": "b"},
        "n": {"type": "int, optional"},
        "x": {"type": "List[str]"},
    }
    (tool,) = read(chat(tools=[{"name": "f", "parameters": listed}])).tools  # fmt: skip
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "type": {"type": "string", "description": "D", "default": "b"},
            "n": {"type": "integer"},
            "x": {"type": "array"},
        },
        "required": ["x"],
    }


def test_columns_of_media_cost_the_row_where_they_were_unused_and_empty_ones_do_not():
    with pytest.raises(RowError, match="holds image, which gpt-oss cannot read") as caught:
        read(chat(images=["a.jpg"]))
    assert (caught.value.kind, caught.value.field) == ("media", "images")
    assert read(chat(images=[], audios=None)).messages == (ASKED, ANSWERED)


def test_a_name_that_bears_meaning_is_told_as_such_and_others_with_a_sample():
    conversation = read(chat(solution="S", topic="x" * 100, tool_list=["a"]))
    told = {notice.field: (notice.kind, notice.detail) for notice in conversation.notices}
    assert told["solution"] == ("unread_field", 'is the name of an answer, and was not read here: "S"')
    assert told["tool_list"][0] == "unread_field"
    assert told["topic"] == ("unused_field", f'kept as metadata, not rendered: "{"x" * 56}...')


def test_only_the_answer_that_stands_apart_is_trained():
    messages = [*chat()["messages"], {"role": "user", "content": "Q"}]
    conversation = read(
        {"messages": messages, "response": {"choices": [{"message": {"content": "B", "reasoning": "T"}}]}}
    )
    assert [(m.content, m.weight) for m in conversation.messages if m.role == "assistant"] == [
        ("A", 0.0),
        ("T", 1.0),
        ("B", 1.0),
    ]


def test_a_message_of_langchain_is_the_message_that_it_holds():
    def lc(name, **kwargs):
        return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": kwargs}

    messages = [
        lc("HumanMessage", content="Q", type="human"),
        lc("AIMessage", content="A", additional_kwargs={"reasoning_content": "T"}),
    ]
    assert read({"messages": messages}).messages == (ASKED, THOUGHT, ANSWERED)
