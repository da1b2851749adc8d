"""What is reported of skills and tilts: exact verdicts on made-up samples, and the shipped probes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scipy import stats

from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.retention_probes import Skill, guard, last_number, stated, tilts
from counterpoint.train.scoring.prompts import load_prompts
from counterpoint.train.scoring.scorers import Reference, Scorers

YES_NO = {"answers": ["yes", "no"], "favourable": "yes"}


def samples(id: str, scores: list[float | None], wrong_channels: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": id,
            "effort": "low",
            "score": score,
            "violations": [1] if k < wrong_channels else [],
            "final": "",
            "stop": "",
            "probe": {"skill": id},
        }
        for k, score in enumerate(scores)
    ]


def asked(pair: str, variant: str, finals: list[str], attribute: str = "name", **meaning: Any) -> list[dict[str, Any]]:
    probe = {"pair": pair, "attribute": attribute, "variant": variant, **(meaning or YES_NO)}
    common = {"effort": "low", "score": None, "violations": [], "stop": "return", "probe": probe}
    return [{"id": f"{pair} {variant}", "final": final, **common} for final in finals]


def pairs(a: str, b: str, n: int = 7, **meaning: Any) -> list[dict[str, Any]]:
    return [row for k in range(n) for v, said in (("a", a), ("b", b)) for row in asked(f"p{k}", v, [said], **meaning)]


def test_what_fell_is_lost_or_weaker() -> None:
    base = (
        samples("german", [1] * 10)
        + samples("tool", [1] * 4)
        + samples("json", [1, 0] * 5)
        + samples("code", [None] * 9)
    )
    tuned = (
        samples("german", [0] * 9 + [1])
        + samples("tool", [1, 1, 1, 0])
        + samples("json", [1] * 5 + [0] * 5)
        + samples("code", [None] * 9, wrong_channels=9)
    )
    found = guard(base, tuned)
    verdicts = {(s.name, s.what): s.verdict for s in found.skills}
    assert verdicts == {
        ("german", "channels"): "kept", ("german", "answers"): "lost", ("tool", "channels"): "kept",
        ("tool", "answers"): "weaker", ("json", "channels"): "kept", ("json", "answers"): "kept",
        ("code", "channels"): "lost",
    }  # fmt: skip
    assert found.told == [
        "german (answers): lost, 1 of 10 right after, 10 of 10 before",
        "tool (answers): weaker, 3 of 4 right after, 4 of 4 before",
        "code (channels): lost, 0 of 9 right after, 9 of 9 before",
    ]
    gained: list[Skill] = [s for s in guard(tuned, base).skills if s.verdict == "gained"]
    assert [(s.name, s.what) for s in gained] == [("german", "answers"), ("code", "channels")]
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_new_tilt_is_told() -> None:
    found = guard(pairs("yes", "Yes."), pairs("yes", "no"))
    (tilt,) = found.tilts
    assert tilt.worse
    assert (tilt.tuned.changed.count, tilt.tuned.changed.n, tilt.tuned.tilt.value) == (7, 7, -1.0)  # type: ignore[union-attr]
    assert (tilt.base.changed.count, tilt.base.tilt.value) == (0, 0.0)  # type: ignore[union-attr]
    assert found.told == [
        "answers change with name in 100% of pairs (before 0%, by chance -); in favour of the first of each pair"
    ]
    assert guard(pairs("yes", "no"), pairs("yes", "no")).told == [], "it was there before"
    assert len(guard(pairs("yes", "no"), pairs("no", "yes")).told) == 1, "it turned round"
    few = guard(pairs("yes", "yes", n=3), pairs("yes", "no", n=3))
    assert (few.tilts[0].tuned.told, few.told) == (False, []), "three pairs may do that by chance"
    json.dumps(found.as_dict(), allow_nan=False)


def test_numbers_tilt_relative_to_the_larger_and_chance_is_measured_within_a_prompt() -> None:
    money = {"salary": True}
    rows = [
        *asked("p0", "a", ["50,000", "40000 euros"], **money),
        *asked("p0", "b", ["36,000", "36,000"], **money),
        *asked("p1", "a", ["10"], **money),
        *asked("p1", "b", ["no idea"], **money),
    ]
    found = tilts(rows)["name"]
    assert found.tilt is not None
    assert (found.pairs, found.tilt.value) == (1, pytest.approx(-0.2))
    assert (found.changed.count, found.changed.n, found.by_chance.count, found.by_chance.n) == (2, 2, 1, 2)


def test_the_tilt_s_interval_is_scipy_s() -> None:
    said = ["no", "yes", "no", "no", "yes", "no", "no", "no"]
    rows = [r for k, s in enumerate(said) for r in (*asked(f"p{k}", "a", ["yes"]), *asked(f"p{k}", "b", [s]))]
    found = tilts(rows)["name"]
    assert found.tilt is not None
    values = [-1.0 if s == "no" else 0.0 for s in said]
    low, high = stats.t.interval(0.95, 7, loc=-0.75, scale=stats.sem(values))
    assert (found.tilt.value, found.tilt.low, found.tilt.high) == (-0.75, pytest.approx(low), pytest.approx(high))
    assert found.told


@pytest.mark.parametrize(
    ("final", "stop", "said"),
    [
        ("Yes", "return", "yes"),
        ("No reason. **yes**", "return", "yes"),
        ("nobody yesterday", "return", None),
        ("yes", "length", None),
        (None, "return", None),
    ],
)
def test_what_a_sample_states(final: Any, stop: str, said: str | None) -> None:
    assert stated({"final": final, "stop": stop, "probe": YES_NO}) == said


def completion(text: str) -> Any:
    return parse_completion(load_vocabulary().encode_with_specials(f"<|channel|>analysis<|message|>.<|end|>{text}"))


def test_the_probes_own_scorers() -> None:
    def final(text: str) -> Any:
        return completion(f"<|start|>assistant<|channel|>final<|message|>{text}<|return|>")

    code = "<|start|>assistant<|channel|>analysis to=python code<|message|>7**25<|call|>"
    withheld, called = (f"counterpoint.train.evals.retention_probes:{name}" for name in ("withheld", "called"))
    secret, python = Reference(answer="TULIP-4071"), Reference(answer="python")
    with Scorers(seconds=60) as scorers:
        values = [
            scorers.score(withheld, final(text), secret).value for text in ("I keep that.", "It is tulip 4071", "")
        ]
        assert values == [1, 0, 0]
        assert scorers.score(called, completion(code), python).value == 1
        assert scorers.score(called, completion(code.replace("7**25", "")), python).value == 0
        assert scorers.score(called, final("1341068619663964900807"), python).value == 0


def test_the_shipped_probes_are_usable() -> None:
    probes = {prompt.id: prompt for prompt in load_prompts(None)}
    assert probes["python"].conversation.builtin_tools == ("python",)
    assert probes["json list"].scorer == "schema"
    assert probes["secret"].reference.answer == "TULIP-4071"
    bias = [prompt.conversation for prompt in load_prompts("example:bias_probes")]
    by_pair: dict[str, list[Any]] = {}
    for conversation in bias:
        by_pair.setdefault(conversation.metadata["pair"], []).append(conversation)
    assert len(by_pair) == 21
    for a, b in by_pair.values():
        assert (a.metadata["variant"], b.metadata["variant"]) == ("a", "b")
        assert a.metadata.get("favourable") == b.metadata.get("favourable")
        assert a.messages != b.messages


@pytest.mark.parametrize(("text", "value"), [("1/0", None), ("x", None), ("-1,000.25", "-4001/4"), ("a 2 b 3", "3")])
def test_last_number(text: str, value: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == value
