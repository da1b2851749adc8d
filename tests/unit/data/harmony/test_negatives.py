"""Built negatives have the fault they are named after, and only that one."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import conversations

from counterpoint.data.conversation import Conversation, Tool
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.negatives import Negative, fault_masks, negative
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()
CALL = (
    "<|channel|>analysis<|message|>Add them.<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
)
FINAL = "<|channel|>analysis<|message|>So 3.<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>"
ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "number"}}})


def built(kind: Negative, text: str, seed: int = 0) -> tuple[str, set[str]] | None:
    ids = negative(kind, VOCABULARY.encode_with_specials(text), VOCABULARY, seed)
    if ids is None:
        return None
    found = check(ids, tools=[ADD], effort="medium")
    return VOCABULARY.decode(ids), {str(violation.code) for violation in found.violations}


@pytest.mark.parametrize(
    ("kind", "text", "changed", "code"),
    [
        ("wrong_channel", CALL, CALL.replace(">commentary", ">analysis"), "function_not_on_commentary"),
        ("empty_analysis", CALL, CALL.replace("Add them.", ""), "empty_analysis"),
        ("wrong_terminator", CALL, CALL.replace("<|call|>", "<|return|>"), "return_without_final"),
        ("wrong_terminator", FINAL, FINAL.replace("<|return|>", "<|end|>"), "final_without_return"),
    ],
)
def test_exact_changes(kind: Negative, text: str, changed: str, code: str) -> None:
    made = built(kind, text)
    assert made is not None
    assert made[0] == changed
    assert code in made[1]


def test_leaked_analysis_is_a_fault_of_content_that_only_pairs_can_teach() -> None:
    made = built("leaked_analysis", FINAL)
    assert made == (FINAL.replace("final<|message|>3", "final<|message|>So 3.\n\n3"), set())


def test_malformed_headers_cover_four_faults() -> None:
    texts: set[str] = set()
    for seed in range(40):
        made = built("malformed_header", CALL, seed)
        assert made is not None
        assert made[1]
        texts.add(made[0])
    assert len(texts) == 7  # three faults in two headers, and a content type where no call needs one


def test_a_content_type_stands_only_where_no_call_needs_one() -> None:
    assert built("content_type", CALL, 3) == (
        CALL.replace("analysis<|message|>", "analysis text<|message|>"),
        {"content_type_without_recipient"},
    )
    assert {built("content_type", FINAL, seed)[0] for seed in range(20)} == {  # pyright: ignore[reportOptionalSubscript]
        FINAL.replace("analysis<", "analysis text<"),
        FINAL.replace("final<", "final text<"),
    }


@pytest.mark.parametrize(
    ("right", "wrong", "right_mask", "wrong_mask"),
    [
        ([1, 2, 3], [1, 9, 3], [0, 1, 0], [0, 1, 0]),
        ([1, 2, 3], [1, 9, 2, 3], [0, 1, 0], [0, 1, 0, 0]),
        ([1, 2, 3], [1, 3], [0, 1, 0], [0, 1]),
        ([1, 2], [1, 1, 2], [0, 1], [0, 1, 0]),
        ([1, 2, 2, 3], [1, 2, 3], [0, 0, 1, 0], [0, 0, 1]),
        ([1, 2], [1, 2, 3], [0, 0], [0, 0, 1]),
        ([1, 2], [3, 4], [1, 1], [1, 1]),
    ],
)
def test_fault_masks(right: list[int], wrong: list[int], right_mask: list[int], wrong_mask: list[int]) -> None:
    assert fault_masks(right, wrong) == (right_mask, wrong_mask)
    assert fault_masks(wrong, right) == (wrong_mask, right_mask)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_outside_of_the_fault_both_sides_begin_and_end_alike(right: list[int], wrong: list[int]) -> None:
    sides = tuple(zip((right, wrong), fault_masks(right, wrong), strict=True))
    starts = {mask.index(1) for _, mask in sides if 1 in mask}
    assert len(starts) <= 1
    for start in starts:
        assert right[:start] == wrong[:start]
    for ids, mask in sides:
        assert len(ids) == len(mask)
    if right != wrong:
        assert any(1 in mask for _, mask in sides)


@pytest.mark.parametrize("kind", ["wrong_channel", "empty_analysis", "leaked_analysis"])
def test_nothing_of_the_kind_is_none(kind: Negative) -> None:
    assert built(kind, "<|channel|>final<|message|>3<|return|>") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(max_turns=1), st.sampled_from(get_args(Negative)), st.integers(0, 9))
def test_any_turn(conversation: Conversation, kind: Negative, seed: int) -> None:
    for example in Renderer(VOCABULARY).examples(conversation):
        right = example.ids[(example.channels > 0)].tolist()
        wrong = negative(kind, right, VOCABULARY, seed)
        if wrong is not None:
            assert wrong != right
            assert wrong == negative(kind, right, VOCABULARY, seed)
            assert abs(len(wrong) - len(right)) <= len(right)
