"""The ambiguous cases: each has its default, its option, and a notice that tells that it was met."""

import json

import pytest

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import DataError, RowError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.counts.counter import kind_of
from counterpoint.data.formats.convert import convert, trainable
from counterpoint.data.formats.tool_files import read_tool_names, tools_of_file
from counterpoint.data.harmony.window import split_turns

TOOL = {"type": "function", "function": {"name": "f", "description": "F", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Hi"}
HARMONY_SYSTEM = """You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2025-03-04

Reasoning: high

# Tools

## python

Use this tool to execute Python code.

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'."""


def call(id_="a", arguments="{}", name="f"):
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*items, **fields):
    return {"role": "assistant", "content": None, "tool_calls": list(items), **fields}


def result(text, id_="a", **fields):
    return {"role": "tool", "tool_call_id": id_, "content": text, **fields}


def say(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def read(*messages, tools=(TOOL,), row=None, tools_file=None, **options) -> Conversation:
    value = {"messages": [USER, *messages], **({"tools": list(tools)} if tools else {}), **(row or {})}
    conversation = convert(value, "auto", ConversionSettings(tools=tools_file, **options))
    assert isinstance(conversation, Conversation)
    return conversation


def refused(*messages, tools=(TOOL,), row=None, **options) -> RowError:
    with pytest.raises(RowError) as caught:
        read(*messages, tools=tools, row=row, **options)
    return caught.value


def kinds(conversation):
    return [notice.kind for notice in conversation.notices if notice.kind != "missing_thinking"]


def texts(conversation):
    return [message.content for message in conversation.messages[1:]]


# 1. text beside tool calls


def test_text_beside_a_call_is_a_preamble_or_analysis():
    given = say("I look.", tool_calls=[call()])
    assert read(given).messages[1] == Message("assistant", "I look.", "commentary")
    assert kinds(read(given)) == ["text_beside_call"]
    assert read(given, text_beside_call="analysis").messages[1] == Message("assistant", "I look.", "analysis")


def test_text_beside_a_call_and_thinking_is_always_a_preamble():
    given = say("I look.", tool_calls=[call()], thinking="Hm.")
    for option in ("preamble", "analysis"):
        assert [m.channel for m in read(given, text_beside_call=option).messages[1:3]] == ["analysis", "commentary"]


def test_a_text_message_right_before_a_calling_one_is_its_preamble():
    conversation = read(say("I look."), calls(call()), result("1"), say("One."))
    assert [m.channel for m in conversation.messages[1:]] == ["commentary", "commentary", "commentary", "final"]


# 2. several assistant turns


def test_several_turns_are_kept_each_with_its_own_weight():
    conversation = read(say("a", weight=0), USER, say("b"), USER, say("c"))
    assert [m.weight for m in conversation.messages if m.is_final] == [0.0, 1.0, 1.0]
    assert len(split_turns(conversation.messages)) == 3


# 3. missing thinking


def test_missing_thinking_is_told_and_never_an_empty_analysis():
    for row in (say("a"), say("a", thinking=""), say("a", reasoning_content=" \n")):
        conversation = read(row)
        assert [m.channel for m in conversation.messages[1:]] == ["final"]
        assert [n.kind for n in conversation.notices][-1] == "missing_thinking"
    assert "missing_thinking" not in [n.kind for n in read(say("a", thinking="Hm.")).notices]
    assert [n.field for n in read(say("a", thinking="Hm."), USER, say("b")).notices] == ["turn 2"]


def test_all_names_of_thinking_are_one():
    for key in ("thinking", "reasoning_content", "reasoning"):
        assert read(say("a", **{key: "Hm."})).messages[1] == Message("assistant", "Hm.", "analysis")
    assert refused(say("a", thinking="x", reasoning="y")).kind == "two_thinkings"
    assert texts(read(say("a", thinking="x", reasoning="x"))) == ["x", "a"]


# 4. parallel calls


def test_parallel_calls_become_call_result_call_result():
    given = [calls(call("a", '{"n":1}'), call("b", '{"n":2}')), result("one", "a"), result("two", "b"), say("done")]
    assert texts(read(*given)) == ['{"n":1}', "one", '{"n":2}', "two", "done"]
    assert kinds(read(*given)) == ["parallel_calls"]
    assert refused(*given, parallel_calls="first").kind == "orphan_result"
    assert texts(read(given[0], parallel_calls="first")) == ['{"n":1}']


def test_calls_without_results_keep_the_first_and_count_the_rest():
    given = calls(call("a", '{"n":1}'), call("b", '{"n":2}'), call("c", '{"n":3}'))
    conversation = read(given)
    assert texts(conversation) == ['{"n":1}']
    assert kinds(conversation) == ["parallel_calls", "call_dropped", "call_dropped"]
    assert refused(given, calls_without_result="quarantine").kind == "call_without_result"
    assert texts(read(calls(call()), calls_without_result="quarantine")) == ["{}"]


def test_the_answered_calls_of_a_message_come_before_the_first_unanswered_one():
    conversation = read(calls(call("a", '{"n":1}'), call("b", '{"n":2}'), call("c", '{"n":3}')), result("two", "b"))
    assert texts(conversation) == ['{"n":2}', "two", '{"n":1}']
    assert "call_without_result" in kinds(conversation)


def test_two_calls_although_parallel_calls_are_forbidden_are_an_error():
    error = refused(calls(call("a"), call("b")), row={"parallel_tool_calls": False})
    assert (error.kind, error.field) == ("parallel_calls", "messages[1].tool_calls[1].function")
    assert read(calls(call("a")), row={"parallel_tool_calls": False})


# 5. pairing


def test_results_are_paired_by_id_then_by_order():
    swapped = [calls(call("a", '{"n":1}'), call("b", '{"n":2}')), result("two", "b"), result("one", "a"), say("x")]
    assert texts(read(*swapped)) == ['{"n":1}', "one", '{"n":2}', "two", "x"]
    assert kinds(read(*swapped)) == ["parallel_calls", "result_order"]
    strange = [calls(call("a")), result("one", "zzz")]
    assert texts(read(*strange)) == ["{}", "one"]
    assert kinds(read(*strange)) == ["paired_by_order", "open_end"]
    assert refused(*strange, unmatched_results="quarantine").kind == "unmatched_result"


def test_results_without_ids_are_paired_by_name_then_by_order():
    two = [call("a", '{"n":1}', "f"), call("b", '{"n":2}', "g")]
    named = [
        calls(*two),
        {"role": "tool", "name": "g", "content": "of g"},
        {"role": "tool", "name": "f", "content": "of f"},
    ]
    assert texts(read(*named, tools=())) == ['{"n":1}', "of f", '{"n":2}', "of g"]
    bare = [calls(*two), {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}]
    assert texts(read(*bare, tools=())) == ['{"n":1}', "1", '{"n":2}', "2"]
    assert refused(*bare, tools=(), unmatched_results="quarantine").kind == "unmatched_result"


@pytest.mark.parametrize(
    ("messages", "kind", "field"),
    [
        ([result("1")], "orphan_result", "messages[1].content"),
        ([calls(call("a")), result("1"), result("2")], "orphan_result", "messages[3].content"),
        ([calls(call("a")), USER, result("1")], "orphan_result", "messages[3].content"),
        ([calls(call("a"), call("b")), {"role": "tool", "content": "1"}], "ambiguous_results", "messages[2].content"),
        ([calls(call("a"), call("b")), result("1", "x")], "ambiguous_results", "messages[2].content"),
    ],
)
def test_what_stays_ambiguous_is_quarantined(messages, kind, field):
    error = refused(*messages)
    assert (error.kind, error.field) == (kind, field)


def test_ids_may_repeat_in_other_turns_and_are_paired_in_order_within_one():
    again = [calls(call("a", '{"n":1}')), result("1", "a"), calls(call("a", '{"n":2}')), result("2", "a"), say("x")]
    assert texts(read(*again)) == ['{"n":1}', "1", '{"n":2}', "2", "x"]
    assert kinds(read(*again)) == []
    twice = [calls(call("a", '{"n":1}'), call("a", '{"n":2}')), result("1", "a"), result("2", "a"), say("x")]
    assert texts(read(*twice)) == ['{"n":1}', "1", '{"n":2}', "2", "x"]
    assert kinds(read(*twice)) == ["parallel_calls", "repeated_call_id"]


def test_an_id_of_two_tools_is_told_since_vllm_names_both_results_after_the_last():
    one, other = call("a", "{}"), call("a", "{}")
    other["function"]["name"] = "other"
    rows = [calls(one), result("1", "a"), calls(other), result("2", "a"), say("x")]
    assert "repeated_call_id" in kinds(read(*rows))


def test_a_late_result_of_the_turn_is_moved_to_its_call():
    conversation = read(calls(call("a")), say("Waiting."), result("1", "a"), say("One."))
    assert texts(conversation) == ["{}", "1", "Waiting.", "One."]
    assert "result_moved" in kinds(conversation)


def test_a_result_has_the_name_and_channel_of_its_call():
    conversation = read(calls(call()), result("1", name="other"), say("x"))
    assert conversation.messages[2] == Message("tool", "1", "commentary", name="functions.f")
    assert kinds(conversation) == ["result_name"]


# 6. arguments


@pytest.mark.parametrize(
    ("arguments", "text", "notice"),
    [
        ('{"a": 1}', '{"a": 1}', None),
        ('  {"a":\n 1}', '  {"a":\n 1}', None),
        (json.dumps('{"a": "é"}'), '{"a": "é"}', "double_encoded_arguments"),
        ({"a": "é", "b": [1, None]}, '{"a":"é","b":[1,null]}', "object_arguments"),
        ("", "{}", "empty_arguments"),
        (None, "{}", "empty_arguments"),
    ],
)
def test_arguments(arguments, text, notice):
    conversation = read(calls(call(arguments=arguments)))
    assert texts(conversation) == [text]
    assert kinds(conversation) == ([notice] if notice else [])


@pytest.mark.parametrize(
    ("arguments", "kind", "what"),
    [
        ("{'a': 1}", "arguments_not_json", "not JSON (unexpected character"),
        ('{"a": 1', "arguments_not_json", "not JSON (unexpected end of data"),
        ('{"a": NaN}', "arguments_not_json", "not JSON ("),
        ("[1]", "arguments_not_object", "holds a list, not a JSON object"),
        ('"x"', "arguments_not_object", "holds a string, not a JSON object"),
        (json.dumps(json.dumps('{"a": 1}')), "arguments_not_object", "holds a string, not a JSON object"),
        (5, "wrong_type", "is a number"),
    ],
)
def test_arguments_that_cannot_be_read(arguments, kind, what):
    error = refused(calls(call(arguments=arguments)))
    assert (error.kind, error.field) == (kind, "messages[1].tool_calls[0].function.arguments")
    assert error.what.startswith(what)
    assert error.fix == "write a JSON object as a string"


def test_arguments_by_option():
    assert (
        refused(calls(call(arguments='"{}"')), double_encoded_arguments="quarantine").kind == "double_encoded_arguments"
    )
    assert refused(calls(call(arguments={})), object_arguments="quarantine").kind == "object_arguments"


# 7. system messages


def test_the_first_system_message_is_the_instructions_and_others_stay_in_place():
    system = [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}]
    conversation = convert({"messages": [*system, USER, say("x"), {"role": "system", "content": "C"}, USER, say("y")]})
    assert isinstance(conversation, Conversation)
    assert conversation.instructions == "A"
    assert conversation.messages[0] == Message("developer", "B")
    assert conversation.messages[3] == Message("developer", "C")
    assert kinds(conversation) == ["second_system", "late_system"]
    late = [say("x"), {"role": "system", "content": "C"}, USER, say("y")]
    assert refused(*late, late_system="quarantine").field == "messages[2].content"


def test_names_are_kept():
    conversation = convert(
        {"messages": [{"role": "system", "name": "n", "content": "A"}, {**USER, "name": "u"}, say("x")]}
    )
    assert isinstance(conversation, Conversation)
    assert conversation.messages[:2] == (Message("developer", "A", name="n"), Message("user", "Hi", name="u"))
    assert kinds(conversation) == ["named_system"]


# 8. Harmony's own system block


def test_a_harmony_system_block_is_taken_apart():
    value = {"messages": [{"role": "system", "content": HARMONY_SYSTEM}, USER, say("x")]}
    conversation = convert(value)
    assert isinstance(conversation, Conversation)
    assert (conversation.effort, conversation.date, conversation.identity) == ("high", "2025-03-04", None)
    assert conversation.builtin_tools == ("python",)
    assert conversation.instructions is None
    assert kinds(conversation) == ["harmony_system"]
    kept = convert(value, "auto", ConversionSettings(harmony_system="text"))
    assert isinstance(kept, Conversation)
    assert kept.instructions == HARMONY_SYSTEM


@pytest.mark.parametrize(
    ("text", "effort", "date", "identity", "instructions"),
    [
        ("Reasoning: low", "low", None, None, None),
        ("You are X.\nKnowledge cutoff: 2024-06\n\nReasoning: low", "low", "", "You are X.", None),
        ("You are X.\n\nReasoning: low is bad.", None, None, None, "You are X.\n\nReasoning: low is bad."),
        (f"{HARMONY_SYSTEM}\n\nBe kind.", "high", "2025-03-04", None, "Be kind."),
        ("# Instructions\n\nBe kind.", None, None, None, "# Instructions\n\nBe kind."),
    ],
)
def test_system_blocks(text, effort, date, identity, instructions):
    conversation = convert({"messages": [{"role": "system", "content": text}, USER, say("x")]})
    assert isinstance(conversation, Conversation)
    assert (conversation.effort, conversation.date, conversation.identity) == (effort, date, identity)
    assert conversation.instructions == instructions


# 9. images and audio


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image"),
        ({"type": "input_audio", "input_audio": {}}, "audio"),
        ({"type": "file", "file": {}}, "file"),
    ],
)
def test_media_are_refused_or_named(part, name):
    messages = [{"role": "user", "content": [{"type": "text", "text": "See "}, part]}, say("x")]
    error = refused(*messages)
    assert (error.kind, error.field) == ("media", "messages[1].content[1]")
    conversation = read(*messages, images="placeholder")
    assert conversation.messages[1].content == f"See [{name}]"
    assert kinds(conversation) == ["media_placeholder", "joined_parts"]


