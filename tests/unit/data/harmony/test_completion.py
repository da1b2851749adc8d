"""Completions as typed results: what is right, what is sloppy, and what must never pass for an answer."""

from __future__ import annotations

import json
import pickle

import pytest
from completions import CALL_HEAD, FINAL, MALFORMED, THINK, TOOLS, VALID, Case, encode, ids_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from openai_harmony import Author, RenderConversationConfig, Role
from openai_harmony import Conversation as OfficialConversation
from openai_harmony import Message as OfficialMessage

from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.completion import Completion, ToolCall, parse_completion
from counterpoint.data.harmony.official import harmony_accepts, official_encoding
from counterpoint.data.harmony.text import _MARKUP
from counterpoint.data.harmony.vocabulary import N_VOCAB


def parse(text: str, **rules: object) -> Completion:
    return parse_completion(encode(text), **rules)  # pyright: ignore[reportArgumentType]


def test_analysis_and_final() -> None:
    found = parse(THINK + "<|channel|>final<|message|>The answer is 4.<|return|>")
    assert found.analysis == "Think."
    assert found.final == "The answer is 4."
    assert (found.preambles, found.calls, found.unfinished, found.stop) == ((), (), None, "return")
    assert found.n_tokens_by_channel == {"analysis": 2, "commentary": 0, "final": 6, "other": 0}
    assert found.ok
    assert found.ids == tuple(encode(THINK + "<|channel|>final<|message|>The answer is 4.<|return|>"))


@pytest.mark.parametrize(
    ("header", "position"),
    [
        ("<|channel|>commentary to=functions.add <|constrain|>json", "channel"),
        (" to=functions.add<|channel|>commentary <|constrain|>json", "role"),
    ],
)
def test_a_call_with_either_recipient_position(header: str, position: str) -> None:
    found = parse(
        f'{THINK}<|channel|>commentary<|message|>I add.<|end|><|start|>assistant{header}<|message|>{{"a": 1}}<|call|>',
        tools=TOOLS,
    )
    assert found.ok
    assert found.preambles == ("I add.",)
    assert found.calls == (
        ToolCall("add", "functions", "functions.add", '{"a": 1}', {"a": 1}, position, "commentary"),  # pyright: ignore[reportArgumentType]
    )
    assert found.final is None
    assert found.stop == "call"


def test_a_python_call_has_code_and_no_arguments() -> None:
    found = parse("<|channel|>analysis to=python code<|message|>print(1)<|call|>")
    assert found.calls == (ToolCall("python", None, "python", "print(1)", None, "channel", "analysis"),)
    assert found.analysis is None
    assert found.n_tokens_by_channel["analysis"] == 4


def test_a_sloppy_header_still_gives_channel_and_recipient() -> None:
    found = parse(THINK + "<|channel|>commentary quickly to=functions.add  now <|constrain|>json<|message|>{}<|call|>")
    assert [call.recipient for call in found.calls] == ["functions.add"]
    assert found.codes == {"header_grammar"}
    found = parse("<|channel|>analysis<|channel|>final then<|message|>4<|return|>")
    assert found.final == "4"
    found = parse(THINK + "<|channel|>assistant to=container.exec<|channel|>analysis code<|message|>ls<|call|>")
    assert [(c.namespace, c.name, c.channel) for c in found.calls] == [("container", "exec", "analysis")]


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>The answer is 4",
        "<|channel|>analysis<|message|>The answer is 4<|end|>",
        "<|channel|>analysis<|message|>The answer is 4<|return|>",
        THINK + "<|channel|>final<|message|>The answer is 4",
        THINK + "<|channel|>final",
        "The answer is 4<|return|>",
        "<|message|>The answer is 4<|return|>",
        "<|channel|>thought<|message|>The answer is 4<|return|>",
        "<|channel|>final to=functions.add<|message|>The answer is 4<|return|>",
        "<|channel|>analysis<|message|>x<|end|><|start|>user<|channel|>final<|message|>The answer is 4<|return|>",
        "<|channel|>analysis<|message|>x<|end|><|start|>functions.add<|channel|>final<|message|>4<|return|>",
    ],
)
def test_nothing_but_a_finished_final_of_the_assistant_is_an_answer(text: str) -> None:
    found = parse(text)
    assert found.final is None
    assert not found.ok


def test_an_unfinished_message_is_kept_apart() -> None:
    found = parse(THINK + "<|channel|>final<|message|>The answer", finish_reason="length")
    assert (found.unfinished, found.unfinished_channel, found.stop) == ("The answer", "final", "length")
    found = parse(THINK + CALL_HEAD + '{"a":')
    assert (found.unfinished, found.unfinished_channel, found.calls) == ('{"a":', "commentary", ())
    found = parse("<|channel|>analysis<|message|>Hmm")
    assert (found.unfinished, found.analysis) == ("Hmm", "Hmm")


