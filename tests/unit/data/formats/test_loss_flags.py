"""What a row says about its own loss is obeyed, in the words of every tool; what is no such word is told."""

import pytest

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert, trainable
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary

USER = {"role": "user", "content": "Again?"}


def read(flags, **row) -> Conversation:
    messages = [USER, {"role": "assistant", "content": "No.", **flags}, USER, {"role": "assistant", "content": "Yes."}]
    conversation = convert({"messages": messages, **row})
    assert isinstance(conversation, Conversation)
    return conversation


def weights(conversation):
    return [message.weight for message in conversation.messages if message.role == "assistant"]


def told(conversation, kind="no_loss_flag"):
    return [notice.field for notice in conversation.notices if notice.kind == kind]


@pytest.mark.parametrize(
    ("flag", "weight"),
    [
        ({"weight": 0}, 0.0),
        ({"weight": 0.5}, 0.5),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"loss": None}, 1.0),
        ({"loss_scale": 0}, 0.0),
        ({"loss_scale": 2.5}, 2.5),
        ({"loss_weight": 0.0}, 0.0),
        ({"train": False}, 0.0),
        ({"training": False}, 0.0),
        ({"trainable": 0}, 0.0),
        ({"trainable": "false"}, 0.0),
        ({"loss_mask": 0}, 0.0),
        ({"loss_mask": 1}, 1.0),
        ({"step_loss_mask": 0}, 0.0),
        ({"masked": True}, 0.0),
        ({"masked": False}, 1.0),
        ({"mask": 1}, 0.0),
        ({"weight": 1, "train": False}, 0.0),
    ],
)
def test_a_flag_of_any_tool_is_obeyed_where_it_was_an_unused_field_and_the_answer_was_trained(flag, weight):
    conversation = read(flag)
    assert weights(conversation) == [weight, 1.0]
    assert told(conversation) == told(conversation, "unused_field") == []
    turns = [{"from": "human", "value": "Again?"}, {"from": "gpt", "value": "No.", **flag}]
    sharegpt = convert({"conversations": turns})
    assert isinstance(sharegpt, Conversation)
    assert weights(sharegpt) == [weight]


def test_a_call_and_its_thinking_have_the_flag_of_their_message():
    call = {"role": "tool_call", "content": '<think>I ask.</think>{"name": "f", "arguments": {}}', "loss": False}
    result = {"role": "tool_response", "content": "4", "loss": None}
    conversation = convert({"messages": [USER, call, result, {"role": "assistant", "content": "4.", "loss": True}]})
    assert isinstance(conversation, Conversation)
    assert weights(conversation) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("flag", "field"),
    [
        ({"loss": 0.83}, "messages[1].loss"),
        ({"train": "often"}, "messages[1].train"),
        ({"loss_weight": -1}, "messages[1].loss_weight"),
        ({"masked": []}, "messages[1].masked"),
    ],
)
def test_a_value_that_is_no_flag_is_told_and_is_no_weight(flag, field):
    conversation = read(flag)
    assert weights(conversation) == [1.0, 1.0]
    assert told(conversation) == [field]


@pytest.mark.parametrize(
    ("row", "weight", "told_at"),
    [
        ({"weight": 2}, 2.0, []),
        ({"weight": 72.5}, 1.0, ["weight"]),
        ({"weight": "72 kg"}, 1.0, ["weight"]),
        ({"weight": -1}, 1.0, ["weight"]),
        ({"loss": 0.83}, 1.0, ["loss"]),
        ({"loss": False}, 0.0, []),
        ({"train": "split"}, 1.0, ["train"]),
        ({"loss_weight": 0}, 0.0, []),
    ],
)
def test_a_number_of_a_row_that_is_no_loss_weight_is_told_where_72_5_was_a_weight(row, weight, told_at):
    conversation = read({}, **row)
    assert (conversation.weight, told(conversation)) == (weight, told_at)


def test_a_row_may_list_the_flags_of_its_messages_or_name_who_is_masked():
    assert weights(read({}, loss_mask=[0, 0, 0, 1])) == [0.0, 1.0]
    wrong = read({}, loss_mask=[0, 1])
    assert (weights(wrong), told(wrong)) == ([1.0, 1.0], ["loss_mask"])
    assert weights(read({}, mask="User")) == [1.0, 1.0]
    assert weights(read({}, mask="Assistant")) == [0.0, 0.0]
    assert told(read({}, mask="Nobody")) == ["mask"]


def test_a_flag_that_asks_to_train_others_than_the_assistant_is_told_and_one_that_does_not_is_not():
    for flag, field in (({"train": True}, ["messages[0].train"]), ({"loss_weight": 0.0}, []), ({"masked": True}, [])):
        conversation = convert({"messages": [{**USER, **flag}, {"role": "assistant", "content": "Yes."}]})
        assert isinstance(conversation, Conversation)
        assert told(conversation, "weight_ignored") == field


def test_a_message_of_which_parts_are_left_out_costs_the_row():
    spans = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    with pytest.raises(RowError, match="trains a part of the message") as caught:
        read({"train_detail": spans})
    assert caught.value.field == "messages[1].train_detail"


@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_an_unwanted_answer_gives_sft_no_example_where_it_was_trained_with_weight_1(name):
    rows = (
        {"messages": [USER, {"role": "assistant", "content": "Bad."}], name: False},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "Bad."}], name: False},
        {"prompt": "Q", "completion": "Bad.", name: False},
    )
    renderer = Renderer(load_vocabulary())
    for row in rows:
        conversation = convert(row)
        assert isinstance(conversation, Conversation)
        assert (conversation.format, conversation.metadata["label"]) == ("kto", False)
        assert renderer.examples(conversation) == []
        assert told(conversation, "unwanted_answer") == ["label"]
        with pytest.raises(RowError, match="label: false: an answer that is not wanted is not trained"):
            trainable(conversation)
        wanted = convert({**row, name: True})
        assert isinstance(wanted, Conversation)
        assert len(renderer.examples(wanted)) == 1
