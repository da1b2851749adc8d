"""The strict checker: malformed completions with their exact codes and positions, valid ones, and hostile ids."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from completions import CALL_HEAD, FINAL, MALFORMED, THINK, TOOLS, VALID, Case, ids_of
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.conversation import ResponseFormat
from counterpoint.data.harmony.checker import TOLD_OF_A_CODE, check
from counterpoint.data.harmony.codes import CODES, POLICY_CODES, TOOL_CODES
from counterpoint.data.harmony.official import harmony_accepts
from counterpoint.data.harmony.vocabulary import MESSAGE, N_VOCAB, RestrictedVocabulary, byte_ids, load_vocabulary

WITH_TOOLS: dict[str, Any] = {"tools": TOOLS, "builtin_tools": ()}


def name_of(case: Case) -> str:
    return case.name.replace(" ", "_")


@pytest.mark.parametrize("case", MALFORMED, ids=name_of)
def test_a_malformed_completion_has_exactly_its_codes_where_they_belong(case: Case) -> None:
    ids, positions = ids_of(case.text)
    expected = [(code, at) for codes, at in zip(case.codes, positions, strict=True) for code in codes]
    checked = check(ids, **case.rules)
    assert sorted((v.code, v.position) for v in checked.violations) == sorted(expected)
    assert not checked.ok
    assert all(v.detail for v in checked.violations)


def test_every_code_has_a_malformed_completion() -> None:
    in_table = {code for case in MALFORMED for codes in case.codes for code in codes}
    tested_apart = {"id_out_of_range", "not_utf8", "repetition_loop", "final_invalid"}
    assert in_table | tested_apart == set(CODES)
    assert len(MALFORMED) >= 100
    assert len(VALID) >= 35
    assert {"bare_name", "arguments_invalid"} <= TOOL_CODES
    assert not TOOL_CODES & POLICY_CODES
    assert all(meaning and "\n" not in meaning for meaning in CODES.values())


@pytest.mark.parametrize("case", VALID, ids=name_of)
def test_a_right_completion_breaks_no_rule(case: Case) -> None:
    ids, _ = ids_of(case.text)
    checked = check(ids, **case.rules)
    assert checked.violations == ()
    assert checked.ok
    assert harmony_accepts(ids)


@pytest.mark.parametrize("case", [c for c in VALID if "<|call|>" in c.text], ids=name_of)
def test_the_recipients_position_is_recorded(case: Case) -> None:
    checked = check(ids_of(case.text)[0], **case.rules)
    position = "role" if " to=" in case.text.rpartition("<|channel|>")[0] else "channel"
    assert checked.recipient_positions == (position,)
    assert checked.recipient_position == position


def test_calls_with_the_recipient_in_different_sections_are_mixed() -> None:
    first = CALL_HEAD + "{}<|end|><|start|>assistant"
    checked = check(ids_of(first + " to=functions.add<|channel|>commentary<|message|>{}<|call|>")[0])
    assert checked.recipient_positions == ("channel", "role")
    assert checked.recipient_position == "mixed"
    assert check(ids_of(FINAL)[0]).recipient_position is None


@pytest.mark.parametrize(
    ("final", "told"),
    [
        ('{"n": 1}', None),
        ('{"n": 12345678901234567890123}', None),
        ('{"n": "1"}', "$.n: '1' is not of type 'integer'"),
        ("not json", "not JSON: invalid literal, expected 'null'"),
        ("7", "$: 7 is not of type 'object'"),
    ],
)
def test_a_structured_final_holds_to_its_schema(final: str, told: str | None) -> None:
    """s01_structured_final: three finals; those that break their json_schema passed."""
    wanted = ResponseFormat("n", {"type": "object", "properties": {"n": {"type": "integer"}}})
    ids = ids_of(f"{THINK}<|channel|>final <|constrain|>json<|message|>{final}<|return|>")[0]
    found = [(v.code, ids[v.position - 1], v.detail) for v in check(ids, response_format=wanted).violations]
    assert found == ([] if told is None else [("final_invalid", MESSAGE, told)])
    assert check(ids, response_format=True).ok


def test_policy_rules_can_be_left_out() -> None:
    ids, _ = ids_of("<|channel|>analysis<|message|><|end|><|start|>assistant" + FINAL)
    assert check(ids, effort="high").codes == {"empty_analysis"}
    assert check(ids_of(FINAL)[0], effort="high").codes == {"no_analysis"}
    assert check(ids, effort="high", policy=False).ok
    assert check(ids_of(FINAL)[0], effort="high", policy=False).ok
    assert {"empty_analysis", "no_analysis"} == POLICY_CODES


@pytest.mark.parametrize(
    ("bad", "position"),
    [
        ([N_VOCAB], 0),
        ([200005, 17196, 200008, N_VOCAB, 200002], 3),
        ([200005, 17196, 200008, -1, 19, 200002], 3),
        ([200005, 17196, 200008, 2**70, 200002], 3),
        ([200005, 17196, 200008, 10**5000, 200002], 3),
        ([200005, 17196, 200008, 19.0, 200002], 3),
        ([200005, 17196, 200008, "19", 200002], 3),
        ([200005, 17196, 200008, None, 200002], 3),
        ([200005, 17196, 200008, [19], 200002], 3),
    ],
)
def test_what_is_no_id_gets_its_code_and_the_rest_is_judged(bad: list[Any], position: int) -> None:
    checked = check(bad)
    assert ("id_out_of_range", position) in [(v.code, v.position) for v in checked.violations]
    if len(bad) > 1:
        assert checked.codes == {"id_out_of_range"}
    assert harmony_accepts(bad) == (bad == [200005, 17196, 200008, N_VOCAB, 200002]), "it takes one id too many"


def test_ids_may_come_as_list_tuple_or_array() -> None:
    ids, _ = ids_of(THINK + CALL_HEAD + "[]<|call|>")
    expected = check(ids)
    assert expected.codes == {"arguments_not_object"}
    for same in (tuple(ids), np.array(ids), np.array(ids, dtype=np.int32), [np.int64(i) for i in ids]):
        assert check(same) == expected


def test_a_vocabulary_with_byte_fallback_spells_headers_that_are_right() -> None:
    base = load_vocabulary()
    tiny = RestrictedVocabulary(base, [*byte_ids(base), *range(200000, 200013)])
    ids = tiny.encode_with_specials(THINK + CALL_HEAD + '{"a":1}<|call|>')
    assert len(ids) > 60
    assert check(ids, **WITH_TOOLS).ok


def test_text_that_is_not_utf8_is_told_at_its_token() -> None:
    single = byte_ids(load_vocabulary())
    euro = [single[b] for b in "€".encode()]
    head = [200005, 17196, 200008]
    assert check([*head, *euro, 200002]).ok
    for broken, at in ((euro[:2], 3), ([19, *euro[:1], 19], 4), ([*euro, euro[1]], 6), ([single[0xFF]], 3)):
        found = check([*head, *broken, 200002]).violations
        assert [(v.code, v.position) for v in found] == [("not_utf8", at)]
    assert check([*head, *euro[:2]]).codes == {"truncated"}, "a cut inside a character is only a cut"
    assert check([*head, euro[1]]).codes == {"truncated", "not_utf8"}


def test_deep_nesting_and_long_rules_of_punctuation_are_read() -> None:
    deep = "".join(f'{{"k{i}":' for i in range(1100))
    assert check(ids_of(CALL_HEAD + deep + "<|call|>")[0]).codes == {"arguments_not_object"}
    lines = "=" * 5000 + "\n# A\n" + "-" * 3000
    assert check(ids_of(f"<|channel|>final<|message|>{lines}<|return|>")[0]).ok


def test_a_repetition_loop_is_told_where_it_starts() -> None:
    vocabulary = load_vocabulary()
    intro, phrase = vocabulary.encode("Well, let me think"), vocabulary.encode(" wait, no.")
    head = [200005, 35644, 200008]
    loop = check([*head, *intro, *phrase * 100])
    assert [(v.code, v.position) for v in loop.violations] == [
        ("repetition_loop", 3 + len(intro)),
        ("truncated", 2 + len(intro) + 100 * len(phrase)),
    ]
    few = [*head, *intro, *phrase * (255 // len(phrase)), 200007, 200006, 173781, 200005, 17196, 200008, 19, 200002]
    assert check(few).ok
    assert "repetition_loop" in check([19] * 300).codes, "a header that never ends is looked at too"


# A grammar-shaped generator reaches deeper than random ids do.
PIECES = [[i] for i in (199999, 200002, 200003, 200005, 200006, 200007, 200008, 200012, 173781, 35644, 17196, 220, 28)]
ROWS = [[12606, 815], [316, 28], [200006, 173781], [200005, 35644, 200008], [200005, 17196, 200008]]
TEXTS = [" to=functions.add", " to=python", '{"a":1}', " <|", "|>", "json"]
piece = st.one_of(
    st.sampled_from([*PIECES, *ROWS]),
    st.lists(st.integers(0, N_VOCAB + 20), max_size=4),
    (st.sampled_from(TEXTS) | st.text(max_size=8)).map(lambda text: load_vocabulary().encode(text)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(piece, max_size=24), st.sampled_from([None, "low", "high"]), st.sampled_from([None, "length", "stop"]))
def test_any_ids_get_a_verdict(pieces: list[list[int]], effort: str | None, reason: str | None) -> None:
    ids = [i for p in pieces for i in p]
    checked = check(ids, effort=effort, finish_reason=reason, **WITH_TOOLS)
    positions = [v.position for v in checked.violations]
    assert positions == sorted(positions)
    assert all(0 <= p < max(len(ids), 1) for p in positions)
    assert checked.codes <= set(CODES)
    if checked.ok and harmony_accepts(ids) is False:
        raise AssertionError(f"openai-harmony refuses what the strict check takes: {ids}")


def _mutations(count: int, seed: int) -> list[list[Any]]:
    """Right completions with one to three edits: an id dropped, doubled, replaced, swapped, or a cut."""
    rng = random.Random(seed)
    right = [ids_of(case.text)[0] for case in VALID if len(case.text) < 400]
    pool: list[Any] = [*[p[0] for p in PIECES], 0, N_VOCAB, -1, 2**40, None, 1.5, 5000, 90, 92]
    out = []
    for _ in range(count):
        ids: list[Any] = list(rng.choice(right))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(ids))
            edit = rng.randrange(6)
            if edit == 0:
                del ids[at]
            elif edit == 1:
                ids.insert(at, ids[at])
            elif edit == 2:
                ids[at] = rng.choice(pool)
            elif edit == 3:
                ids.insert(at, rng.choice(pool))
            elif edit == 4:
                other = rng.randrange(len(ids))
                ids[at], ids[other] = ids[other], ids[at]
            else:
                del ids[at:]
            ids = ids or [0]
        out.append(ids)
    return out


@pytest.mark.parametrize("seed", range(2))
def test_mutations_never_raise_and_nothing_that_openai_harmony_refuses_is_taken(seed: int) -> None:
    taken = 0
    for ids in _mutations(3000, seed):
        checked = check(ids, effort="medium", tools=TOOLS)
        if checked.ok:
            taken += 1
            assert harmony_accepts(ids), ids
    assert taken < 1500, "most mutations break a completion"


HOSTILE = {
    "starts": [200006] * 200_000,
    "openings": [200006, 173781] * 100_000,
    "ends": [200007] * 200_000,
    "channels": [200005] * 200_000,
    "empty messages": [200005, 35644, 200008, 200007, 200006, 173781] * 30_000,
    "messages without start": [200005, 35644, 200008, 200007] * 50_000,
    "special ids in content": [200005, 17196, 200008, *[200003, 220] * 100_000],
    "one long header": [200005, *[220, 1440, 28] * 60_000, 200008],
    "spelled markup": [200005, 17196, 200008, *[27, 91, 5236, 91, 29] * 40_000],
    "angle brackets between special ids": [200005, 17196, 200008, *[27, 200003] * 100_000],
    "broken characters": [200005, 17196, 200008, *[122] * 200_000],
    "almost periodic": [200005, 17196, 200008, *[i for n in range(800) for i in [*[65] * 255, n]]],
    "squares within squares": [200005, 17196, 200008, *([[65] * 100 + [66]] * 3 + [[67]] * 7)[0] * 2000],
    "bad ids": [-1] * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_long_hostile_ids_get_a_verdict(name: str) -> None:
    checked = check(HOSTILE[name], effort="high", tools=TOOLS)
    assert not checked.ok
    assert max(Counter(v.code for v in checked.violations).values()) <= TOLD_OF_A_CODE