# 10. rows that end in a user message or a result


def test_a_row_that_ends_in_a_user_message_is_a_prompt():
    prompt = read(tools=(), row={"answer": 4, "verifier": "math"})
    assert kind_of(prompt) == "prompt"
    assert dict(prompt.metadata) == {"answer": 4, "verifier": "math"}
    assert kinds(prompt) == []
    with pytest.raises(RowError, match="no assistant answer or call to train"):
        trainable(prompt)
    open_end = read(say("x"), USER)
    assert kind_of(open_end) == "conversation"
    assert kinds(open_end) == ["open_end"]
    trainable(open_end)
    assert texts(read(say("x"), USER, unanswered="trim")) == ["x"]
    assert refused(say("x"), USER, unanswered="quarantine").kind == "unanswered"
    after_result = read(calls(call()), result("1"))
    assert kind_of(after_result) == "conversation"
    question = convert({"prompt": [USER, say("x"), USER], "answer": 4})
    assert kind_of(question) == "prompt"
    trainable(after_result)


def test_what_has_no_weight_trains_nothing():
    for conversation in (read(say("x", weight=0)), read(say("x"), row={"weight": 0})):
        with pytest.raises(RowError, match="every assistant message has weight 0"):
            trainable(conversation)


# 11. markup typed in a text


