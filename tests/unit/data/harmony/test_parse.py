"""Rendered messages read back: parse(render(messages)) == messages, and what is not Harmony is refused."""

from __future__ import annotations

import pytest
from completions import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import texts

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Tool
from counterpoint.data.harmony.encoding import CallStyle, Grammar
from counterpoint.data.harmony.parse import messages_of
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import RestrictedVocabulary, byte_ids, load_vocabulary

names = st.sampled_from(["functions.f", "functions.get_weather", "python", "browser.search", "functions.a.b"])


@st.composite
def messages(draw: st.DrawFn) -> list[Message]:
    out: list[Message] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["user", "developer", "analysis", "commentary", "final", "call", "result"]))
        text, name = draw(texts), draw(names)
        if kind in ("user", "developer"):
            out.append(Message(kind, text, name=draw(st.sampled_from([None, "bob", "Jane Doe"]))))
        elif kind == "call":
            channel = "commentary" if name.startswith("functions") else "analysis"
            content_type = draw(st.sampled_from([None, CONSTRAIN_JSON, "json", "code"]))
            out.append(Message("assistant", text, channel, name, content_type=content_type))
        elif kind == "result":
            out.append(Message("tool", text, draw(st.sampled_from(["commentary", "analysis"])), name=name))
        else:
            out.append(Message("assistant", text, kind))
    return out


@settings(max_examples=200, deadline=None)
@given(messages(), st.booleans())
def test_rendered_messages_are_read_back(given_messages: list[Message], asks: bool) -> None:
    grammar = Grammar(load_vocabulary())
    ids = [i for message in given_messages for i in grammar.context(message)]
    if asks:
        ids.extend(grammar.start_assistant)
    assert messages_of(ids) == tuple(given_messages)


def conversation() -> Conversation:
    return Conversation(
        (
            Message("user", "1+1? <|start|>"),
            Message("assistant", "Add.", "analysis"),
            Message("assistant", "I add.", "commentary"),
            Message("assistant", '{"a":1}', "commentary", "functions.add", content_type=CONSTRAIN_JSON),
            Message("tool", "2", "commentary", name="functions.add"),
            Message("assistant", "2", "final"),
        ),
        instructions="Be brief.",
        tools=(Tool("add", "adds", {"type": "object", "properties": {"a": {"type": "integer"}}}),),
    )


@pytest.mark.parametrize("style", ["role", "channel"])
@pytest.mark.parametrize("tiny", [False, True])
def test_a_training_example_is_its_conversation(style: CallStyle, tiny: bool) -> None:
    base = load_vocabulary()
    vocabulary = RestrictedVocabulary(base, [*byte_ids(base), *range(200000, 200013)]) if tiny else base
    (example,) = Renderer(vocabulary, RenderSettings(call_style=style, serving="sampled")).examples(conversation())
    system, developer, *rest = messages_of(example.ids.tolist())
    assert system.role == "system"
    assert "Reasoning: medium" in system.content
    assert developer.role == "developer"
    assert developer.content.startswith("# Instructions\n\nBe brief.\n\n# Tools")
    assert tuple(rest) == conversation().messages


def test_a_completion_is_read_from_its_first_header() -> None:
    text = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>"
    expected = (Message("assistant", "x", "analysis"), Message("assistant", "y", "final"))
    assert messages_of(encode(text)) == expected
    assert messages_of(encode("<|start|>assistant" + text)) == expected


def test_sampled_ids_are_kept_on_request() -> None:
    text = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    ids = encode("<|start|>user<|message|>?<|end|><|start|>assistant" + text)
    user, call = messages_of(ids, keep_ids=True)
    assert user.raw_ids is None
    assert call.raw_ids == tuple(encode(text))
    assert messages_of(encode(text), keep_ids=True)[0].raw_ids == tuple(encode(text))


@pytest.mark.parametrize(
    ("text", "kind", "position"),
    [
        ("", "empty", 0),
        ("hello", "truncated", 0),
        ("<|start|>user<|message|>x", "truncated", 3),
        ("<|start|>user<|message|>x<|end|><|start|>", "truncated", 5),
        ("<|start|>user<|message|>x<|end|>\n<|start|>assistant", "stray_tokens", 5),
        ("<|start|>assistant<|message|>x<|end|>", "no_channel", 1),
        ("<|start|>assistant<|channel|>thought<|message|>x<|end|>", "unknown_channel", 3),
        ("<|start|>user<|message|>x<|channel|>y<|end|>", "special_in_content", 4),
        ("<|start|>assistant<|channel|>final hm<|message|>x<|end|>", "header_grammar", 4),
    ],
)
def test_what_is_not_harmony_is_refused_with_its_place(text: str, kind: str, position: int) -> None:
    with pytest.raises(RowError) as caught:
        messages_of(encode(text))
    assert caught.value.kind == kind
    assert caught.value.field == f"tokens[{position}]"
    assert "\n" not in str(caught.value)


def test_ids_that_are_none_and_text_that_is_not_utf8_are_refused() -> None:
    with pytest.raises(RowError, match="not an integer"):
        messages_of([200006, 1428, 200008, 201088, 200007])
    with pytest.raises(RowError) as caught:
        messages_of([200006, 1428, 200008, 122, 200007])
    assert caught.value.kind == "not_utf8"
