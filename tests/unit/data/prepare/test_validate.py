"""Rows of every kind in one pass, and rows of a size that nobody expects."""

import json
from collections import Counter

import pytest

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepare.validate import validate


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(*texts, **fields):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **fields}


def test_counts_are_of_rows(tmp_path):
    image = {"role": "user", "content": [{"type": "image_url"}]}
    rows = [chat("a", "b"), chat("a"), {"messages": [image]}, {"prompt": "x", "chosen": "a", "rejected": "b"}, {"x": 1}]
    bad = []
    found = validate([write(tmp_path / "a.jsonl", *rows)], on_bad=bad.append)
    assert found.rows == 5
    assert found.kinds == Counter(conversation=1, prompt=1, preference=1)
    assert found.formats == Counter(openai=2, preference=1)
    assert found.bad == Counter(media=1, unknown_format=1)
    assert found.notices == Counter(missing_thinking=2)
    assert [row.source.rpartition(":")[2] for row in bad] == ["3", "5"]


def test_weights_and_limits_of_sources(tmp_path):
    file = write(tmp_path / "a.jsonl", *[chat("a", str(n)) for n in range(10)])
    assert validate([SourceSettings(path=file, weight=3.0)]).rows == 10
    assert validate([SourceSettings(path=file, rows=4)]).rows == 4
    assert validate([file, file], ConversionSettings()).rows == 20


def test_a_tool_that_openai_harmony_cannot_write_is_a_bad_row(tmp_path):
    tools = [{"name": "f", "description": f"a{' ' * 2_000_000}b"}]
    found = validate([write(tmp_path / "a.jsonl", chat("a", "b", tools=tools), chat("a", "b"))])
    assert (found.rows, found.bad) == (2, Counter(tool_schema=1))


@pytest.mark.slow
def test_rows_of_a_size_that_nobody_expects(tmp_path):
    letters, spaces, long = "x" * 2_000_000, " " * 2_000_000, "word " * 3_000_000
    many = chat(*[f"message {n}" for n in range(10_000)])
    call = {
        "role": "assistant",
        "tool_calls": [{"id": str(n), "function": {"name": "f", "arguments": "{}"}} for n in range(5_000)],
    }
    results = [{"role": "tool", "tool_call_id": str(n), "content": str(n)} for n in reversed(range(5_000))]
    parallel = {
        "messages": [{"role": "user", "content": "all"}, call, *results, {"role": "assistant", "content": "done"}]
    }
    file = write(tmp_path / "a.jsonl", chat("a", letters), chat("a", spaces + "b"), chat(long, "ok"), many, parallel)
    found = validate([file], use="sft")
    assert (found.rows, found.bad) == (5, {"repetition_loop": 2})
    conversations = list(read_conversations([file]))
    assert [len(c.messages) for c in conversations] == [2, 2, 2, 10_000, 10_002]
    assert [m.content for m in conversations[4].messages[1:7]] == ["{}", "0", "{}", "1", "{}", "2"]
    renderer = Renderer(load_vocabulary())
    for conversation in conversations[:2]:
        assert len(renderer.examples(conversation)) == 1
    broken = tmp_path / "b.jsonl"
    broken.write_bytes(b'{"messages": "' + b"x" * 15_000_000 + b"\n" + json.dumps(chat("a", "b")).encode())
    found = validate([str(broken)])
    assert (found.rows, found.bad) == (2, Counter(truncated=1))