def test_markup_in_any_text_is_plain_text_with_a_notice():
    markup = "<|start|>system<|message|>x<|end|>"
    spots = [
        [{"role": "user", "content": markup}, say("x")],
        [say(markup)],
        [say("x", thinking=markup)],
        [calls(call(arguments=json.dumps({"a": markup})))],
        [calls(call()), result(markup)],
    ]
    for messages in spots:
        assert "harmony_markup" in kinds(read(*messages))
        assert refused(*messages, harmony_markup="quarantine").kind == "harmony_markup"
    tool = {"type": "function", "function": {"name": "f", "description": markup}}
    assert read(say("x"), tools=(tool,)).tools[0].description == markup


def test_rows_of_system_messages_only_and_rows_without_messages_are_refused():
    for messages in (
        [{"role": "system", "content": "A"}],
        [{"role": "system", "content": ""}, {"role": "developer", "content": "B"}],
    ):
        with pytest.raises(RowError, match="no user and no assistant message") as caught:
            convert({"messages": messages})
        assert caught.value.kind == "no_dialogue"
    with pytest.raises(RowError, match="is an empty list"):
        convert({"messages": []})


def test_empty_texts_are_kept_and_told_but_an_empty_answer_is_not_trained():
    empty = {"role": "user", "content": ""}
    conversation = convert({"messages": [empty, say("", weight=0), empty, say("x")]})
    assert [m.content for m in conversation.messages] == ["", "", "", "x"]
    assert "empty_content" in kinds(conversation)
    assert refused(say("")).kind == "empty_answer"


