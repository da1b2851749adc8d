"""Prompts from files, completions judged, rates over them: exact numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import DataError
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.intervals import share_estimate, wilson
from counterpoint.train.evals.channels import Judged, judge, summarise
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts
from counterpoint.train.scoring.scorers import Scorers

VOCABULARY = load_vocabulary()
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}]
USER = {"role": "user", "content": "1+2?"}
RIGHT = "<|channel|>analysis<|message|>One two.<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>"
CALL = (
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a":1}<|call|>'
)
UNKNOWN = CALL.replace("functions.add", "functions.sub")


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    with Scorers() as made:
        yield made


def prompts_of(tmp_path: Path, *rows: dict[str, Any]) -> list[EvalPrompt]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_prompts(str(path))


def test_truth_of_rows_chooses_the_scorer(tmp_path: Path) -> None:
    plain, number, word, call, bfcl, schema, cut = prompts_of(
        tmp_path,
        {"messages": [USER]},
        {"messages": [USER], "answer": 3},
        {"messages": [USER], "answer": "three", "id": "word"},
        {"messages": [USER], "tools": TOOLS, "call": {"name": "functions.add", "arguments": {"a": 1}}},
        {"messages": [USER], "tools": TOOLS, "calls": [{"add": {"a": [1, 2]}}]},
        {"messages": [USER], "schema": {"type": "object"}},
        {"messages": [USER, {"role": "assistant", "content": "3"}], "answer": "3", "scorer": "exact"},
    )
    assert [p.scorer for p in (plain, number, word, call, bfcl, schema, cut)] == [
        None, "number", "exact", "calls", "calls", "schema", "exact",
    ]  # fmt: skip
    assert word.id == "word"
    assert bfcl.reference.calls is not None
    assert bfcl.reference.calls[0].any_of
    assert [m.role for m in cut.conversation.messages] == ["user"]


def test_unusable_prompt_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl:1"):
        prompts_of(tmp_path, {"messages": 3})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        load_prompts(str(tmp_path / "empty.jsonl"))


def test_summary(tmp_path: Path, scorers: Scorers) -> None:
    answer, call = prompts_of(
        tmp_path,
        {"messages": [USER], "answer": "3"},
        {"messages": [USER], "tools": TOOLS, "call": {"name": "add", "arguments": {"a": 1}}},
    )

    def sample(prompt: EvalPrompt, effort: Any, text: str) -> Judged:
        return judge(prompt, effort, 0, VOCABULARY.encode_with_specials(text), "stop", VOCABULARY, scorers)

    samples = [
        sample(answer, "low", RIGHT),
        sample(answer, "high", RIGHT.replace("3", "4")),
        sample(answer, "high", "<|channel|>final<|message|>3"),
        sample(call, "low", CALL),
        sample(call, "high", UNKNOWN),
    ]
    summary = summarise(samples)
    assert (summary.correct.count, summary.correct.n) == (3, 5)
    assert summary.violations["truncated"].count == 1
    assert summary.violations["unknown_tool"].count == 1
    assert (summary.with_analysis.count, summary.with_analysis.n) == (4, 5)
    assert (summary.valid_calls.count, summary.valid_calls.n) == (1, 2)
    assert (summary.right_answers.count, summary.right_answers.n) == (1, 3)
    assert (summary.right_calls.count, summary.right_calls.n) == (1, 2)
    assert summary.analysis_tokens == {"low": 2.0, "high": 4 / 3}
    assert summary.scalars()["channel_correct/low"] == 1.0
    of_prompts = share_estimate([1.0, 1.0, 0.0, 1.0, 0.0], ["answer"] * 3 + ["call"] * 2)
    correct = summary.as_dict()["correct"]
    assert (correct["count"], correct["n"], correct["rate"]) == (3, 5, 0.6)
    assert (correct["low"], correct["high"]) == (pytest.approx(of_prompts.low), pytest.approx(of_prompts.high))
    assert correct["low"] < wilson(3, 5)[0], "five samples of two prompts are no five prompts"
    json.dumps([s.as_row(VOCABULARY) for s in samples])


def test_no_samples_have_no_rates() -> None:
    summary = summarise([])
    assert summary.correct.share is None
    assert summary.scalars() == {"scorer_failures": 0.0}
