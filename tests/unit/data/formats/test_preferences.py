"""Pairs in every layout are the same pair."""

import pytest

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.formats.convert import convert

Q = {"role": "user", "content": "Q"}
GOOD, BAD = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}


def read(row) -> Preference:
    pair = convert(row)
    assert isinstance(pair, Preference)
    return pair


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"question": "Q", "chosen": "A", "rejected": "B"},
        {"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"},
        {"messages": [Q], "chosen": GOOD, "rejected": BAD},
        {"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
        {"messages": [Q, GOOD], "rejected_response": "B"},
        {"messages": [Q, GOOD], "rejected_messages": [Q, BAD]},
        {"prompt": "Q", "chosen_response": "A", "rejected_response": "B"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "Q", "prompt_id": "x", "chosen": [Q, GOOD], "rejected": [Q, BAD], "messages": [Q, GOOD], "score_chosen": 8.0},
        {"input": {"messages": [Q]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"input": {"messages": [Q]}, "preferred_output": GOOD, "non_preferred_output": BAD},
    ],
)  # fmt: skip
def test_a_pair_is_read_in_every_layout_where_it_was_refused_or_trained_by_sft(row):
    pair = read(row)
    assert pair.prompt.messages == (Message("user", "Q"),)
    assert (pair.chosen, pair.rejected) == (
        (Message("assistant", "A", "final"),),
        (Message("assistant", "B", "final"),),
    )


def test_a_system_text_beside_a_pair_and_one_inside_of_both_sides():
    assert read({"system": "S", "question": "Q", "chosen": "A", "rejected": "B"}).prompt.instructions == "S"
    head = [{"role": "system", "content": "S"}, Q]
    pair = read({"prompt": "Q", "chosen": [*head, GOOD], "rejected": [*head, BAD]})
    assert (pair.prompt.instructions, pair.prompt.messages) == ("S", (Message("user", "Q"),))
    assert pair.chosen == (Message("assistant", "A", "final"),)


def test_thinking_and_calls_are_kept_on_both_sides():
    call = {"role": "assistant", "thinking": "T", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    pair = read({"messages": [Q], "chosen": call, "rejected": {"from": "gpt", "value": "<think>U</think>B"}})
    assert [(m.channel, m.recipient, m.content) for m in pair.chosen] == [
        ("analysis", None, "T"),
        ("commentary", "functions.f", "{}"),
    ]
    assert [(m.channel, m.content) for m in pair.rejected] == [("analysis", "U"), ("final", "B")]


def test_earlier_turns_of_hh_are_the_prompt():
    head = "\n\nHuman: Q\n\nAssistant: A\n\nHuman: R\n\nAssistant:"
    pair = read({"chosen": f"{head} C", "rejected": f"{head} D"})
    assert [message.content for message in pair.prompt.messages] == ["Q", "A", "R"]
    assert ([m.content for m in pair.chosen], [m.content for m in pair.rejected]) == (["C"], ["D"])


def test_an_answer_without_the_other_is_no_prompt_for_rl():
    with pytest.raises(RowError, match="rejected: missing beside chosen: write both; to train the answer alone, map"):
        convert({"prompt": "Q", "chosen": "A"})


def test_messages_that_end_in_a_question_beside_a_rejected_answer_alone_are_no_pair():
    conversation = convert({"messages": [Q], "rejected_response": "B"})
    assert isinstance(conversation, Conversation)
    assert conversation.messages == (Message("user", "Q"),)


@pytest.mark.parametrize("answers", [("A", "B"), ([GOOD], [BAD]), (GOOD, BAD)])
def test_the_thinking_of_each_side_may_stand_beside_it(answers):
    chosen, rejected = answers
    row = {"prompt": "Q", "chosen": chosen, "rejected": rejected, "chosen_thinking": "T", "rejected_reasoning": "U"}
    pair = read(row)
    for side, thought, text in ((pair.chosen, "T", "A"), (pair.rejected, "U", "B")):
        assert [(m.channel, m.content) for m in side] == [("analysis", thought), ("final", text)]
    assert not [n for n in pair.prompt.notices if n.kind in ("unused_field", "unread_field")]
