from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import conversations

from counterpoint.configs.data_section import ChannelWeights, RenderSettings
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Notice, Preference, Tool
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import CHANNEL_CODES, CONTEXT
from counterpoint.data.harmony.vocabulary import START, load_vocabulary
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.show.explain import Explained, ExplainedExample, explain

PROMPT = "prompt: the server writes <|start|>assistant"
CALL = Message("assistant", "{}", "commentary", "functions.f", content_type=CONSTRAIN_JSON)
RESULT = Message("tool", "4", "commentary", name="functions.f")
TALK = (
    Message("user", "one"),
    Message("assistant", "think", "analysis"),
    Message("assistant", "a look", "commentary"),
    CALL,
    RESULT,
    Message("assistant", "it is 4", "analysis"),
    Message("assistant", "4", "final"),
    Message("user", "two"),
    Message("assistant", "again", "analysis"),
    Message("assistant", "5", "final"),
)


def renderer(**changes: Any) -> Renderer:
    return Renderer(load_vocabulary(), RenderSettings(**{"serving": "sampled", **changes}))


def told(messages: tuple[Message, ...], *, fields: dict[str, Any] | None = None, **changes: Any) -> Explained:
    return explain(Conversation(messages, source="talk.jsonl:3", **(fields or {})), renderer(**changes))


def table(example: ExplainedExample) -> list[tuple[str, int, list[str]]]:
    """Label, message number (from 1) and reasons of every block behind the opening."""
    return [(b.label, b.message + 1, b.reasons) for b in example.blocks if b.label not in ("system", "developer")]


def ids_of(example: ExplainedExample) -> list[int]:
    return [i for block in example.blocks for span in block.spans for i in span.ids]


def test_a_tool_turn_and_the_one_behind_it() -> None:
    first, second = told(TALK).examples
    assert table(first) == [
        ("user", 1, ["context: user message"]),
        ("analysis", 2, [PROMPT]),
        ("preamble", 3, []),
        ("call", 4, []),
        ("tool", 5, ["tool result: environment, never trained"]),
        ("analysis", 6, [PROMPT]),
        ("final", 7, []),
    ]
    assert table(second) == [
        ("user", 1, ["context: user message"]),
        (
            "dropped",
            0,
            ["earlier analysis dropped, as at inference: message 2 (analysis)"],
        ),
        ("preamble", 3, ["context: earlier turn 1, trained in an example of its own"]),
        ("call", 4, ["context: earlier turn 1, trained in an example of its own"]),
        ("tool", 5, ["context: tool result of an earlier turn"]),
        ("dropped", 0, ["earlier analysis dropped, as at inference: message 6 (analysis)"]),
        ("final", 7, ["context: earlier turn 1, trained in an example of its own"]),
        ("user", 8, ["context: user message"]),
        ("analysis", 9, [PROMPT]),
        ("final", 10, []),
    ]
    assert [(block.label, block.name) for block in first.blocks if block.name] == [
        ("call", "functions.f"),
        ("tool", "functions.f"),
    ]
    assert set(first.trained) == {"analysis", "commentary", "final"}
    assert first.left_out == second.left_out == ""


def test_positions_run_through_the_example() -> None:
    for example in told(TALK).examples:
        at = 0
        for block in example.blocks:
            for span in block.spans:
                assert span.position == at
                at += len(span.ids)
        assert at == example.n_tokens == len(ids_of(example))


def test_the_openings_say_where_they_come_from() -> None:
    fields = {
        "instructions": "Be brief.",
        "tools": (Tool("f"), Tool("g")),
        "effort": "high",
        "date": "2026-01-31",
        "identity": "You are a test.",
    }
    system, developer = told(TALK, fields=fields).examples[0].blocks[:2]
    assert system.reasons == [
        "context: system message; effort from the row, date from the row, identity from the row",
    ]
    assert developer.reasons == ["context: developer message with instructions, 2 tools"]
    system = told(TALK, identity="I am.").examples[0].blocks[0]
    assert system.reasons == [
        "context: system message; effort from data.effort, date from data.date, identity from data.identity"
    ]


