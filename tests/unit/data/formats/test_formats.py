"""Every format's rows (fixtures/NAME.jsonl) are told apart and read; what fixtures/golden.json holds, a person has read
line by line, and the rows become exactly that.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.formats.claude_code import by_session
from counterpoint.data.formats.convert import convert
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.formats.registry import FORMATS, detect
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import RawRow

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = json.loads((FIXTURES / "golden.json").read_text(encoding="utf-8"))


def rows_of(file: Path) -> list[RawRow]:
    lines = file.read_bytes().splitlines()
    return [RawRow(f"{file.name}:{n}", line, json.loads(line)) for n, line in enumerate(lines, 1)]


def told(message: Message) -> str:
    parts = [message.role + (f":{message.name}" if message.name else ""), message.channel]
    parts.append(f"to={message.recipient}" if message.recipient else None)
    parts.append(message.content_type)
    parts.append(f"weight={message.weight:g}" if message.weight != 1 else None)
    parts.append(f"ids={len(message.raw_ids)}" if message.raw_ids else None)
    return f"{' '.join(part for part in parts if part)} | {message.content}"


def whole(value) -> dict:
    if isinstance(value, Preference):
        sides = {"chosen": [told(m) for m in value.chosen], "rejected": [told(m) for m in value.rejected]}
        return {"prompt": whole(value.prompt), **sides}
    assert isinstance(value, Conversation), value.message
    out: dict = {"messages": [told(m) for m in value.messages]}
    out |= {
        k: getattr(value, k) for k in ("instructions", "effort", "date", "identity") if getattr(value, k) is not None
    }
    if value.tools:
        out["tools"] = [tool.name for tool in value.tools]
    if value.builtin_tools:
        out["builtin_tools"] = list(value.builtin_tools)
    if value.response_formats:
        out["response_formats"] = [f.name for f in value.response_formats]
    if value.opening_ids is not None:
        out["opening_ids"] = len(value.opening_ids)
    if value.metadata:
        out["metadata"] = dict(value.metadata)
    return out | {"notices": [notice.kind for notice in value.notices]}


@pytest.mark.parametrize("format", sorted(GOLDEN))
def test_a_format_becomes_exactly_these_conversations(format):
    assert [whole(c) for c in read_conversations([str(FIXTURES / f"{format}.jsonl")])] == GOLDEN[format]


def test_every_format_has_a_fixture_and_every_fixture_a_format():
    assert sorted(file.stem for file in FIXTURES.glob("*.jsonl")) == sorted(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_a_format_are_detected_as_it_and_read_alike_where_it_is_named(format):
    values = [row.value for row in by_session(rows_of(FIXTURES / f"{format}.jsonl")) if isinstance(row, RawRow)]
    assert values
    for value in values:
        assert detect(value) == format
        converted = convert(value, format)
        assert converted == convert(value)
        assert (converted.prompt if isinstance(converted, Preference) else converted).format == format


def test_a_name_that_is_no_format_is_told_with_the_names():
    with pytest.raises(ConfigError, match=r"^unknown format `sharegtp`: .* sharegpt, or your own .*mean `sharegpt`\?$"):
        convert({"messages": []}, "sharegtp")


def test_one_conversation_in_openai_sharegpt_anthropic_responses_and_messages_is_the_same():
    wanted = (
        Message("user", "Hi"),
        Message("assistant", "Greet.", "analysis"),
        Message("assistant", "Hello.", "final"),
    )
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "thinking": "Greet.", "content": "Hello."},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "<think>\nGreet.\n</think>\n\nHello."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Greet."}, {"type": "text", "text": "Hello."}],
                },
            ]
        },
        {
            "input": "Hi",
            "output": [
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Greet."}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
            ],
        },
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "channel": "analysis", "content": "Greet."},
                {"role": "assistant", "channel": "final", "content": "Hello."},
            ]
        },
        {"user": "Hi", "analysis": "Greet.", "final": "Hello."},
    ]
    formats = [detect(row) for row in rows]
    assert formats == ["messages", "sharegpt", "anthropic", "responses", "harmony", "multilingual_thinking"]
    for row in rows:
        conversation = convert(row)
        assert isinstance(conversation, Conversation)
        assert conversation.messages == wanted
        assert conversation.notices == ()


def test_raw_harmony_is_rendered_back_to_the_same_ids():
    vocabulary = load_vocabulary()
    text = json.loads((FIXTURES / "harmony.jsonl").read_text(encoding="utf-8").splitlines()[1])["text"]
    ids = vocabulary.encode_with_specials(text)
    for value in ({"text": text}, {"input_ids": ids}):
        conversation = convert(value)
        assert isinstance(conversation, Conversation)
        (example,) = Renderer(vocabulary).examples(conversation)
        assert example.ids.tolist() == ids


def test_a_malformed_prompt_is_kept_as_ids_and_only_the_response_is_trained():
    vocabulary = load_vocabulary()
    odd = "<|start|>assistant<|channel|>odd<|channel|>final<|message|>x<|end|>"
    prompt = f"<|start|>user<|message|>Hi<|end|>{odd}<|start|>assistant"
    response = "<|channel|>final<|message|>Hello.<|return|>"
    conversation = convert({"prompt": prompt, "response": response})
    assert isinstance(conversation, Conversation)
    assert [notice.kind for notice in conversation.notices] == ["malformed_prompt"]
    (example,) = Renderer(vocabulary).examples(conversation)
    assert example.ids.tolist() == vocabulary.encode_with_specials(prompt + response)
    assert vocabulary.decode(example.ids[example.weights > 0]) == response


def test_harmony_messages_as_openai_harmony_writes_them():
    value = {
        "messages": [
            {
                "role": "system",
                "content": [
                    {
                        "type": "system_content",
                        "model_identity": "You are X.",
                        "reasoning_effort": "Low",
                        "conversation_start_date": "2025-01-02",
                        "tools": {"python": {"name": "python"}},
                    }
                ],
            },
            {
                "role": "developer",
                "content": [
                    {
                        "type": "developer_content",
                        "instructions": "Be brief.",
                        "tools": {"functions": {"tools": [{"name": "f", "description": "F", "parameters": None}]}},
                    }
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "channel": "commentary", "recipient": "functions.f", "content": "{}"},
            {"role": "tool", "name": "functions.f", "channel": "commentary", "recipient": "assistant", "content": "1"},
            {"role": "assistant", "channel": "final", "content": "One."},
        ]
    }
    conversation = convert(value)
    assert isinstance(conversation, Conversation)
    assert (conversation.effort, conversation.date, conversation.identity) == ("low", "2025-01-02", "You are X.")
    assert (conversation.instructions, conversation.builtin_tools) == ("Be brief.", ("python",))
    assert [tool.name for tool in conversation.tools] == ["f"]
    assert conversation.messages[1] == Message("assistant", "{}", "commentary", "functions.f")
    assert conversation.messages[2] == Message("tool", "1", "commentary", name="functions.f")


def test_a_preference_shares_its_prompt_and_keeps_both_sides_apart():
    messages = [{"role": "user", "content": "Hi"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    explicit = convert({"prompt": messages, "chosen": answers[0], "rejected": answers[1]})
    implicit = convert({"chosen": messages + answers[0], "rejected": messages + answers[1]})
    repeated = convert({"prompt": messages, "chosen": messages + answers[0], "rejected": messages + answers[1]})
    strings = convert({"prompt": "Hi", "chosen": "a", "rejected": "b"})
    for pair in (explicit, implicit, repeated, strings):
        assert isinstance(pair, Preference)
        assert pair.prompt.messages == (Message("user", "Hi"),)
        assert pair.chosen == (Message("assistant", "a", "final"),)
        assert pair.rejected == (Message("assistant", "b", "final"),)
    assert replace(explicit, prompt=implicit.prompt) == implicit
