"""OpenAI fine-tuning rows: exact conversations, and the exact words of every refusal."""

import json

import pytest

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Tool
from counterpoint.data.formats.convert import convert

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def call(arguments, id_="c1", name="weather"):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(text, id_="c1"):
    return {"role": "tool", "tool_call_id": id_, "content": text}


def row(*messages, tools=(WEATHER,), **fields):
    return {"messages": [{"role": "user", "content": "Hi"}, *messages], "tools": list(tools), **fields}


def read(value, **options) -> Conversation:
    conversation = convert(value, "auto", ConversionSettings(**options))
    assert isinstance(conversation, Conversation)
    return conversation


def kinds(conversation):
    return [notice.kind for notice in conversation.notices]


def fault(value, **options) -> RowError:
    with pytest.raises(RowError) as caught:
        convert(value, "auto", ConversionSettings(**options))
    return caught.value


def test_a_whole_tool_conversation():
    conversation = read(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Oslo?"},
                {
                    "role": "assistant",
                    "thinking": "I look.",
                    "content": "One moment.",
                    "tool_calls": [call('{"city": "Oslo"}')],
                },
                result("4 C"),
                {"role": "assistant", "content": "4 degrees.", "weight": 0},
            ],
            "tools": [WEATHER],
        }
    )
    assert conversation.instructions == "Be brief."
    function = WEATHER["function"]
    assert conversation.tools == (Tool("weather", function["description"], function["parameters"]),)
    assert conversation.messages == (
        Message("user", "Oslo?"),
        Message("assistant", "I look.", "analysis"),
        Message("assistant", "One moment.", "commentary"),
        Message("assistant", '{"city": "Oslo"}', "commentary", "functions.weather", content_type=CONSTRAIN_JSON),
        Message("tool", "4 C", "commentary", name="functions.weather"),
        Message("assistant", "4 degrees.", "final", weight=0.0),
    )
    assert conversation.format == "messages"
    assert kinds(conversation) == ["text_beside_call"]


def test_parallel_calls_are_written_one_after_another_by_id():
    conversation = read(
        row(
            {"role": "assistant", "tool_calls": [call('{"city":"A"}', "a"), call('{"city":"B"}', "b")]},
            result("of b", "b"),
            result("of a", "a"),
        )
    )
    assert [m.content for m in conversation.messages] == ["Hi", '{"city":"A"}', "of a", '{"city":"B"}', "of b"]
    assert kinds(conversation) == ["parallel_calls", "result_order", "open_end", "missing_thinking"]


def test_double_encoded_arguments_are_decoded_once_and_told():
    inner = '{"city": "Øslo"}'
    conversation = read(row({"role": "assistant", "tool_calls": [call(json.dumps(inner))]}))
    assert conversation.messages[1].content == inner
    assert "double_encoded_arguments" in kinds(conversation)
    refused = fault(
        row({"role": "assistant", "tool_calls": [call(json.dumps(inner))]}), double_encoded_arguments="quarantine"
    )
    assert refused.field == "messages[1].tool_calls[0].function.arguments"


def test_arguments_that_are_no_json_say_what_to_write():
    error = fault(row({"role": "assistant", "tool_calls": [call("{city: Oslo}")]}))
    assert error.field == "messages[1].tool_calls[0].function.arguments"
    assert error.what.startswith("not JSON (")
    assert error.fix == "write a JSON object as a string"


def test_what_openai_takes_passes_unchanged():
    texts = [
        "  spaced \n",
        "ünï 🙂 \u202e",
        "<think>no tags here",
        '{"a": 1}',
        "\\n \\u0041",
        "tab\tand\r\nbreak",
        "x" * 5000,
    ]
    for text in texts:
        conversation = read(
            {
                "messages": [
                    {"role": "system", "content": text},
                    {"role": "user", "content": text, "name": "ann"},
                    {
                        "role": "assistant",
                        "tool_calls": [call(json.dumps({"city": text}, indent=1), "c9")],
                        "weight": 1,
                    },
                    result(text, "c9"),
                    {"role": "assistant", "content": f"a {text}", "weight": 0},
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": f"a {text}"},
                ],
                "tools": [WEATHER],
                "parallel_tool_calls": False,
            }
        )
        assert conversation.instructions == text
        assert [m.content for m in conversation.messages] == [
            text,
            json.dumps({"city": text}, indent=1),
            text,
            f"a {text}",
            text,
            f"a {text}",
        ]
        assert [m.weight for m in conversation.messages if m.role == "assistant"] == [1.0, 0.0, 1.0]
        assert kinds(conversation) == ["missing_thinking"]
        assert conversation.metadata == {}


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "messages: is an empty list: write a user message and its answer"),
        ([{"content": "x"}], "messages[0].role: missing: write system, developer, user, assistant, tool or function"),
        ([{"role": "bot", "content": "x"}], "messages[0].role: an unknown role 'bot': write system"),
        ([{"role": "user"}], "messages[0].content: missing or null: write a string"),
        ([{"role": "user", "content": 5}], "messages[0].content: is a number: write a string or a list of text parts"),
        ([{"role": "user", "content": "x"}, "y"], "messages[1]: is a string: write an object"),
        (
            [{"role": "assistant", "content": None}],
            "messages[0].content: an assistant message without content and calls",
        ),
        (
            [{"role": "assistant", "content": ""}],
            "messages[0].content: an empty answer would be trained: write the answer",
        ),
        (
            [{"role": "assistant", "content": "x", "weight": -1}],
            "messages[0].weight: is -1: write 0, 1 or a positive number",
        ),
        ([{"role": "assistant", "content": "x", "weight": "1"}], "messages[0].weight: is a string: write 0"),
        ([{"role": "system", "content": "x"}], "messages: no user and no assistant message: write a user message"),
        (
            [{"role": "function", "content": "x"}],
            "messages[0].name: missing: a function's result names it: write its name",
        ),
        ([{"role": "assistant", "thinking": "x"}], "messages: ends in thinking without an answer"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
            'messages[0].tool_calls[0].function: missing: write {"name": "...", "arguments": "{...}"}',
        ),
        (
            [{"role": "user", "content": [{"type": "poem", "text": "x"}]}],
            "messages[0].content[0]: a content part of unknown type (poem): write text parts only",
        ),
    ],
)
def test_every_refusal_says_where_what_and_what_to_do(messages, told):
    assert str(fault({"messages": messages})).startswith(told)