@pytest.mark.parametrize(
    ("messages", "changes", "effort", "why"),
    [
        (TALK, {}, "medium", "data.effort"),
        (
            TALK[:1] + TALK[6:7],
            {"missing_thinking": "effort_low"},
            "low",
            "no thinking, data.missing_thinking = effort_low",
        ),
        (TALK, {"effort_buckets": (1, 2)}, "high", "length of the analysis, data.effort_buckets = [1, 2]"),
    ],
)
def test_where_the_effort_comes_from(messages: Any, changes: dict[str, Any], effort: str, why: str) -> None:
    row = told(messages, **changes)
    assert (row.effort, row.effort_reason) == (effort, why)


def test_a_forced_effort() -> None:
    conversation = Conversation(TALK, effort="low")
    row = explain(conversation, renderer(), effort="high")
    assert (row.effort, row.effort_reason) == ("high", "--effort")
    assert ids_of(row.examples[0]) != ids_of(explain(conversation, renderer()).examples[0])


TURN = (Message("user", "q"), Message("assistant", "t", "analysis"), CALL, RESULT, Message("assistant", "a", "final"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"weights": ChannelWeights(analysis=0)},
            {2: [PROMPT, "not trained: data.weights.analysis = 0"]},
        ),
        (
            {"weights": ChannelWeights(call_header=0, final=2)},
            {3: ["not trained: data.weights.call_header = 0"], 5: [PROMPT, "data.weights.final = 2"]},
        ),
        (
            {"weights": ChannelWeights(terminators=0)},
            {
                2: [PROMPT, "not trained: data.weights.terminators = 0"],
                3: ["not trained: data.weights.terminators = 0"],
                5: [PROMPT, "not trained: data.weights.terminators = 0"],
            },
        ),
        (
            {"train_on": "final"},
            {2: [PROMPT, "not trained: data.train_on = final"], 3: ["not trained: data.train_on = final"]},
        ),
    ],
)
def test_settings_that_leave_parts_out(changes: dict[str, Any], expected: dict[int, list[str]]) -> None:
    (example,) = told(TURN, **changes).examples
    reasons = {b.message + 1: b.reasons for b in example.blocks if b.message >= 0}
    assert (
        reasons
        == {
            1: ["context: user message"],
            2: [PROMPT],
            3: [],
            4: ["tool result: environment, never trained"],
            5: [PROMPT],
        }
        | expected
    )


def test_the_start_of_the_next_message_shares_the_fate_of_the_one_before() -> None:
    (example,) = told(TURN[:2] + TURN[4:], train_on="final").examples
    assert table(example)[-1] == ("final", 3, ["<|start|>assistant not trained: data.train_on = final"])


def test_weights_of_rows_and_messages() -> None:
    half = (Message("user", "q"), Message("assistant", "a", "final", weight=0.5))
    assert table(told(half).examples[0])[-1] == ("final", 2, [PROMPT, "weight 0.5 in the row"])
    row = told(half, fields={"weight": 3.0}, weights=ChannelWeights(final=2))
    final = row.examples[0].blocks[-1]
    assert [(span.kind, span.weight, span.reason) for span in final.spans[1:]] == [
        ("final", 3.0, "weight 3: weight 3 of the whole row × weight 0.5 in the row × data.weights.final = 2"),
        ("final", 3.0, "weight 3: weight 3 of the whole row × weight 0.5 in the row × data.weights.final = 2"),
        ("terminators", 1.5, "weight 1.5: weight 3 of the whole row × weight 0.5 in the row"),
    ]


def test_a_turn_of_weight_0_has_no_example() -> None:
    zero = (Message("user", "q"), Message("assistant", "a", "final", weight=0), *TURN)
    first, second = told(zero).examples
    assert first.left_out == "no example: every part of this turn has weight 0"
    assert table(first)[-1] == ("final", 2, [PROMPT, "not trained: weight 0 in the row"])
    assert table(second)[1] == ("final", 2, ["context: earlier turn 1, not trained"])
    whole = told(TURN, fields={"weight": 0.0}).examples[0]
    assert table(whole)[-1][2] == [PROMPT, "not trained: weight 0 of the whole row"]


