"""The renderer against openai-harmony: ids, prompts, weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from strategies import conversations, history, official_prompt_ids, official_training_ids

from counterpoint.configs.data_section import ChannelWeights, RenderSettings
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Tool
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example
from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, END, MESSAGE, RETURN, START, load_vocabulary
from counterpoint.data.harmony.window import Turn, split_turns

ROLE = Renderer(load_vocabulary(), RenderSettings(call_style="role", serving="sampled"))
CHANNEL_STYLE = Renderer(load_vocabulary(), RenderSettings(serving="sampled"))


def every_example(renderer: Renderer, conversation: Conversation) -> list[tuple[Turn, Example]]:
    examples = {example.turn: example for example in renderer.examples(conversation)}
    return [(t, examples[t.number]) for t in split_turns(conversation.messages) if t.number in examples]


def check_against_official(conversation: Conversation) -> None:
    """Ids of every example, the prompt before every action, and weights non-zero exactly in actions."""
    messages = conversation.messages
    for turn, example in every_example(ROLE, conversation):
        before = history(messages, turn.start)
        inside = list(range(turn.start, turn.trained_stop))
        assert example.ids.tolist() == official_training_ids(conversation, before + inside)
        expected = np.zeros(len(example.ids), dtype=np.float32)
        for index in inside:
            if messages[index].role != "assistant":
                continue
            prompt = official_prompt_ids(conversation, before + list(range(turn.start, index)))
            assert example.ids[: len(prompt)].tolist() == prompt
            stop = len(official_training_ids(conversation, before + list(range(turn.start, index + 1))))
            expected[len(prompt) : stop] = messages[index].weight
            follows_in_action = index > turn.start and messages[index - 1].role == "assistant"
            if follows_in_action and not messages[index - 1].is_call:
                expected[len(prompt) - 2 : len(prompt)] = messages[index - 1].weight
        assert example.weights.tolist() == expected.tolist()


@pytest.mark.usefixtures("openai_harmony_itself")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_ids_prompts_and_weights_are_openai_harmonys(conversation: Conversation) -> None:
    check_against_official(conversation)


@pytest.mark.usefixtures("openai_harmony_itself")
@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_ids_prompts_and_weights_are_openai_harmonys_3000_times(conversation: Conversation) -> None:
    check_against_official(conversation)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_prompt_is_the_prefix_of_the_example(conversation: Conversation) -> None:
    for turn, example in every_example(CHANNEL_STYLE, conversation):
        cut = Conversation(
            conversation.messages[: turn.start],
            conversation.instructions,
            conversation.tools,
            conversation.builtin_tools,
            effort=CHANNEL_STYLE.effort_of(conversation),
            date=conversation.date,
            identity=conversation.identity,
        )
        prompt = CHANNEL_STYLE.prompt(cut)
        assert example.ids[: len(prompt)].tolist() == prompt
        assert not example.weights[: len(prompt)].any()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_typed_markup_never_becomes_a_special_token(conversation: Conversation) -> None:
    for turn, example in every_example(CHANNEL_STYLE, conversation):
        ids = example.ids.tolist()
        shown = history(conversation.messages, turn.start)
        messages = len(shown) + turn.trained_stop - turn.start + 1
        messages += conversation.instructions is not None or bool(conversation.tools)
        assert ids.count(START) == ids.count(MESSAGE) == messages
        assert ids.count(END) + ids.count(CALL) + ids.count(RETURN) == messages
        assert set(ids[-1:]) <= {CALL, RETURN}


CALCULATOR = Tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]})
TWO_TURNS = Conversation(
    (
        Message("user", "What is 1 + 2?"),
        Message("assistant", "I should add.", "analysis"),
        Message("assistant", "Let me see.", "commentary"),
        Message("assistant", '{"a": 1}', "commentary", "functions.add", content_type=CONSTRAIN_JSON),
        Message("tool", "3", "commentary", name="functions.add"),
        Message("assistant", "Done.", "analysis"),
        Message("assistant", "3", "final"),
        Message("user", "Thanks"),
        Message("assistant", "Polite.", "analysis"),
        Message("assistant", "Welcome", "final"),
    ),
    instructions="Be brief.",
    tools=(CALCULATOR,),
    source="golden:1",
)


def trained_text(example: Example) -> list[str]:
    """Runs of trained tokens, as text."""
    vocabulary, runs, current = load_vocabulary(), [], []
    for id_, weight in zip(example.ids.tolist(), example.weights.tolist(), strict=True):
        if weight:
            current.append(id_)
        elif current:
            runs.append(vocabulary.decode(current))
            current = []
    return [*runs, vocabulary.decode(current)] if current else runs


def test_golden_two_turn_tool_conversation() -> None:
    first, second = CHANNEL_STYLE.examples(TWO_TURNS)
    assert trained_text(first) == [
        "<|channel|>analysis<|message|>I should add.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
        "<|channel|>analysis<|message|>Done.<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>",
    ]
    assert trained_text(second) == [
        "<|channel|>analysis<|message|>Polite.<|end|><|start|>assistant<|channel|>final<|message|>Welcome<|return|>"
    ]
    context = load_vocabulary().decode(second.ids[second.weights == 0])
    assert "I should add." not in context
    assert "Done." not in context
    assert (
        '<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>'
        in context
    )
    assert "<|start|>functions.add to=assistant<|channel|>commentary<|message|>3<|end|>" in context
    assert "<|channel|>final<|message|>3<|end|><|start|>user" in context


def test_channels_name_every_token_of_the_target() -> None:
    first, _ = CHANNEL_STYLE.examples(TWO_TURNS)
    vocabulary = load_vocabulary()
    by_channel = {c: vocabulary.decode(first.ids[first.channels == c]) for c in (1, 2, 3)}
    assert by_channel[3] == "<|start|>assistant<|channel|>final<|message|>3<|return|>"
    assert by_channel[1].startswith("<|channel|>analysis<|message|>I should add.<|end|>")
    assert "Let me see.<|end|>" in by_channel[2]


def test_weights_by_part() -> None:
    weights = ChannelWeights(analysis=0.25, preamble=0.5, call_header=2, call_arguments=3, final=4, terminators=5)
    first, _ = Renderer(load_vocabulary(), RenderSettings(weights=weights, serving="sampled")).examples(TWO_TURNS)
    vocabulary = load_vocabulary()

    def text(weight: float) -> str:
        return vocabulary.decode(first.ids[first.weights == np.float32(weight)])

    assert text(0.25) == "<|channel|>analysis<|message|>I should add.<|channel|>analysis<|message|>Done."
    assert text(0.5) == "<|channel|>commentary<|message|>Let me see."
    assert text(2) == "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
    assert text(3) == '{"a": 1}'
    assert text(4) == "<|channel|>final<|message|>3"
    assert text(5) == "<|end|><|start|>assistant<|end|><|start|>assistant<|call|><|end|><|start|>assistant<|return|>"


@pytest.mark.parametrize(
    ("train_on", "turns", "finals_only"), [("turns", [0, 1], False), ("last_turn", [1], False), ("final", [0, 1], True)]
)
def test_train_on(train_on: str, turns: list[int], finals_only: bool) -> None:
    examples = Renderer(load_vocabulary(), RenderSettings(train_on=train_on, serving="sampled")).examples(TWO_TURNS)  # pyright: ignore[reportArgumentType]
    assert [e.turn for e in examples] == turns
    if finals_only:
        assert trained_text(examples[0]) == ["<|channel|>final<|message|>3<|return|>"]


def test_train_on_assistant_keeps_all_analysis_in_one_example() -> None:
    (example,) = Renderer(load_vocabulary(), RenderSettings(train_on="assistant")).examples(TWO_TURNS)
    runs = trained_text(example)
    assert len(runs) == 3
    assert runs[1].endswith("<|channel|>final<|message|>3")  # the <|end|> of an inner final is never sampled
    assert runs[2].endswith("Welcome<|return|>")
    assert "I should add." in load_vocabulary().decode(example.ids)


ANSWER_ONLY = Conversation((Message("user", "2+2?"), Message("assistant", "4", "final")), source="x:1")


def test_missing_thinking_final_body_leaves_out_the_header() -> None:
    (example,) = Renderer(load_vocabulary(), RenderSettings(missing_thinking="final_body")).examples(ANSWER_ONLY)
    assert trained_text(example) == ["4<|return|>"]


def test_missing_thinking_effort_low_is_written_into_the_prompt() -> None:
    renderer = Renderer(load_vocabulary(), RenderSettings(missing_thinking="effort_low"))
    assert "Reasoning: low" in renderer.vocabulary.decode(renderer.examples(ANSWER_ONLY)[0].ids)
    assert "Reasoning: medium" in renderer.vocabulary.decode(renderer.examples(TWO_TURNS)[0].ids)


@pytest.mark.parametrize(("buckets", "effort"), [((2, 3), "high"), ((2, 99), "medium"), ((50, 99), "low")])
def test_effort_by_the_length_of_the_analysis(buckets: tuple[int, int], effort: str) -> None:
    renderer = Renderer(load_vocabulary(), RenderSettings(effort_buckets=buckets))
    assert renderer.effort_of(TWO_TURNS) == effort


def test_two_finals_in_a_row_are_two_turns() -> None:
    conversation = Conversation(
        (Message("user", "u"), Message("assistant", "a", "final"), Message("assistant", "b", "final")), source="x:1"
    )
    first, second = CHANNEL_STYLE.examples(conversation)
    assert trained_text(first) == ["<|channel|>final<|message|>a<|return|>"]
    assert trained_text(second) == ["<|channel|>final<|message|>b<|return|>"]
    assert second.ids.tolist().count(END) == 3


def test_what_cannot_be_sampled_as_an_action_is_not_trained() -> None:
    open_end = Conversation((Message("user", "u"), Message("assistant", "one moment", "commentary")), source="x:1")
    assert CHANNEL_STYLE.examples(open_end) == []
    assert CHANNEL_STYLE.examples(Conversation((Message("user", "u"),))) == []


def test_raw_ids_are_kept_verbatim_and_end_with_end_in_the_context() -> None:
    vocabulary = load_vocabulary()
    raw = (
        tuple(vocabulary.encode_with_specials("<|channel|>final<|message|>hel"))
        + tuple(vocabulary.encode("lo"))
        + (RETURN,)
    )
    conversation = Conversation(
        (
            Message("user", "u"),
            Message("assistant", "hello", "final", raw_ids=raw),
            Message("user", "v"),
            Message("assistant", "w", "final"),
        ),
        source="x:1",
    )
    first, second = CHANNEL_STYLE.examples(conversation)
    assert tuple(first.ids[first.weights > 0].tolist()) == raw
    assert CHANNEL in second.ids
    joined = ",".join(map(str, second.ids.tolist()))
    assert ",".join(map(str, [*raw[:-1], END])) in joined


def test_response_formats_stand_at_the_end_of_the_developer_message() -> None:
    from counterpoint.data.conversation import ResponseFormat

    conversation = Conversation(
        (Message("user", "u"),),
        instructions="Answer in JSON.",
        response_formats=(ResponseFormat("answer", {"type": "object"}, "The answer"),),
    )
    renderer = Renderer(load_vocabulary(), RenderSettings(response_formats="prompt"))
    text = renderer.vocabulary.decode(renderer.prompt(conversation))
    assert (
        "<|start|>developer<|message|># Instructions\n\nAnswer in JSON.\n\n"
        '# Response Formats\n\n## answer\n\n// The answer\n{"type":"object"}<|end|><|start|>user' in text
    )