@pytest.mark.parametrize(
    ("text", "reason", "stop"),
    [
        ("", None, "empty"),
        ("<|start|>assistant", None, "empty"),
        ("<|channel|>fi", None, "length"),
        ("<|channel|>analysis<|message|>x<|end|>", None, "end"),
        ("<|channel|>analysis<|message|>x<|end|>", "length", "length"),
        (FINAL, "stop", "return"),
        (FINAL, "length", "length"),
        (CALL_HEAD + "{}<|call|>", None, "call"),
        ("x<|return|>", None, "return"),
    ],
)
def test_how_it_stopped(text: str, reason: str | None, stop: str) -> None:
    assert parse(text, finish_reason=reason).stop == stop


def test_of_two_finals_the_first_counts_and_it_is_told() -> None:
    found = parse("<|channel|>final<|message|>4<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>")
    assert found.final == "4"
    assert "second_final" in found.codes


def test_several_analyses_are_joined_and_broken_characters_replaced() -> None:
    assert parse(THINK + THINK + FINAL).analysis == "Think.\nThink."
    ids = [*encode("<|channel|>final<|message|>"), 122, 200002]
    assert parse_completion(ids).final == "\ufffd"


def test_a_result_travels_between_processes() -> None:
    found = parse(THINK + CALL_HEAD + "{}<|call|>", tools=TOOLS)
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("case", MALFORMED + VALID, ids=lambda case: case.name.replace(" ", "_"))
def test_its_violations_are_those_of_the_check(case: Case) -> None:
    ids, _ = ids_of(case.text)
    assert parse_completion(ids, **case.rules).violations == check(ids, **case.rules).violations


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([200002, 200003, 200005, 200006, 200007, 200008, 200012, 173781, 35644, 17196, 28])
        | st.integers(-2, N_VOCAB + 2),
        max_size=40,
    )
)
def test_any_ids_give_a_result(ids: list[int]) -> None:
    found = parse_completion(ids)
    assert found.ids == tuple(ids)
    assert found.final is None or not found.ok or found.stop == "return"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip() and not _MARKUP.search(text.encode())
)
arguments = st.dictionaries(texts, texts | st.integers() | st.none() | st.booleans() | st.lists(texts, max_size=2))


@pytest.mark.usefixtures("openai_harmony_itself")
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["analysis", "commentary"]), texts), max_size=3),
    st.sampled_from(["final", "functions.add", "python", "browser.search"]),
    texts,
    arguments,
    st.sampled_from([None, "<|constrain|>json", "json"]),
)
def test_what_openai_harmony_renders_is_right_and_read_back(
    before: list[tuple[str, str]], end: str, text: str, values: dict[str, object], kind: str | None
) -> None:
    messages = [_official("assistant", body, channel) for channel, body in before]
    if end == "final":
        messages.append(_official("assistant", text, "final"))
    else:
        channel = "commentary" if end.startswith("functions") else "analysis"
        text = text if end == "python" else json.dumps(values, ensure_ascii=False)
        assume(not _MARKUP.search(text.encode()))
        kind = "code" if end == "python" else kind
        call = _official("assistant", text, channel).with_recipient(end)
        messages.append(call.with_content_type(kind) if kind else call)
    question = [_official("user", "?")]
    encoding, keep = official_encoding(), RenderConversationConfig(auto_drop_analysis=False)
    prompt = encoding.render_conversation_for_completion(
        OfficialConversation.from_messages(question), Role.ASSISTANT, keep
    )
    ids = encoding.render_conversation_for_training(OfficialConversation.from_messages(question + messages), keep)
    assert ids[: len(prompt)] == prompt
    found = parse_completion(ids[len(prompt) :])
    assert found.violations == ()
    assert harmony_accepts(ids[len(prompt) :])
    thoughts = [body for channel, body in before if channel == "analysis"]
    assert found.analysis == ("\n".join(thoughts) if thoughts else None)
    assert found.preambles == tuple(body for channel, body in before if channel == "commentary")
    if end == "final":
        assert found.final == text
    else:
        assert [(c.recipient, c.arguments_text, c.recipient_position) for c in found.calls] == [(end, text, "role")]
        assert end == "python" or found.calls[0].arguments == values


def _official(role: str, text: str, channel: str | None = None) -> OfficialMessage:
    message = OfficialMessage.from_author_and_content(Author(role=Role(role)), text)
    return message.with_channel(channel) if channel else message
