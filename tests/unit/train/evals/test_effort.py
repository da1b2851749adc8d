"""Advice on effort: exact choices and sentences on made-up points."""

from __future__ import annotations

import json

import pytest

from counterpoint.data.intervals import wilson
from counterpoint.train.evals.effort import Point, advise, points_of_rows


def point(effort: str, accuracy: float, tokens: float, half: float = 0.02, seconds: float | None = None) -> Point:
    return Point(effort, accuracy, accuracy - half, accuracy + half, tokens, seconds)


def test_each_use_has_its_own_choice() -> None:
    found = advise(
        [
            point("low", 0.50, 100, seconds=0.5),
            point("medium", 0.84, 300, seconds=1.4),
            point("high", 0.90, 1500, seconds=7),
        ]
    )
    assert found.choice == {"interactive": "medium", "agentic": "low", "offline": "high"}
    assert found.sentences == {
        "interactive": "Interactive: medium, right 84% of the time at 300 tokens and 1.4 s a sample; "
        "high gains 6 points on medium for 5.0 times the tokens.",
        "agentic": "Agentic: low, right 50% of the time at 100 tokens and 0.5 s a sample, "
        "200 tokens for one right answer, the least of all.",
        "offline": "Offline: high, right 90% of the time at 1,500 tokens and 7 s a sample; "
        "high gains 6 points on medium for 5.0 times the tokens.",
    }
    assert [(s.start, s.stop, s.tokens, s.told) for s in found.steps] == [
        ("low", "medium", 200, True),
        ("medium", "high", 1200, True),
    ]
    assert found.steps[0].gained == pytest.approx(0.34)
    assert found.steps[0].seconds == pytest.approx(0.9)
    json.dumps(found.as_dict())


def test_offline_does_not_pay_for_what_cannot_be_told() -> None:
    found = advise([point("low", 0.80, 100, half=0.1), point("high", 0.85, 900, half=0.1)])
    assert found.choice["offline"] == "low"
    assert found.sentences["offline"].endswith(
        "high (85% at 900 tokens a sample) cannot be distinguished from it on these items."
    )
    assert not found.steps[0].told


def test_the_cheapest_may_be_the_best() -> None:
    found = advise([point("low", 0.9, 100), point("high", 0.8, 400)])
    assert set(found.choice.values()) == {"low"}
    assert found.sentences["offline"].endswith(", and the best.")


def test_odd_measurements() -> None:
    assert advise([]).sentences == {}
    assert advise([point("low", 0.5, 10)]).sentences["offline"].endswith("no other effort was measured.")
    nothing = advise([point("low", 0, 100), point("high", 0, 400)])
    assert set(nothing.choice.values()) == {"low"}
    assert nothing.sentences["agentic"] == "No effort is right often enough to choose by (best: low, 0%)."


def test_points_of_rows() -> None:
    rows = [
        {
            "task": "t",
            "id": id,
            "effort": effort,
            "score": score,
            "ids": [0] * tokens,
            "seconds": seconds,
            "tokens": {"analysis": tokens - 5},
        }
        for id, effort, score, tokens, seconds in [
            ("a", "high", 1.0, 30, 2.0),
            ("a", "low", 1.0, 10, 1.0),
            ("b", "low", 0.0, 20, None),
            ("c", "low", None, 99, 9.0),
        ]
    ]
    low, high = points_of_rows(rows)
    assert (low.effort, low.accuracy, low.tokens, low.seconds) == ("low", 0.5, 15, None)
    assert (high.accuracy, high.low, high.high, high.seconds) == (1.0, *wilson(1, 1), 2.0)
    assert (low.analysis_tokens, high.analysis_tokens) == (10, 25)