# 12. dates


def test_the_date_comes_from_the_row_only_where_asked():
    row = {"meta": {"day": "2024-05-06T07:08:09Z"}}
    assert read(say("x"), row=row).date is None
    assert read(say("x"), row=row, date_field="meta.day").date == "2024-05-06"
    assert read(say("x"), date_field="meta.day").date is None
    assert refused(say("x"), row={"d": "May"}, date_field="d").kind == "bad_date"


# 13. tool names


def test_odd_tool_names_are_kept_with_a_warning_or_renamed_everywhere():
    tool = {"type": "function", "function": {"name": "a.b", "description": "F"}}
    messages = [calls(call(name="a.b")), result("1", name="a.b"), say("x")]
    kept = read(*messages, tools=(tool,))
    assert (kept.tools[0].name, kept.messages[1].recipient, kept.messages[2].name) == (
        "a.b",
        "functions.a.b",
        "functions.a.b",
    )
    assert kinds(kept) == ["tool_name"]
    renamed = read(*messages, tools=(tool,), tool_names="rename")
    assert renamed.tools[0].name == "a_b"
    assert renamed.messages[1].recipient == renamed.messages[2].name == "functions.a_b"
    assert kinds(renamed) == ["tool_name"]


def test_two_names_never_become_one():
    tools = [{"type": "function", "function": {"name": name}} for name in ("a_b", "a.b", "a b")]
    conversation = read(say("x"), tools=tools, tool_names="rename")
    assert [tool.name for tool in conversation.tools] == ["a_b", "a_b_2", "a_b_3"]


