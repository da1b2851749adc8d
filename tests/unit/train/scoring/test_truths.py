"""The right answer of a row under the names in use, of a path, and of a multiple choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import DataError
from counterpoint.configs.eval_section import SuiteSettings
from counterpoint.train.evals.tasks import build_tasks
from counterpoint.train.scoring.truths import Truth, options_of, truth_of


@pytest.mark.parametrize(
    ("row", "answer", "accepted"),
    [
        ({"answer": 4}, "4", ()),
        ({"ground_truth": "4"}, "4", ()),
        ({"reward_model": {"ground_truth": "4", "style": "rule"}}, "4", ()),
        ({"reference_answer": "4"}, "4", ()),
        ({"expected_answer": "4"}, "4", ()),
        ({"final_answer": "4"}, "4", ()),
        ({"solution": r"So \boxed{3}, no: \boxed{\frac{1}{2}}."}, r"\frac{1}{2}", ()),
        ({"solution": "without a box"}, None, ()),
        ({"target": 4.5}, "4.5", ()),
        ({"answers": ["NYC", "New York"]}, "NYC", ("New York",)),
        ({"targets": ["a", "b"]}, "a", ("b",)),
        ({"ideal": ["a", "b"]}, "a", ("b",)),
        ({"label": "sports"}, "sports", ()),
        ({"label": True}, None, ()),
        ({"answer": ["4"]}, "4", ()),
        ({"answer": ["4", "5"]}, None, ()),
        ({"answer": None, "target": "x"}, "x", ()),
        ({"answer": 1, "choices": ["red", "blue"]}, "B", ()),
        ({"answer": "B", "options": {"A": "red", "B": "blue"}}, "B", ()),
        ({"answer": "blue", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}}, "B", ()),
        ({}, None, ()),
    ],
)
def test_names(row: dict[str, Any], answer: str | None, accepted: tuple[str, ...]) -> None:
    assert truth_of(row, options_of(row), "f:1") == Truth(answer, accepted)


def test_two_that_disagree_are_told() -> None:
    found = truth_of({"answer": "4", "solution": r"\boxed{5}"}, {}, "f:1")
    assert found.answer == "4"
    assert found.notice == (
        "f:1: `answer` (`4`) and `solution` (`5`) disagree: the first is taken; `truth: FIELD` of the task names another"
    )
    assert truth_of({"answer": "Yes", "targets": ["no", "yes"]}, {}, "f:1").notice is None


def test_a_path() -> None:
    row = {"meta": {"gold": [{"value": "x"}, "y"]}, "a.b": 3}
    assert truth_of(row, {}, "f:1", "meta.gold.0.value") == Truth("x")
    assert truth_of(row, {}, "f:1", "a.b") == Truth("3")
    with pytest.raises(
        DataError, match=r"f:1: truth: `meta.silver` holds nothing: name the field with the right answer"
    ):
        truth_of(row, {}, "f:1", "meta.silver")


@pytest.mark.parametrize(
    ("row", "settings", "scorer", "answer"),
    [
        ({"prompt": "?", "answer": r"12\pi"}, {}, "math", r"12\pi"),
        ({"prompt": "?", "answer": "12", "x": {"y": "Rome"}}, {"truth": "x.y"}, "exact", "Rome"),
        ({"prompt": "?", "answer": 0, "choices": ["red", "blue"]}, {}, "choice", "A"),
        ({"prompt": "?", "final_answer": "1,000"}, {}, "number", "1,000"),
    ],
)
def test_a_task_reads_them(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], scorer: str, answer: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"target": "other", "id": "b"}) + "\n")
    [task] = build_tasks(SuiteSettings.model_validate({"tasks": [{"type": "file", "path": str(path), **settings}]}))
    assert [(p.scorer, p.reference.answer) for p in task.prompts] == [(scorer, answer)] * 2
    assert len(task.notices) == (not settings), "two answers of a row that disagree are told, but for a named one"


def test_expected_calls_may_be_json_text() -> None:
    """A column of a table holds calls as text; it was a traceback."""
    from counterpoint.train.scoring.prompts import expected_calls
    from counterpoint.train.scoring.scorers import ExpectedCall

    call = {"name": "f", "arguments": {"n": 1}}
    right = (ExpectedCall("f", {"n": 1}),)
    assert expected_calls({"calls": json.dumps([call])}) == right
    assert expected_calls({"call": json.dumps(call)}) == right
    assert expected_calls({"calls": "none"}) is None
