"""The scorer's own test: right answers pass, and every planted fault is caught on every example."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conformance_suite import START_ASSISTANT, module, right_answer, suite

from counterpoint.data.harmony.vocabulary import load_vocabulary

Example = dict[str, list[int]]
Case = dict[str, Any]
RETURN, END, CALL, CHANNEL, START, MESSAGE = 200002, 200007, 200012, 200005, 200006, 200008
ANALYSIS, FINAL = 35644, 17196
REFERENCE = "openai_harmony"


def target_of(example: Example) -> int:
    """The first token after `<|start|>assistant` of the action."""
    return example["mask"].index(1)


def masked(example: Example, at: int, weight: int) -> Example:
    mask = list(example["mask"])
    mask[at] = weight
    return {"ids": example["ids"], "mask": mask}


def replaced(example: Example, start: int, stop: int, ids: list[int], weight: int) -> Example:
    mask = [*example["mask"][:start], *[weight] * len(ids), *example["mask"][stop:]]
    return {"ids": [*example["ids"][:start], *ids, *example["ids"][stop:]], "mask": mask}


def mask_before(example: Example) -> Iterator[Example]:
    yield masked(example, target_of(example) - 3, 1)
    yield masked(example, 0, 1)


def mask_in(example: Example) -> Iterator[Example]:
    start = target_of(example)
    for at in {start, (start + len(example["mask"])) // 2, len(example["mask"]) - 1}:
        if example["mask"][at] and example["ids"][at] not in START_ASSISTANT:
            yield masked(example, at, 0)


def mask_after(example: Example) -> Iterator[Example]:
    size = len(example["ids"])
    yield replaced(example, size, size, [START, 1428], 1)


def mask_of_nothing(example: Example) -> Iterator[Example]:
    yield {"ids": example["ids"], "mask": [0] * len(example["ids"])}


def mask_too_short(example: Example) -> Iterator[Example]:
    yield {"ids": example["ids"], "mask": example["mask"][:-1]}


def no_terminator(example: Example) -> Iterator[Example]:
    yield {"ids": example["ids"][:-1], "mask": example["mask"][:-1]}


def wrong_ending(example: Example) -> Iterator[Example]:
    for end in {RETURN, END, CALL} - {example["ids"][-1]}:
        yield {"ids": [*example["ids"][:-1], end], "mask": example["mask"]}


def header_spoiled(example: Example) -> Iterator[Example]:
    at = example["ids"].index(CHANNEL, target_of(example))
    yield replaced(example, at, at + 1, [], 1)
    yield replaced(example, at, at, [CHANNEL], 1)


def wrong_channel(example: Example) -> Iterator[Example]:
    at = len(example["ids"]) - 1 - example["ids"][::-1].index(CHANNEL) + 1
    other = FINAL if example["ids"][at] != FINAL else ANALYSIS
    yield replaced(example, at, at + 1, [other], 1)


def inner_start(example: Example) -> Iterator[Example]:
    start = target_of(example)
    if START in example["ids"][start:]:
        at = example["ids"].index(START, start)
        yield masked(masked(example, at, 0), at + 1, 0)


def thought_dropped(example: Example) -> Iterator[Example]:
    start = target_of(example)
    if example["ids"][start : start + 2] == [CHANNEL, ANALYSIS] and START in example["ids"][start:]:
        yield replaced(example, start, example["ids"].index(START, start) + 2, [], 1)


def content_spoiled(example: Example) -> Iterator[Example]:
    at = len(example["ids"]) - 1
    yield replaced(example, at, at, [220], 1)


def other_ids(example: Example) -> Iterator[Example]:
    """The same text in other tokens, in the prompt and in the target."""
    vocabulary = load_vocabulary()
    for start, stop in ((3, target_of(example) - 2), (target_of(example), len(example["ids"]))):
        for at in range(start, stop):
            text = vocabulary.text_bytes([example["ids"][at]]) if example["ids"][at] < 199_998 else b""
            if len(text) > 1 and text.isascii() and example["ids"][at : at + 2] != START_ASSISTANT:
                parts = [id_ for byte in text for id_ in vocabulary.encode(chr(byte))]
                yield replaced(example, at, at + 1, parts, example["mask"][at])
                break


def space_in_prompt(example: Example) -> Iterator[Example]:
    yield replaced(example, 4, 4, [220], 0)
    yield replaced(example, target_of(example) - 3, target_of(example) - 3, [220], 0)


def message_dropped(example: Example) -> Iterator[Example]:
    starts = [at for at, id_ in enumerate(example["ids"][: target_of(example) - 2]) if id_ == START]
    for at, following in zip(starts, [*starts[1:], target_of(example) - 2], strict=True):
        yield replaced(example, at, following, [], 0)


MASKS = (mask_before, mask_in, mask_after, mask_of_nothing, mask_too_short)
TARGETS = (no_terminator, wrong_ending, header_spoiled, wrong_channel, thought_dropped, content_spoiled)
PROMPTS = (space_in_prompt, message_dropped)


def verdict(case: Case, examples: list[Example]) -> tuple[bool, str, str]:
    found = module("score").score(case, {"examples": examples}, suite(REFERENCE))
    assert found["outcome"] == "scored", found
    return found["target"], found["mask"], found["prompts"].get(REFERENCE, "")


def training_cases(step: int) -> list[Case]:
    cases = [case for case in suite(REFERENCE).cases.values() if "actions" in case]
    return cases[::step]


def spoiled(fault: Callable[[Example], Iterator[Example]], step: int) -> Iterator[tuple[Case, list[Example]]]:
    """Every case with one of its examples spoiled in each way that the fault knows."""
    for case in training_cases(step):
        examples = right_answer(case, suite(REFERENCE).references[REFERENCE])["examples"]
        for number, example in enumerate(examples):
            for wrong in fault(example):
                yield case, [*examples[:number], wrong, *examples[number + 1 :]]


WHOLE = pytest.param(1, marks=pytest.mark.slow)


@pytest.mark.parametrize("step", [7, WHOLE])
def test_right_answers_pass(step: int) -> None:
    for case in training_cases(step):
        examples = right_answer(case, suite(REFERENCE).references[REFERENCE])["examples"]
        assert verdict(case, examples) == (True, "strict", "exact"), case["id"]


@pytest.mark.parametrize("step", [7, WHOLE])
@pytest.mark.parametrize("fault", MASKS, ids=lambda fault: fault.__name__)
def test_a_wrong_mask_is_caught(fault: Callable[[Example], Iterator[Example]], step: int) -> None:
    caught = [verdict(case, examples)[1] == "wrong" for case, examples in spoiled(fault, step)]
    assert len(caught) >= len(training_cases(step))
    assert all(caught)


@pytest.mark.parametrize("step", [7, WHOLE])
def test_an_untrained_start_between_messages_is_mild(step: int) -> None:
    grades = [verdict(case, examples) for case, examples in spoiled(inner_start, step)]
    assert len(grades) > 40
    assert {*grades} == {(True, "mild", "exact")}


@pytest.mark.parametrize("step", [7, WHOLE])
@pytest.mark.parametrize("fault", TARGETS, ids=lambda fault: fault.__name__)
def test_a_wrong_target_is_caught(fault: Callable[[Example], Iterator[Example]], step: int) -> None:
    caught = [not verdict(case, examples)[0] for case, examples in spoiled(fault, step)]
    assert len(caught) > 40
    assert all(caught)


@pytest.mark.parametrize("step", [7, WHOLE])
@pytest.mark.parametrize("fault", PROMPTS, ids=lambda fault: fault.__name__)
def test_a_wrong_prompt_is_caught(fault: Callable[[Example], Iterator[Example]], step: int) -> None:
    caught = [verdict(case, examples)[2] == "different" for case, examples in spoiled(fault, step)]
    assert len(caught) >= len(training_cases(step))
    assert all(caught)


@pytest.mark.parametrize("step", [7, WHOLE])
def test_the_same_text_in_other_ids_is_caught(step: int) -> None:
    found = [verdict(case, examples) for case, examples in spoiled(other_ids, step)]
    assert len(found) >= 2 * len(training_cases(step)) - 8
    assert all(not target or prompt == "different" for target, _, prompt in found)


@pytest.mark.parametrize("step", [7, WHOLE])
def test_a_missing_action_and_a_second_one_are_caught(step: int) -> None:
    for case in training_cases(step):
        examples = right_answer(case, suite(REFERENCE).references[REFERENCE])["examples"]
        for number, example in enumerate(examples):
            rest = examples[:number] + examples[number + 1 :]
            assert not verdict(case, rest)[0], case["id"]
            assert verdict(case, [*examples, copy.deepcopy(example)])[:2] != (True, "strict"), case["id"]


def test_headers_spelled_otherwise_are_equivalent_and_other_headers_are_not() -> None:
    score, whole = module("score"), suite("vllm", "vllm_0_30", "openai_harmony")
    prompts = {name: whole.references[name].prompt("tool_loop-001", 1) for name in whole.references}
    for first in prompts:
        for second in prompts:
            wanted = "exact" if first == second else "equivalent"
            assert score.compare_prompts(prompts[first], prompts[second], whole.headers) == wanted, (first, second)
    spoiled = list(prompts["vllm"])
    at = len(spoiled) - 1 - spoiled[::-1].index(CHANNEL)
    assert score.compare_prompts([*spoiled[:at], *spoiled[at + 1 :]], prompts["vllm"], whole.headers) == "different"


def test_completions_are_judged_by_what_was_read() -> None:
    score = module("score")
    for case in suite(REFERENCE).cases.values():
        if "valid" not in case:
            continue
        right = right_answer(case, None)
        assert score.score_completion(case, right)["right"], case["id"]
        if not case["valid"]:
            assert not score.score_completion(case, {"messages": []})["right"], case["id"]
            continue
        assert not score.score_completion(case, {"refused": True})["right"], case["id"]
        for number, message in enumerate(case["expect"]):
            for key in ("channel", "recipient", "text"):
                wrong = [*case["expect"][:number], {**message, key: "other"}, *case["expect"][number + 1 :]]
                assert not score.score_completion(case, {"messages": wrong})["right"], (case["id"], key)
            assert not score.score_completion(case, {"messages": case["expect"][:number]})["right"], case["id"]


def test_a_chat_message_is_judged_by_what_it_holds() -> None:
    score, cases = module("score"), suite(REFERENCE).cases
    case = next(c for c in cases.values() if c.get("valid") and any(m["recipient"] for m in c["expect"]))
    call = next(m for m in case["expect"] if m["recipient"])
    thought = next((m["text"] for m in case["expect"] if m["channel"] == "analysis"), None)
    made = {"name": call["recipient"].removeprefix("functions."), "arguments": call["text"]}
    message = {"thinking": thought, "content": None, "tool_calls": [made]}
    assert score.score_completion(case, {"message": message})["right"]
    for key, value in (("thinking", "other"), ("content", "other"), ("tool_calls", []), ("tool_calls", [made, made])):
        assert not score.score_completion(case, {"message": {**message, key: value}})["right"], key


def test_what_cannot_be_expressed_is_neither_a_pass_nor_a_failure() -> None:
    score, whole = module("score"), suite(REFERENCE)
    case = whole.cases["single-001"]
    unsupported = score.score(case, {"unsupported": "no way"}, whole)
    assert score.passes(case, unsupported, REFERENCE) is None
    for answer in ({"error": "died"}, {}, {"examples": [{}]}, {"examples": []}):
        assert score.passes(case, score.score(case, answer, whole), REFERENCE) is False, answer
    refused = suite("vllm")
    case = refused.cases["builtin-001"]
    assert (
        score.passes(case, score.score(case, right_answer(case, whole.references[REFERENCE]), refused), "vllm") is None
    )