def test_a_name_that_a_header_cannot_hold_is_refused():
    for name in ("a b", "a<|call|>b"):
        assert refused(calls(call(name=name)), tools=()).kind == "tool_name"
    assert refused(calls(call(name="")), tools=()).kind == "tool_name"


# 14. effort


@pytest.mark.parametrize(
    ("row", "options", "effort"),
    [
        ({}, {}, None),
        ({"reasoning_effort": "High"}, {}, "high"),
        ({"reasoning_effort": "minimal"}, {}, "low"),
        ({"chat_template_kwargs": {"reasoning_effort": "low"}}, {}, "low"),
        ({"meta": {"e": "medium"}}, {"effort_field": "meta.e"}, "medium"),
        ({"meta": {"e": "medium"}, "reasoning_effort": "low"}, {"effort_field": "meta.e"}, "medium"),
    ],
)
def test_effort_comes_from_the_row(row, options, effort):
    assert read(say("x"), row=row, **options).effort == effort


def test_an_unknown_effort_is_refused():
    error = refused(say("x"), row={"reasoning_effort": "very"})
    assert str(error) == "reasoning_effort: is 'very': write low, medium or high"


# tools from a file


def test_rows_without_tools_take_those_of_a_file(tmp_path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"tools": [{"name": "g", "description": "G", "inputSchema": {"type": "object"}}]}))
    messages = [calls(call(name="g")), result("1"), say("x")]
    conversation = read(*messages, tools=(), tools_file=str(file))
    assert [tool.name for tool in conversation.tools] == ["g"]
    assert kinds(conversation) == []
    assert [tool.name for tool in read(say("x"), tools_file=str(file)).tools] == ["f"]
    for text, what in (("[", "the JSON text ends early"), ('[{"x": 1}]', "missing or not a string")):
        (tmp_path / "bad.json").write_text(text)
        tools_of_file.cache_clear()
        with pytest.raises(DataError, match=what):
            read(say("x"), tools=(), tools_file=str(tmp_path / "bad.json"))
    with pytest.raises(DataError, match="cannot be read"):
        read(say("x"), tools=(), tools_file=str(tmp_path / "none.json"))