def test_answers_without_thinking() -> None:
    (example,) = told(
        (Message("user", "q"), Message("assistant", "a", "final")), missing_thinking="final_body"
    ).examples
    spans = [(span.kind, span.trained, span.reason) for span in example.blocks[-1].spans]
    why = "not trained: header of an answer without thinking, data.missing_thinking = final_body"
    assert spans == [
        ("prompt", False, PROMPT),
        ("final", False, why),
        ("final", True, ""),
        ("terminators", True, ""),
    ]


def test_only_the_last_turn() -> None:
    (example,) = told(TALK, train_on="last_turn").examples
    assert example.turn == 1
    assert ("final", 7, ["context: earlier turn 1; data.train_on = last_turn"]) in table(example)


def test_all_turns_in_one_sequence() -> None:
    (example,) = told(TALK, train_on="assistant").examples
    assert example.whole
    assert not any(block.label == "dropped" for block in example.blocks)
    final = next(block for block in example.blocks if block.message == 6)
    assert [s.reason for s in final.spans] == ["", "", "", "not trained: <|end|> after a final is never sampled"]


def test_messages_that_end_no_turn() -> None:
    messages = (
        Message("user", "q"),
        CALL,
        RESULT,
        Message("assistant", "so far", "commentary"),
        Message("user", "and?"),
        Message("assistant", "a", "final"),
        Message("assistant", "hm", "analysis"),
        Message("user", "thanks"),
    )
    first, second = told(messages).examples
    assert table(first)[2:] == [
        ("left out", 0, ["left out, after the last call or final of the turn: message 3 (result of functions.f)"]),
        ("left out", 0, ["not trained: no final or call ends this turn: message 4 (preamble)"]),
    ]
    assert table(second)[2:4] == [
        ("tool", 3, ["context: tool result of an earlier turn"]),
        ("preamble", 4, ["context, not trained: no final or call ends this turn"]),
    ]
    assert table(second)[-2:] == [
        ("left out", 0, ["not trained: no final or call ends this turn: message 7 (analysis)"]),
        ("left out", 0, ["left out, no assistant turn follows: message 8 (user message)"]),
    ]


def test_many_dropped_messages_are_counted() -> None:
    thoughts = tuple(Message("assistant", f"t{i}", "analysis") for i in range(9))
    messages = (Message("user", "q"), *thoughts, Message("assistant", "a", "final"), *TURN)
    dropped = next(block for block in told(messages).examples[1].blocks if block.label == "dropped")
    named = ", ".join(f"message {i} (analysis)" for i in range(2, 8))
    assert dropped.note == f"earlier analysis dropped, as at inference: 9 messages: {named} and 3 more"


def test_a_prompt_has_nothing_to_train() -> None:
    row = told((*TURN[:1],))
    (example,) = row.examples
    assert (row.kind, row.turns, example.turn, example.n_trained) == ("prompt", 0, None, 0)
    assert example.left_out == "prompt only: nothing to train, the row ends in a user message"
    assert table(example)[-1] == ("prompt", 0, [PROMPT])
    assert ids_of(example) == renderer().prompt(Conversation(TURN[:1]))


def test_examples_that_are_too_long() -> None:
    conversation = Conversation(TURN)
    tokens = len(renderer().examples(conversation)[0].ids)
    row = explain(conversation, renderer(), max_tokens=tokens - 1)
    assert row.examples[0].left_out == f"left out: {tokens} tokens are more than data.max_tokens = {tokens - 1}"
    assert explain(conversation, renderer(), max_tokens=tokens).examples[0].left_out == ""


def test_sampled_ids_are_named_as_such() -> None:
    raw = (*renderer().grammar.header_after_role("final", None, None, "channel"), 64, 200002)
    messages = (Message("user", "q"), Message("assistant", "a", "final", raw_ids=raw))
    assert table(told(messages).examples[0])[-1][2] == [PROMPT, "kept as sampled: ids of the row"]


def test_both_sides_of_a_pair() -> None:
    prompt = Conversation((Message("user", "q"), CALL, RESULT), source="p.jsonl:1", format="preference")
    pair = Preference(prompt, (Message("assistant", "good", "final"),), (Message("assistant", "bad", "final"),))
    row = explain(pair, renderer())
    chosen, rejected = row.examples
    assert (row.kind, chosen.side, rejected.side) == ("preference", "chosen", "rejected")
    assert table(chosen)[1] == ("call", 2, [PROMPT, "context: both sides of the pair share it"])
    assert ids_of(chosen)[:-2] == ids_of(rejected)[:-2]
    assert chosen.trained == rejected.trained == {"final": 5}


