"""A schema from a row or a tool declaration that would be checked for ever: one deadline around every validation."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from counterpoint.configs.reward_section import JsonReward
from counterpoint.data.harmony import schema_validator
from counterpoint.data.harmony.argument_schema import schema_fault, verdict
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.scoring.rewards import Outcome, Rewards
from counterpoint.train.scoring.scorers import ExpectedCall, Reference, Scorers

LONG = "a" * 40 + "!"
BOMB = "^(a+)+$"
DOUBLING = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(22)} | {"d22": {"minProperties": 1}}
MANY = [{"a": n} for n in range(12000)]
CASES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "pattern": ({"properties": {"s": {"pattern": "^(a|aa)+$"}}}, {"s": "a" * 200 + "!"}, "unknown"),
    "patternProperties": ({"patternProperties": {"^(a|aa)+$": {}}}, {"a" * 200 + "!": 1}, "unknown"),
    "additionalProperties": (
        {"patternProperties": {"^(a|a)+$": {}}, "additionalProperties": False}, {LONG: 1}, "unknown",
    ),
    "propertyNames": ({"propertyNames": {"pattern": "^(a|a)+$"}}, {LONG: 1}, "unknown"),
    "unevaluatedProperties": ({"patternProperties": {BOMB: {}}, "unevaluatedProperties": False}, {LONG: 1}, "unknown"),
    "many patterns": ({"properties": {"s": {"items": {"pattern": "^(a|a)+$"}}}}, {"s": [LONG] * 2000}, "unknown"),
    "references that double": ({"$ref": "#/$defs/d0", "$defs": DOUBLING}, {"x": 1}, "unknown"),
    "references that double, outside of keywords": (
        {"$ref": "#/$defs/d0", "$defs": DOUBLING, "unevaluatedProperties": False}, {"x": 1}, "unknown",
    ),
    "endless reference": ({"$ref": "#"}, {"x": 1}, "unknown"),
    "uniqueItems": ({"properties": {"s": {"uniqueItems": True}}}, {"s": MANY}, "valid"),
    "uniqueItems, repeated": ({"properties": {"s": {"uniqueItems": True}}}, {"s": [*MANY, {"a": 0.0}]}, "invalid"),
    "enum": ({"properties": {"s": {"enum": [[*MANY, n] for n in range(20)]}}}, {"s": [*MANY, -1]}, "invalid"),
    "wide": ({"allOf": [{"properties": {"s": {"items": {"type": "object"}}}}] * 2000}, {"s": MANY}, "unknown"),
    "a compiled bomb": ({"properties": {"s": {"pattern": "(((a{1,300}){1,300}){1,300}){1,300}"}}}, {"s": "a"}, "valid"),
    "another draft inside": (
        {"properties": {"s": {"$schema": "http://json-schema.org/draft-07/schema#", "patternProperties": {"^(a|a)+$": {}}}}},
        {"s": {LONG: 1}}, "unknown",
    ),
    "schema of a schema": ({"properties": {f"p{n}": {"type": "nothing"} for n in range(20000)}}, {}, "unknown"),
}  # fmt: skip


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline in a fifth of a second, of this process alone."""
    monkeypatch.setattr(schema_validator, "SECONDS", 0.2)


@pytest.mark.parametrize("name", CASES)
def test_a_validation_ends(soon: None, name: str) -> None:
    schema, value, kind = CASES[name]
    began = time.thread_time()
    assert verdict(schema, value).kind == kind
    assert time.thread_time() - began < 3


@pytest.mark.parametrize("name", CASES)
def test_scorer_and_reward_end(soon: None, name: str) -> None:
    """What cannot be judged counts as failed, in the evaluation and in the reward."""
    schema, value, kind = CASES[name]
    text = f"<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>{json.dumps(value)}<|return|>"
    completion = parse_completion(load_vocabulary().encode_with_specials(text))
    reference = Reference(schema=schema)
    with Scorers() as scorers:
        score = scorers.score("schema", completion, reference)
    assert score.outcome == {"valid": "right", "invalid": "wrong", "unknown": "failed"}[kind], score
    with Rewards([JsonReward(type="json", gated=False)]) as rewards:
        assert rewards.score(Outcome(completion, (), reference)) == [float(kind == "valid")]
        assert rewards.failures["json"] == (kind == "unknown")


@pytest.mark.parametrize("name", ["pattern", "schema of a schema", "endless reference"])
def test_check_ends(place: Any, name: str) -> None:
    schema, value, _ = CASES[name]
    call = f"to=functions.f <|constrain|>json<|message|>{json.dumps(value)}<|call|>"
    text = f"<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary {call}"
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", **schema}},
    }
    (place.folder / "said.jsonl").write_text(json.dumps({"text": text, "tools": [tool]}) + "\n")
    done = place.forks.command("check", "said.jsonl", folder=place.folder)
    assert done.returncode in (0, 1), done.stderr
    assert re.search(r"1 rows checked|write a smaller JSON schema|references", done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_what_cannot_be_judged_says_why() -> None:
    assert verdict(*CASES["pattern"][:2]).told == "checking it takes more than 1 s"
    assert schema_fault(CASES["unevaluatedProperties"][0]) == (
        "unevaluatedProperties together with patternProperties is not supported"
    )
    with Scorers() as scorers:
        final = load_vocabulary().encode_with_specials("<|channel|>final<|message|>{}<|return|>")
        score = scorers.score("schema", parse_completion(final), Reference(schema={"type": 3}))
    assert score.detail.startswith("the row's schema cannot be applied: $.type: 3 is not valid under")


def test_what_is_compared_may_be_nested_as_deep_as_it_likes() -> None:
    deep = json.dumps({"a": 0}).replace("0", "[" * 900 + "]" * 900)
    call = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{deep}<|call|>"
    completion = parse_completion(load_vocabulary().encode_with_specials(call))
    assert completion.calls
    with Scorers() as scorers:
        reference = Reference(calls=(ExpectedCall("f", json.loads(deep)),))
        assert scorers.score("calls", completion, reference).outcome in ("right", "failed")