def test_one_tool_a_file_and_a_folder_of_them(tmp_path):
    for name, value in (("b", {"name": "g"}), ("a", [{"name": "h"}]), ("c", {"tools": [{"name": "i"}]})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "README.md").write_text("no tools")
    assert [tool.name for tool in read(say("x"), tools=(), tools_file=str(tmp_path / "b.json")).tools] == ["g"]
    assert [tool.name for tool in read(say("x"), tools=(), tools_file=str(tmp_path)).tools] == ["h", "g", "i"]
    assert [tool.name for tool in read_tool_names([str(tmp_path)])[0]] == ["h", "g", "i"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.json file"):
        read_tool_names([str(tmp_path / "empty")])


# built-in tools


def test_calls_of_offered_built_in_tools_go_to_analysis():
    python = call(name="python", arguments='{"code": "print(1)"}')
    messages = [calls(python), result("1"), say("One.")]
    conversation = read(*messages, tools=(), row={"builtin_tools": ["python"]})
    assert conversation.messages[1] == Message("assistant", "print(1)", "analysis", "python", content_type="code")
    assert conversation.messages[2] == Message("tool", "1", "analysis", name="python")
    assert conversation.builtin_tools == ("python",)
    assert read(*messages, tools=(), builtin_tools=("python",)).messages == conversation.messages
    assert read(*messages, tools=()).messages[1].recipient == "functions.python"
    search = call(name="browser.search", arguments='{"query": "x"}')
    found = read(calls(search), tools=(), row={"builtin_tools": ["browser"]})
    assert found.messages[1] == Message(
        "assistant", '{"query": "x"}', "analysis", "browser.search", content_type="code"
    )


def test_a_declared_function_named_python_stays_a_function():
    tool = {"type": "function", "function": {"name": "python"}}
    conversation = read(calls(call(name="python")), tools=(tool,), row={"builtin_tools": ["python"]})
    assert conversation.messages[1].recipient == "functions.python"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"channel": "final", "content": "<think>R</think>a"}, [("analysis", "R"), ("final", "a")]),
        ({"channel": "final", "content": "a", "thinking": "R"}, [("analysis", "R"), ("final", "a")]),
        ({"channel": "commentary", "recipient": "functions.f", "content": "{}", "reasoning_content": "R"},
         [("analysis", "R"), ("commentary", "{}")]),
        ({"channel": "analysis", "content": "<think>R</think>"}, [("analysis", "<think>R</think>")]),
        ({"channel": "final", "content": "It writes <think> first."}, [("final", "It writes <think> first.")]),
    ],
)  # fmt: skip
def test_reasoning_beside_a_channel_is_analysis(answer, expected):
    """y02, lines 13 and 14: tags were trained in the final, and a field of reasoning was lost."""
    conversation = convert({"messages": [USER, {"role": "assistant", **answer}]})
    assert isinstance(conversation, Conversation)
    assert [(m.channel, m.content) for m in conversation.messages[1:]] == expected
    assert "unread_field" not in {notice.kind for notice in conversation.notices}
