"""Reasoning that is written into an answer's text goes to analysis; what only looks like it stays text."""

import pytest

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert


def read(text, **options) -> Conversation:
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]}
    conversation = convert(row, "auto", ConversionSettings(**options))
    assert isinstance(conversation, Conversation)
    return conversation


def said(conversation):
    return [(message.channel, message.content) for message in conversation.messages[1:]]


def kinds(conversation):
    return [notice.kind for notice in conversation.notices if notice.kind != "missing_thinking"]


@pytest.mark.parametrize(
    ("text", "notices"),
    [
        ("<think>Hm.</think>A.", []),
        ("<thinking>Hm.</thinking>\n\nA.", []),
        ("<reasoning>\nHm.\n</reasoning>\nA.", []),
        ("<reasoning>Hm.</reasoning><answer>A.</answer>", ["answer_tags"]),
        ("<|begin_of_thought|>Hm.<|end_of_thought|><|begin_of_solution|>A.<|end_of_solution|>", ["answer_tags"]),
        ("[THINK]Hm.[/THINK]A.", []),
        ("analysisHm.assistantfinalA.", ["collapsed_harmony"]),
        ("assistantanalysisHm.assistantfinalA.", ["collapsed_harmony"]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>A.<|return|>",
            ["rendered_harmony"],
        ),
    ],
)
def test_what_is_wrapped_is_analysis_where_it_was_trained_inside_the_final(text, notices):
    conversation = read(text)
    assert said(conversation) == [("analysis", "Hm."), ("final", "A.")]
    assert kinds(conversation) == notices


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "<think>Hm.</think>A."}]},
        {"system": "S", "messages": [{"role": "user", "content": "Q"}, {"role": "ai", "content": [{"text": "<think>Hm.</think>A."}]}]},
        {"input": "Q", "output": [{"type": "message", "role": "assistant", "content": [{"text": "<think>Hm.</think>A."}]}]},
        {"prompt": "Q", "completion": "<think>Hm.</think>A."},
        {"prompt": "Q", "completion": [{"role": "assistant", "content": "<think>Hm.</think>A."}]},
    ],
)  # fmt: skip
def test_tags_are_read_in_every_format(row):
    conversation = convert(row)
    assert isinstance(conversation, Conversation)
    assert said(conversation) == [("analysis", "Hm."), ("final", "A.")]


def test_a_second_thought_is_analysis_too_where_it_was_trained_inside_the_final():
    conversation = read("<think>One.</think>First.<think>Two.</think>Second.")
    wanted = [("analysis", "One."), ("commentary", "First."), ("analysis", "Two."), ("final", "Second.")]
    assert said(conversation) == wanted
    assert kinds(conversation) == ["several_thoughts"]


@pytest.mark.parametrize(
    "text",
    [
        "Wrap it in <think> and </think> tags.",
        "Use `<think>` first.",
        "An analysis of the final: fine.",
        "It writes <|start|>assistant<|channel|>final<|message|>.",
        "Example:\n```\n<tool_call>{}</tool_call>\n```",
        "<p>An answer in HTML</p>",
    ],
)
def test_prose_about_markup_stays_an_answer(text):
    conversation = read(text)
    assert said(conversation) == [("final", text)]
    assert "unknown_markup" not in kinds(conversation)


def test_tags_of_one_s_own_and_tags_that_nobody_knows():
    for tags, text in ((("<plan>",), "<plan>Hm.</plan>A."), (("{{ }}",), "{{Hm.}}A.")):
        assert said(read(text, think_tags=tags)) == [("analysis", "Hm."), ("final", "A.")]
    conversation = read("<plan>Hm.</plan>A.")
    assert said(conversation) == [("final", "<plan>Hm.</plan>A.")]
    assert kinds(conversation) == ["unknown_markup"]
    with pytest.raises(ValueError, match="it is no tag: write `<plan>`"):
        ConversionSettings(think_tags=("plan",))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<think>never closed", "unclosed_tag"),
        ("analysisHm.assistantcommentary to=functions.f json{}", "collapsed_harmony"),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", "rendered_harmony"),
    ],
)
def test_what_cannot_be_taken_apart_is_quarantined(text, kind):
    with pytest.raises(RowError) as caught:
        read(text)
    assert (caught.value.kind, caught.value.field) == (kind, "messages[1].content")


def test_an_unclosed_tag_that_is_no_think_stays_text():
    assert said(read("<reasoning> is a tag of HTML? No.")) == [("final", "<reasoning> is a tag of HTML? No.")]
