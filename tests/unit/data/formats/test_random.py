"""Whatever JSON a row holds, reading it ends in a conversation or in a RowError, and nothing else."""

import copy
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CHANNELS, Conversation, Preference
from counterpoint.data.counts.counter import kind_of
from counterpoint.data.formats.convert import convert
from counterpoint.data.formats.registry import FORMATS, detect
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROWS = [json.loads(line) for file in sorted(FIXTURES.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]


def paths(value, path=()):
    """Every place of a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from paths(child, (*path, key))


def keys(value):
    for path in paths(value):
        yield from (key for key in path if isinstance(key, str))


EXTRA = ["oneOf", "anyOf", "allOf", "$ref", "$defs", "items", "enum", "inputSchema", "custom", "author", "audio"]
WORDS = sorted({key for row in ROWS for key in keys(row)} | set(EXTRA))
TEXTS = [
    *["user", "assistant", "system", "tool", "function", "human", "gpt", "observation", "function_call", "message"],
    *["reasoning", "function_call_output", "text", "thinking", "tool_use", "tool_result", "input_text", "output_text"],
    *["json_schema", "object", "string", "dict", "functions.f", "python", "f", "a b", "", " ", "{}", '{"a":1}', '"{}"'],
    *["<think>a</think>b", "<think>", "</think>", '<tool_call>{"name":"f","arguments":{}}</tool_call>', "<tool_call>"],
    *["<tool_response>x</tool_response>", "<tools>[]</tools>", "<tools>x</tools>", "analysis", "final", "commentary"],
    *["<|start|>user<|message|>x<|end|>", "<|channel|>", "high", "2025-01-01", "\x00", "🙂", "#/$defs/a", "#"],
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 200_020)
    | st.floats(-1, 2)
    | st.sampled_from(TEXTS)
    | st.text(max_size=5)
)
ANY = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=25,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(TEXTS[:6]), "content": st.sampled_from(TEXTS) | ANY},
    optional={
        key: ANY | st.sampled_from(TEXTS)
        for key in ("name", "tool_calls", "tool_call_id", "thinking", "weight", "channel")
    },
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["f", "g.h", "python"]), "arguments": st.just("{}")}
            )
        },
        optional={"id": st.sampled_from(["a", "b"])},
    ),
    max_size=3,
)
CHAT = st.fixed_dictionaries(
    {
        "messages": st.lists(
            MESSAGE
            | st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": CALLS})
            | st.fixed_dictionaries(
                {"role": st.just("tool"), "content": st.sampled_from(TEXTS)},
                optional={"tool_call_id": st.sampled_from(["a", "b"]), "name": st.sampled_from(["f", "g.h"])},
            ),
            max_size=8,
        )
    },
    optional=dict.fromkeys(("tools", "response_format", "parallel_tool_calls", "reasoning_effort", "system"), ANY),
)


@st.composite
def mutated(draw):
    """A good row in which one to three places hold something else, or nothing."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([p for p in paths(row) if p]))
        parent = row
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["leaf", "any", "delete", "repeat"])):
            case "delete":
                del parent[last]
            case "repeat" if isinstance(parent, list):
                parent.insert(last, copy.deepcopy(parent[last]))
            case "any":
                parent[last] = draw(ANY)
            case _:
                parent[last] = draw(LEAVES)
        if not row:
            break
    return row


OPTIONS = [
    ConversionSettings(),
    ConversionSettings(
        text_beside_call="analysis",
        parallel_calls="first",
        calls_without_result="quarantine",
        unmatched_results="quarantine",
        double_encoded_arguments="quarantine",
        object_arguments="quarantine",
        late_system="quarantine",
        harmony_system="text",
        images="placeholder",
        unanswered="trim",
        harmony_markup="quarantine",
        tool_names="rename",
        date_field="date",
        effort_field="metadata.effort",
        builtin_tools=("python", "browser"),
    ),
]


def read(value, format, options):
    """The conversation of a row, whose parts are what the type says; None for a RowError."""
    with suppress(RowError):
        converted = convert(value, format, options)
        kind_of(converted)
        conversation = converted.prompt if isinstance(converted, Preference) else converted
        assert isinstance(conversation, Conversation)
        for message in conversation.messages:
            assert isinstance(message.content, str)
            assert (message.channel in CHANNELS) == (
                message.role in ("assistant", "tool") and message.channel is not None
            )
            assert message.role != "tool" or message.name
        json.dumps(dict(conversation.metadata))
        return conversation
    return None


@settings(max_examples=150, deadline=None)
@given(value=ANY, options=st.sampled_from(OPTIONS))
def test_any_json_is_read_or_refused_in_every_format(value, options):
    with suppress(RowError):
        assert detect(value) in FORMATS
    for format in FORMATS:
        read(value, format, options)


@settings(max_examples=300, deadline=None)
@given(value=mutated(), format=st.sampled_from(("auto", *FORMATS)), options=st.sampled_from(OPTIONS))
def test_a_good_row_gone_wrong_is_read_or_refused(value, format, options):
    read(value, format, options)
    read(value, "auto", options)


@settings(max_examples=120, deadline=None)
@given(value=CHAT, options=st.sampled_from(OPTIONS))
def test_any_chat_is_read_or_refused_and_every_call_is_followed_by_its_result(value, options):
    conversation = read(value, "auto", options)
    if conversation is None or conversation.format == "harmony":
        return
    messages = conversation.messages
    for before, message in zip((None, *messages), messages, strict=False):
        if message.role == "tool":
            assert before is not None
            assert before.is_call
            assert (message.name, message.channel) == (before.recipient, before.channel)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(value=CHAT, options=st.sampled_from(OPTIONS))
def test_every_chat_that_is_read_is_rendered(value, options):
    conversation = read(value, "auto", options)
    if conversation is not None:
        with suppress(RowError):
            renderer = Renderer(load_vocabulary())
            assert renderer.prompt(conversation)
            renderer.examples(conversation)