def test_notices_are_counted_by_kind() -> None:
    notices = (Notice("a", "x", "first"), Notice("b", "y", "other"), Notice("a", "z", "second"))
    row = told(TURN, fields={"notices": notices})
    assert row.notice_counts == [(notices[0], 2), (notices[1], 1)]


def test_chosen_turns_only() -> None:
    row = explain(Conversation(TALK), renderer(), turns=range(1, 2))
    assert (row.turns, [example.turn for example in row.examples]) == (2, [1])


channel_weights = (
    st.fixed_dictionaries({part: st.sampled_from([0.0, 0.5, 1.0, 3.0]) for part in ChannelWeights.model_fields})
    .filter(lambda weights: any(weights.values()))
    .map(lambda weights: ChannelWeights(**weights))
)


@given(
    conversations(),
    st.sampled_from(["turns", "last_turn", "assistant", "final"]),
    st.sampled_from(["keep", "final_body", "effort_low"]),
    channel_weights,
    st.sampled_from(["vllm", "sglang_responses", "sampled"]),
)
@settings(max_examples=90)
def test_ids_weights_and_channels_are_those_of_training(
    conversation: Conversation, train_on: Any, missing: Any, weights: ChannelWeights, serving: str
) -> None:
    writer = renderer(train_on=train_on, missing_thinking=missing, weights=weights, serving=serving)
    row = explain(conversation, writer)
    told = {(example.turn, example.action): example for example in row.examples if example.turn is not None}
    examples = {(example.turn, example.action): example for example in writer.examples(conversation)}
    assert {place for place, example in told.items() if not example.left_out} == set(examples)
    for place, example in examples.items():
        spans = [span for block in told[place].blocks for span in block.spans]
        assert ids_of(told[place]) == example.ids.tolist()
        assert np.repeat([s.weight for s in spans], [len(s.ids) for s in spans]).astype(np.float32).tolist() == (
            example.weights.tolist()
        )
        codes = [CHANNEL_CODES[s.channel] for s in spans]
        assert np.repeat(codes, [len(s.ids) for s in spans]).tolist() == example.channels.tolist()
    for example in row.examples:
        for block in example.blocks:
            assert block.spans or block.note
            assert not block.spans or block.spans[0].ids[0] == START
            assert all((span.weight == 1) or span.reason for span in block.spans)


@given(
    conversations(),
    st.sampled_from(["turns", "last_turn", "assistant", "final"]),
    st.sampled_from(["keep", "final_body", "effort_low"]),
    channel_weights,
    st.sampled_from([0.0, 0.25, 1.0, 2.0]),
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 1.7]), min_size=1, max_size=4),
)
@settings(max_examples=100)
def test_a_weight_other_than_1_is_the_product_of_the_factors_that_it_names(
    conversation: Conversation,
    train_on: Any,
    missing: Any,
    weights: ChannelWeights,
    row: float,
    of_messages: list[float],
) -> None:
    weighted = zip(conversation.messages, cycle(of_messages), strict=False)
    messages = tuple(replace(m, weight=weight if m.role == "assistant" else 1.0) for m, weight in weighted)
    conversation = replace(conversation, messages=messages, weight=row)
    writer = renderer(train_on=train_on, missing_thinking=missing, weights=weights)
    turns = split_turns(messages)
    answers = writer.completion_spans(conversation, turns[-1].start) if turns else []
    prompt = writer.prompt_spans(conversation)
    for span in (*prompt, *answers, *(span for _, spans in writer.spans(conversation) for span in spans)):
        assert span.weight == prod((factor.value for factor in span.why), start=1.0)
        assert span.why or span.weight == 1
        assert all(factor.value != 1 and factor.text for factor in span.why)
    assert all(span.weight == 0 for span in prompt)
    for _, spans in writer.spans(conversation):
        for span in spans:
            if span.channel == CONTEXT:
                continue
            message = messages[span.message]
            assert span.weight in (0.0, row * message.weight * getattr(weights, span.part))
