"""OpenAI's graders on recorded cases. The files in tests/golden/openai_graders.json are valid for the types of the
package openai 2.54.0, the mapping of `multi` apart, which OpenAI's guide has and its type has not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from finals import finished
from json_server import serving_json

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import GraderReward
from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.scoring.asking import UnjudgedError
from counterpoint.train.scoring.formulas import Formula
from counterpoint.train.scoring.graders import Grader
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

FILES = json.loads((Path(__file__).parents[3] / "golden/openai_graders.json").read_text())
ITEM = {"reference_answer": "Oslo", "name": "Fuzzy Wuzzy", "about": {"topic": "capitals"}}


def outcome(final: str | None, item: Mapping[str, Any] = ITEM) -> Outcome:
    return Outcome(finished(final), (), Reference(prompt="?"), row=item)


def graded(
    grader: Mapping[str, Any], final: str | None, item: Mapping[str, Any] = ITEM, **settings: Any
) -> float | None:
    made = Grader(GraderReward(type="grader", grader=dict(grader), **settings), "g", pause=0.001)
    try:
        return made.one(outcome(final, item)).value
    finally:
        made.close()


def check(
    operation: str, text: str = "{{sample.output_text}}", reference: str = "{{item.reference_answer}}"
) -> dict[str, Any]:
    return {"type": "string_check", "name": "c", "input": text, "reference": reference, "operation": operation}


@pytest.mark.parametrize(
    ("operation", "final", "value"),
    [
        ("eq", "Oslo", 1), ("eq", "oslo", 0), ("eq", "It is Oslo", 0), ("ne", "Oslo", 0), ("ne", "oslo", 1),
        ("like", "It is Oslo.", 1), ("like", "It is OSLO.", 0), ("ilike", "It is OSLO.", 1), ("ilike", "It is Rome.", 0),
    ],
)  # fmt: skip
def test_strings_are_checked(operation: str, final: str, value: float) -> None:
    assert graded(check(operation), final) == value


def test_what_a_sample_lacks_is_worth_nothing_and_what_a_row_lacks_does_not_count() -> None:
    assert graded(check("ne"), None) == 0
    assert graded(check("eq", "{{ sample.output_json.a[1].b }}", "x"), '{"a": [0, {"b": "x"}]}') == 1
    assert graded(check("eq", "{{ sample.output_json.a }}", "[1, 2]"), '{"a": [1, 2]}') == 1
    assert graded(check("eq", "{{ sample.output_json.a }}", "x"), "no JSON") == 0
    assert graded(check("eq"), "Oslo", {}) is None
    with Rewards([GraderReward(type="grader", grader=check("eq"))]) as rewards:
        assert rewards.unjudged([outcome(None), outcome(None, {})]) == {"grader": 1}
        with pytest.raises(ConfigError, match=re.escape("reward grader: no row has `{{ item.reference_answer }}`")):
            rewards.unjudged([outcome(None, {})])


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("def grade(sample, item):\n    return sample['output_text'] == item['reference_answer']", 1.0),
        ("def grade(sample, item):\n    return 0.25 if sample['output_tools'] == [] else 0", 0.25),
        ("def grade(sample, item):\n    return -3", -3.0),
        ("def grade(sample, item):\n    return 'good'", None),
        ("def grade(sample, item):\n    return float('nan')", None),
        ("def grade(sample, item):\n    raise ValueError('odd')", None),
        ("def grade(sample, item):\n    import os\n    os._exit(0)", None),
        ("def grade(sample, item):\n    while True: pass", None),
        ("def other(): pass", None),
    ],
)
def test_python_grades_in_the_sandbox(source: str, value: float | None) -> None:
    assert graded({"type": "python", "name": "p", "source": source}, "Oslo", seconds=1.0) == value


def test_models_are_asked_as_the_grader_says() -> None:
    bodies: list[Any] = []

    def answer(path: str, body: Any) -> Any:
        bodies.append(body)
        properties = body["response_format"]["json_schema"]["schema"]["properties"]
        rude = "rude" in body["messages"][-1]["content"]
        said = {"label": "rude" if rude else "polite"} if "label" in properties else {"score": 8}
        return {"choices": [{"message": {"content": json.dumps({"explanation": "", **said})}}]}

    with serving_json(answer) as url:
        assert graded(FILES["score_model"], "Oslo", url=f"{url}/v1") == 8.0
        assert graded(FILES["label_model"], "Oslo, dear.", url=f"{url}/v1") == 1.0
        assert graded(FILES["label_model"], "A rude Oslo.", url=f"{url}/v1", model="mine") == 0.0
    first = bodies[0]
    assert [first[name] for name in ("model", "seed", "temperature", "max_tokens", "reasoning_effort")] == [
        "gpt-4o-2024-08-06", 42, 0, 300, "low",
    ]  # fmt: skip
    assert [each["role"] for each in first["messages"]] == ["system", "system", "user"]
    assert first["messages"][1]["content"] == "Grade against Oslo."
    assert re.sub(r' id="\w+"', "", first["messages"][2]["content"]) == (
        "Answer: <sample.output_text>\nOslo\n</sample.output_text>\nof capitals"
    )
    assert first["response_format"]["json_schema"]["schema"]["properties"]["score"]["maximum"] == 10.0
    assert bodies[1]["response_format"]["json_schema"]["schema"]["properties"]["label"] == {
        "enum": ["polite", "neutral", "rude"]
    }
    assert bodies[2]["model"] == "mine"
    gone = GraderReward(type="grader", grader=FILES["label_model"], url=f"{url}/v1", retries=0)
    with Rewards([gone]) as rewards:
        assert math.isnan(rewards.score(outcome("Oslo"))[0])
        assert rewards.failures == {"grader": 1}


def test_a_formula_combines_graders(tmp_path: Path) -> None:
    path = tmp_path / "grader.json"
    path.write_text(json.dumps(FILES["multi"]))
    vocabulary = load_vocabulary()
    text = (
        "<|channel|>commentary to=functions.look <|constrain|>json<|message|>{}<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Oslo<|return|>"
    )
    completion = parse_completion(vocabulary.encode_with_specials(text), vocabulary, tools=(Tool("look"),))
    with Rewards([GraderReward(type="grader", path=str(path))]) as rewards:
        assert rewards.score(Outcome(completion, (), Reference(prompt="?"), row=ITEM)) == [pytest.approx(0.75**2 + 0.1)]
        assert rewards.score(outcome("Oslo")) == [pytest.approx(0.25 + 0.1)]
        assert rewards.score(outcome("Rome")) == [0.0]
    assert graded(FILES["multi_of_one"], '{"name": "fuzzy wuzzy"}') == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + 2 * b", 7),
        ("-a ^ 2 + b", 2),
        ("max(a, b, 2) / 4", 0.75),
        ("floor(2.5) + ceil(0.2) + abs(-1)", 4),
        ("log(exp(b))", 3),
    ],
)
def test_formulas(text: str, value: float) -> None:
    assert Formula.read(text, ("a", "b"), "g")({"a": 1.0, "b": 3.0}) == pytest.approx(value)


@pytest.mark.parametrize("text", ["a / 0", "sqrt(0 - 1)", "exp(1000)", "log(0)", "10 ^ 400"])
def test_a_formula_without_a_value_is_invalid_not_zero(text: str) -> None:
    with pytest.raises(UnjudgedError, match="calculate_output"):
        Formula.read(text, ("a",), "g")({"a": 1.0})


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "a.real", "a if a else 1", "[a]", "a; a", "lambda: 1", "c", "min()", "sqrt(1, 2)", "open(a)", "'a'", "True", "a < 1", "(" * 3000, ""],
)  # fmt: skip
def test_a_formula_is_numbers_and_names_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="g: calculate_output: "):
        Formula.read(text, ("a",), "g")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input": "{{ sample.output_txt }}"}, "grader `c`: unknown variable `{{ sample.output_txt }}`: take one of"),
        ({"reference": "{{ reference_answer }}"}, "unknown variable `{{ reference_answer }}`"),
        ({"input": "{{ item }}"}, "unknown variable `{{ item }}`"),
        ({"operation": "equals"}, "grader `c`: operation: "),
        ({"type": "cosine"}, "type `cosine`: take one of string_check"),
        ({"weight": 1}, "grader `c`: weight: "),
        ({"type": "text_similarity", "evaluation_metric": "cosine", "operation": None}, "operation: "),
        ({"name": None}, "name: "),
    ],
)
def test_what_no_grader_has_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        graded({**check("eq"), **change}, "x")


@pytest.mark.parametrize(
    ("grader", "told"),
    [
        ({"type": "text_similarity", "name": "s", "input": "a", "reference": "b", "evaluation_metric": "cosine"}, "`cosine` compares OpenAI's embeddings"),
        ({"type": "python", "name": "p", "source": "def grade(:"}, "grader `p`: source: no Python"),
        (FILES["score_model"], "grader `judge` asks a model: set `url`"),
        ({**FILES["score_model"], "range": [1, 1]}, "the least score comes first"),
        ({**FILES["score_model"], "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images and audio cannot be sent"),
        ({**FILES["label_model"], "passing_labels": ["kind"]}, "passing_labels: `kind` is none of `labels`"),
        ({**FILES["multi"], "calculate_output": "exact + other"}, "unknown name `other`: take one of exact, fuzzy, called"),
        ({**FILES["multi"], "graders": {}}, "graders: write them by name"),
    ],
)  # fmt: skip
def test_a_grader_that_cannot_run_here_is_refused(grader: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        graded(grader, "x")


def test_what_is_ignored_of_a_grader_is_told() -> None:
    with Rewards([GraderReward(type="grader", grader=FILES["python"], name="mine")]) as rewards:
        assert rewards.notes == [
            "reward mine: grader `lengths`: image_tag is ignored: it runs in this machine's Python, without packages"
        ]


@pytest.mark.parametrize(("text", "told"), [(None, "cannot be read"), ("{", "no JSON")])
def test_a_file_that_is_no_grader_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "grader.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        Rewards([GraderReward(type="grader", path=str(path))])
