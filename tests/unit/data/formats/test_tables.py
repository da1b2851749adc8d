"""Questions and answers in columns: of well-known data sets without a word, of any other as its source says."""

import json

import pytest
from read_rows import ANSWERED, ASKED, read

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.formats.convert import convert, trainable
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.rows.row import BadRow
from counterpoint.recipes.cli import main
from counterpoint.train.scoring.prompts import prompt_of

ROLES = {"user": "customer", "assistant": ["agent", "robot"]}
THOUGHT = Message("assistant", "T", "analysis")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "response": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "answer": "A"},
        {"prompt": [{"role": "user", "content": "Q"}], "response": {"role": "assistant", "content": "A"}},
        {"query": "Q", "response": "A"},
        {"question": "Q", "response": "A"},
        {"user": "Q", "assistant": "A"},
        {"input": "Q", "output": "A"},
        {"input": [{"role": "user", "content": "Q"}], "output": "A"},
        {"inputs": "Q", "targets": "A"},
        {"instruction": "Q", "context": "", "response": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>"},
        {"text": "### Human: Q\n### Assistant: A"},
        {"data": ["Q", "A"]},
    ],
)
def test_a_known_table_is_a_pair_to_train_where_it_was_refused_or_a_prompt_for_rl(row):
    conversation = read(row)
    assert conversation.messages == (ASKED, ANSWERED)
    trainable(conversation)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "thinking": "T", "answer": "A"},
        {"prompt": "Q", "reasoning": "T", "response": "A"},
        {"Question": "Q", "Complex_CoT": "T", "Response": "A"},
        {"question": "Q", "thinking_trajectories": ["T"], "attempt": "A"},
        {"problem": "Q", "reasoning": "T", "solution": "A"},
        {"instruction": "Q", "output": "A", "reasoning": "T"},
        {"instruction": "Q", "output": "<think>T</think>A"},
        {"prompt": "Q", "completion": "A", "reasoning": "T"},
        {"prompt": "Q", "response": {"content": "A"}, "thinking": "T"},
    ],
)
def test_reasoning_in_a_column_is_analysis_where_it_was_metadata(row):
    assert read(row).messages == (ASKED, THOUGHT, ANSWERED)


def test_a_switch_is_no_reasoning_and_a_system_prompt_is_the_instructions():
    conversation = read({"input": "Q", "output": "A", "reasoning": "on", "system_prompt": "S"})
    assert (conversation.instructions, conversation.messages) == ("S", (ASKED, ANSWERED))
    assert [n.field for n in conversation.notices if n.kind == "unread_field"] == ["reasoning"]


def test_calls_that_answer_a_query_are_trained_where_only_the_prompt_was_read():
    tools = json.dumps([{"name": "f", "description": "F", "parameters": {"type": {"type": "str", "description": "T"}}}])
    conversation = read({"query": "Q", "tools": tools, "answers": '[{"name": "f", "arguments": {"type": "b"}}]'})
    call = Message("assistant", '{"type":"b"}', "commentary", "functions.f", content_type="<|constrain|>json")
    assert conversation.messages == (ASKED, call)
    assert conversation.tools[0].parameters == {
        "type": "object",
        "properties": {"type": {"type": "string", "description": "T"}},
        "required": ["type"],
    }


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "answer": 4},
        {"question": "Q", "answer": "4"},
        {"problem": "Q", "solution": "4"},
        {"prompt": "Q", "answer": "4", "data_source": "gsm8k"},
        {"prompt": "Q", "ground_truth": "4", "response": "5"},
    ],
)
def test_a_prompt_with_a_reference_stays_one_for_rl_and_sft_is_told_the_mapping(row):
    conversation = read(row)
    assert (conversation.format, conversation.messages) == ("rl", (ASKED,))
    with pytest.raises(RowError) as caught:
        trainable(conversation)
    if any(isinstance(row.get(key), str) for key in ("answer", "solution")):
        assert "to train it map the source's `columns: {prompt: ..., answer: " in caught.value.fix


