"""Scorers on typed completions: right, wrong, missing, failed; junk and truncated thoughts earn nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.user_code.worker import Guard
from counterpoint.train.scoring.scorers import ExpectedCall, Reference, Scorers, same_value

THINK = "<|channel|>analysis<|message|>Hm, 42.<|end|><|start|>assistant"


def completion(text: str) -> Completion:
    return parse_completion(load_vocabulary().encode_with_specials(text))


def final(text: str) -> Completion:
    return completion(f"{THINK}<|channel|>final<|message|>{text}<|return|>")


def call(arguments: str, name: str = "add") -> Completion:
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return completion(f"{THINK}{header}{arguments}<|call|>")


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    with Scorers(seconds=30) as made:
        yield made


@pytest.mark.parametrize(
    ("scorer", "text", "answer", "value"),
    [
        ("exact", " Paris \n", "paris", 1.0),
        ("exact", "Paris.", "paris", 1.0),
        ("exact", "Paris or Rome", "paris", 0.0),
        ("lm_eval_gsm8k", "first 7, then 8", "8", 1.0),
        ("number", "So it is $1,234.50.", "work\n#### 1234.5", 1.0),
        ("number", "3/4 of it", "0.75", 1.0),
        ("number", "first 7, then 8", "7", 0.0),
        ("number", "none", "7", 0.0),
        ("number", "−5", "-5", 1.0),
        ("choice", "The answer is (B).", "B", 1.0),
        ("choice", "A or B? I take A", "B", 0.0),
        ("math", r"The result is $\frac{1}{2}$.", "0.5", 1.0),
        ("math", r"\boxed{3}", "4", 0.0),
    ],
)
def test_answers(scorers: Scorers, scorer: str, text: str, answer: str, value: float) -> None:
    assert scorers.score(scorer, final(text), Reference(answer=answer)).value == value


@pytest.mark.parametrize("scorer", ["exact", "number", "math"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "<|channel|>analysis<|message|>42",
        "<|channel|>analysis<|message|>42<|end|>",
        "<|channel|>analysis<|message|>42<|return|>",
        "<|channel|>final<|message|>42",
        "<|channel|>commentary<|message|>42<|end|>",
        "<|channel|>final<|message|>42<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>",
        "<|channel|>final<|message|>42<|return|>42",
    ],
)
def test_what_is_not_one_finished_final_is_no_answer(scorers: Scorers, scorer: str, text: str) -> None:
    score = scorers.score(scorer, completion(text), Reference(answer="42"))
    assert (score.value, score.outcome) == (0.0, "missing")


@pytest.mark.parametrize(
    ("made", "want", "any_of", "value"),
    [
        ('{"a": 1, "b": 2}', {"a": 1, "b": 2}, False, 1.0),
        ('{"a": 1.0, "b": 2}', {"a": 1, "b": 2}, False, 1.0),
        ('{"a": true, "b": 2}', {"a": 1, "b": 2}, False, 0.0),
        ('{"a": 1}', {"a": 1, "b": 2}, False, 0.0),
        ('{"a": 1, "b": 2, "c": 3}', {"a": 1, "b": 2}, False, 0.0),
        ('{"a": "New York, NY"}', {"a": ["new york ny", "NYC"], "b": ["", 3]}, True, 1.0),
        ('{"a": "Boston"}', {"a": ["new york ny", "NYC"]}, True, 0.0),
        ('{"a": [1, {"x": "Y"}]}', {"a": [1, {"x": "Y"}]}, False, 1.0),
        ("not json", {"a": 1}, False, 0.0),
        ('{"a": "17 * 8"}', {"a": "178"}, False, 0.0),
        ('{"a": "17*8"}', {"a": "17 * 8"}, False, 1.0),
        ('{"a": "1 2"}', {"a": "12"}, False, 0.0),
        ('{"a": " 17  * 8"}', {"a": "17 * 8"}, False, 1.0),
        ('{"a": "New York"}', {"a": "new york"}, False, 0.0),
        ('{"a": "New York,NY"}', {"a": "New York, NY"}, False, 1.0),
        ('{"a": "New York, NY"}', {"a": "new york ny"}, False, 0.0),
        ('{"a": ["x y"]}', {"a": ["x  y"]}, False, 1.0),
        ('{"a": "17*8"}', {"a": ["17 * 8"]}, True, 1.0),
        ('{"a": {"city": "Rome"}}', {"a": [{"city": ["rome", "roma"], "zip": ["", 1]}]}, True, 1.0),
        ('{"a": {"city": "Rome", "zip": 2}}', {"a": [{"city": ["rome"], "zip": ["", 1]}]}, True, 0.0),
        ('{"a": {"zip": 1}}', {"a": [{"city": ["rome"], "zip": ["", 1]}]}, True, 0.0),
        ('{"a": [{"n": 1}, {"n": 2}]}', {"a": [[{"n": [1]}, {"n": [2, 3]}]]}, True, 1.0),
        ('{"a": [{"n": 1}]}', {"a": [[{"n": [1]}, {"n": [2]}]]}, True, 0.0),
    ],
)
def test_calls(scorers: Scorers, made: str, want: dict[str, object], any_of: bool, value: float) -> None:
    reference = Reference(calls=(ExpectedCall("functions.add", want, any_of),))
    assert scorers.score("calls", call(made), reference).value == value


def test_wrong_tool_no_call_and_a_call_too_many(scorers: Scorers) -> None:
    reference = Reference(calls=(ExpectedCall("add", {"a": 1}),))
    assert scorers.score("calls", call('{"a": 1}', "subtract"), reference).outcome == "wrong"
    bare = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary to=add <|constrain|>json"
    assert scorers.score("calls", completion(bare + '<|message|>{"a": 1}<|call|>'), reference).outcome == "wrong"
    assert scorers.score("calls", final("1"), reference).outcome == "missing"
    assert scorers.score("calls", final("1"), Reference(calls=())).outcome == "right"
    assert scorers.score("calls", call('{"a": 1}'), Reference(calls=())).detail == "1 more calls than expected"


def test_schema(scorers: Scorers) -> None:
    wanted = Reference(schema={"type": "object", "required": ["a"]})
    assert scorers.score("schema", final('{"a": 1}'), wanted).outcome == "right"
    assert scorers.score("schema", final("{}"), wanted).detail == "$: 'a' is a required property"
    assert scorers.score("schema", final("a"), wanted).outcome == "wrong"
    assert scorers.score("schema", final("{}"), Reference(schema={"type": 3})).outcome == "failed"


def test_instructions_are_if_verifiables(scorers: Scorers) -> None:
    wanted = (("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["sun"]}))
    reference = Reference(instructions=wanted, prompt="p")
    assert scorers.score("instructions", final("The sun shines"), reference).value == 1.0
    assert scorers.score("instructions", final("The sun, yes"), reference).value == 0.5


def test_reasoning_gym_uses_its_own_scorer(scorers: Scorers) -> None:
    import reasoning_gym

    entry = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)[0]
    assert scorers.score("reasoning_gym", final(entry["answer"]), Reference(entry=entry)).value == 1.0
    assert scorers.score("reasoning_gym", final("x"), Reference(entry=entry)).value < 1.0


USERS = """
import time
def half(completion, reference): return 0.5
def flag(completion, reference): return completion.final == reference.answer
def raises(completion, reference): raise KeyError("boom")
def hangs(completion, reference): time.sleep(60)
def nan(completion, reference): return float("nan")
def dies(completion, reference):
    import os
    os._exit(3)
