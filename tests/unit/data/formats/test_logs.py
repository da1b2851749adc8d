"""Logs: what was asked is context, what was answered is trained; what is no row is told by its name."""

import pytest
from read_rows import ANSWERED, ASKED, read

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.convert import convert

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
ITEMS = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]}]


def lc(name, **kwargs):
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": kwargs}


@pytest.mark.parametrize(
    "row",
    [
        {"request": {"messages": [Q]}, "response": {"choices": [{"message": A}]}},
        {"custom_id": "1", "method": "POST", "url": "/v1", "body": {"messages": [Q]}, "response": {"status_code": 200, "body": {"choices": [{"message": A}]}}},
        {"input": {"messages": [Q]}, "output": A},
        {"inputs": {"messages": [[lc("HumanMessage", content="Q", type="human")]]}, "outputs": {"generations": [[{"text": "A", "message": lc("AIMessage", content="A")}]]}},
        {"inputs": {"question": "Q"}, "outputs": {"answer": "A"}},
        {"item": {"messages": [Q, A]}},
        {"request": {"input": "Q"}, "response": {"output": ITEMS}},
        {"input": "Q", "response": {"output": ITEMS}},
    ],
)  # fmt: skip
def test_a_log_is_a_row_where_no_format_had_its_fields(row):
    assert read(row).messages == (ASKED, ANSWERED)


@pytest.mark.parametrize(
    "row",
    [
        {"input": "Q", "tools": [TOOL], "instructions": "S", "response": {"output": ITEMS}},
        {"input": "Q", "tools": [], "response": {"output": ITEMS, "tools": [TOOL], "instructions": "S"}},
        {"input": "Q", "tools": [TOOL], "instructions": "S", "response": {"output": ITEMS, "tools": [TOOL], "instructions": "S", "reasoning": {"effort": None}}},
        {"responses_create_params": {"input": "Q", "tools": []}, "response": {"output": ITEMS, "tools": [TOOL], "instructions": "S"}},
    ],
)  # fmt: skip
def test_tools_and_instructions_come_from_the_request_or_its_response(row):
    conversation = read(row)
    assert [tool.name for tool in conversation.tools] == ["f"]
    assert (conversation.instructions, conversation.messages) == ("S", (ASKED, ANSWERED))


def test_only_the_response_of_a_responses_log_is_trained():
    earlier = [
        {"role": "user", "content": "P"},
        {"role": "assistant", "content": "O"},
        {"role": "user", "content": "Q"},
    ]
    conversation = read({"input": earlier, "response": {"output": ITEMS, "reasoning": {"effort": "high"}}})
    assert [(m.content, m.weight) for m in conversation.messages if m.role == "assistant"] == [("O", 0.0), ("A", 1.0)]
    assert conversation.effort == "high"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [A]},
        {"messages": [{"role": "system", "content": "S"}, A]},
        {"output": ITEMS},
        {"responses_create_params": {"input": []}, "response": {"output": ITEMS}},
    ],
)
def test_a_row_without_a_user_message_is_bad_as_documented_where_it_was_trained(row):
    with pytest.raises(RowError, match="no user message") as caught:
        convert(row)
    assert caught.value.kind == "no_user"


@pytest.mark.parametrize(
    ("row", "kind", "what"),
    [
        ({"rows": [{"row_idx": 0, "row": {"messages": [Q, A]}}]}, "rows_in_row", "a page of a data set's viewer"),
        ({"0": {"messages": [Q, A]}, "1": {"messages": [Q, A]}}, "rows_in_row", "2 rows by their numbers"),
        ({"custom_id": "1", "response": {"body": {"choices": [{"message": A}]}}}, "no_request", "an answer of a batch"),
    ],
)
def test_what_holds_rows_is_told_by_its_name(row, kind, what):
    with pytest.raises(RowError) as caught:
        convert(row)
    assert caught.value.kind == kind
    assert caught.value.what.startswith(what)