def test_an_answer_that_is_trained_is_the_truth_of_its_prompt_in_rl():
    asked = prompt_of(read({"prompt": "Q", "answer": "4"}))
    assert asked.conversation.messages == (ASKED,)
    assert (asked.reference.answer, asked.scorer) == ("4", "number")


def test_a_table_that_nobody_knows_is_refused_with_the_mapping_to_write():
    with pytest.raises(RowError) as caught:
        convert({"id": "7", "ask": "Q", "reply": "A", "source": "x"})
    proposed = "say which column is what, as in data.train: {path: FILE, columns: {prompt: ask, answer: reply}}"
    assert caught.value.fix == f"{proposed}, or write messages"


def source(tmp_path, row, **mapping):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = read_conversations([SourceSettings(path=str(tmp_path / "a.jsonl"), **mapping)], ConversionSettings())
    return item


def test_a_source_says_what_its_columns_are(tmp_path):
    columns = {"prompt": "ask", "answer": "reply", "thinking": "notes", "context": "about", "system": "house"}
    row = {"ask": "Q", "reply": "A", "notes": "T", "about": "C", "house": "S", "id": 1}
    item = source(tmp_path, row, columns=columns)
    assert isinstance(item, Conversation)
    assert (item.instructions, item.messages) == ("S", (Message("user", "Q\nC"), THOUGHT, ANSWERED))
    assert item.metadata == {"id": 1}
    missing = source(tmp_path, {"ask": "Q"}, columns={"prompt": "ask", "answer": "reply"})
    assert isinstance(missing, BadRow)
    told = "reply: missing: `columns` names it as answer: correct the source's `columns`"
    assert missing.message.endswith(told)


def test_a_source_says_who_speaks_and_where(tmp_path):
    thread = [{"by": "customer", "text": "Q"}, {"by": "agent", "text": "A", "thinking": "T"}]
    columns = {"messages": "thread", "role": "by", "content": "text"}
    item = source(tmp_path, {"thread": thread}, columns=columns, roles=ROLES)
    assert isinstance(item, Conversation)
    assert item.messages == (ASKED, THOUGHT, ANSWERED)
    messages = [{"role": "customer", "content": "Q"}, {"role": "agent", "content": "A"}]
    item = source(tmp_path, {"messages": messages}, roles=ROLES)
    assert isinstance(item, Conversation)
    assert item.messages == (ASKED, ANSWERED)


def test_a_source_says_which_columns_are_a_pair(tmp_path):
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    item = source(tmp_path, {"ask": "Q", "good": "A", "bad": "B"}, columns=columns)
    assert isinstance(item, Preference)
    assert (item.prompt.messages, item.chosen) == ((ASKED,), (ANSWERED,))
    assert item.rejected == (Message("assistant", "B", "final"),)


def test_columns_that_are_no_row_are_a_mistake_of_the_settings():
    for mapping, told in (
        ({"columns": {"prompt": "a"}}, "they are no whole row: name `messages`"),
        ({"columns": {"prompt": "a", "answer": "b"}, "format": "rl"}, "leave `format` out"),
        ({"columns": {"ask": "a"}}, "ask"),
    ):
        with pytest.raises(ValueError, match=told):
            SourceSettings(path="a.jsonl", **mapping)


def test_the_command_reads_a_mapped_csv_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faq.csv").write_text("ask,reply\nQ,A\nR,B\n")
    run = "recipe: sft\nmodel: {name: openai/gpt-oss-20b}\ndata: {train: {path: faq.csv, columns: {prompt: ask, answer: reply}}}\n"
    (tmp_path / "run.yaml").write_text(run)
    assert main(["validate", "--config", "run.yaml", "--for", "sft"]) == 0
    assert "2 rows: 2 good, 0 bad" in capsys.readouterr().out