"""


def test_a_users_scorer_that_raises_hangs_or_dies_counts_as_that(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USERS)
    with Scorers(seconds=15) as scorers:

        def run(name: str) -> tuple[float, str, str]:
            score = scorers.score(f"{file}:{name}", final("x"), Reference(answer="x"))
            return score.value, score.outcome, score.detail

        assert run("half") == (0.5, "partly", "")
        assert run("flag") == (1.0, "right", "")
        assert run("raises") == (0.0, "failed", "raised: KeyError: 'boom'")
        scorers._guard.seconds = 0.5
        assert run("hangs") == (0.0, "failed", "hung: no answer within 0.5 s")
        scorers._guard.seconds = 15
        assert run("nan") == (0.0, "failed", "not_a_number: returned nan")
        assert run("dies")[1] == "failed"
        assert run("half")[0] == 0.5
        assert "write module:function" in run("missing")[2]


def test_a_users_file_that_cannot_be_imported_is_told_with_its_name(tmp_path: Path) -> None:
    slow, missing = tmp_path / "slow.py", tmp_path / "missing.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    with Scorers(seconds=2) as scorers:
        with pytest.raises(ConfigError, match=r"slow\.py:score: no answer within 2 s"):
            scorers.check(f"{slow}:score")
        with pytest.raises(ConfigError, match=r"missing\.py"):
            scorers.check(f"{missing}:score")


def test_each_accepted_answer_is_right_and_options_are_the_row_s(scorers: Scorers) -> None:
    several = Reference(answer="NYC", accepted=("New York",))
    assert scorers.score("exact", final("It is New York."), several).value == 1
    assert scorers.score("exact", final("Boston"), several).value == 0
    chosen = Reference(answer="B", options={"A": "3 m/s", "B": "12 m/s"})
    assert scorers.score("choice", final("12 m/s"), chosen).value == 1
    listed = Reference(answer="B", prompt="Which?\nA) 3\nB) 12")
    assert scorers.score("choice", final("B, since C is not offered"), listed).value == 1
    assert scorers.score("math", final("1/2"), Reference(answer="2", accepted=(r"\frac{1}{2}",))).value == 1


def test_unknown_scorers_and_missing_references_are_told(scorers: Scorers) -> None:
    with pytest.raises(ConfigError, match=r"take one of exact, number"):
        scorers.score("exakt", final("x"), Reference(answer="x"))
    with pytest.raises(ConfigError, match="no `answer`"):
        scorers.score("exact", final("x"), Reference())
    with pytest.raises(ConfigError, match="no expected calls"):
        scorers.score("calls", final("x"), Reference())


def test_the_guards_child_outlives_an_error_and_is_gone_after_close() -> None:
    guard = Guard(30)
    assert guard("math:sqrt", 0.25).value == 0.5
    assert guard("math:sqrt", -1).failure == "raised"
    process = guard._process
    guard.close()
    assert not process.is_alive()


def test_same_value() -> None:
    assert same_value(None, None)
    assert not same_value("1", 1)
    assert not same_value([1], [1, 2])
