"""A tree of examples holds exactly the examples that the renderer writes out one by one, and grows with the turns."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import conversations

from counterpoint.configs.data_section import RenderSettings, ServingName
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example
from counterpoint.data.harmony.vocabulary import load_vocabulary

FORMS = [
    *(Renderer(load_vocabulary(), RenderSettings(serving=name)) for name in get_args(ServingName)),
    *(
        Renderer(load_vocabulary(), RenderSettings.model_validate(values))
        for values in (
            {"train_on": "assistant"},
            {"train_on": "last_turn"},
            {"train_on": "final"},
            {"weights": {"analysis": 0, "final": 0.3}},
            {"served": {"reasoning": "lost"}},
        )
    ),
]


def same(a: Example, b: Example) -> bool:
    return (
        (a.source, a.turn, a.action, a.notices) == (b.source, b.turn, b.action, b.notices)
        and a.ids.tolist() == b.ids.tolist()
        and a.weights.tolist() == b.weights.tolist()
        and a.channels.tolist() == b.channels.tolist()
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(max_turns=5), st.sampled_from(FORMS))
def test_a_tree_holds_the_examples_of_every_form(conversation: Conversation, renderer: Renderer) -> None:
    try:
        expected = renderer.examples(conversation)
    except RowError:
        with pytest.raises(RowError):
            renderer.tree(conversation)
        return
    tree, too_long = renderer.tree(conversation)
    assert too_long == 0
    assert len(tree) == len(expected)
    assert all(map(same, tree.examples(), expected))
    assert tree.lengths.tolist() == [len(example.ids) for example in expected]
    built = ExampleTree.of(expected)
    for name in ("ids", "node_length", "node_parent", "leaves", "run_start", "run_length", "run_weight", "run_channel"):
        assert getattr(built, name).tolist() == getattr(tree, name).tolist()
    for limit in sorted(tree.lengths.tolist()):
        part, left_out = renderer.tree(conversation, limit)
        kept = [example for example in expected if len(example.ids) <= limit]
        assert left_out == len(expected) - len(kept)
        assert all(map(same, part.examples(), kept))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(max_turns=4), st.sampled_from(FORMS))
def test_tokens_are_counted_by_channel(conversation: Conversation, renderer: Renderer) -> None:
    try:
        examples = renderer.examples(conversation)
    except RowError:
        return
    tree, _ = renderer.tree(conversation)
    everything = np.concatenate([np.empty(0, np.uint8), *(e.channels for e in examples)])
    trained = np.concatenate([np.empty(0, np.uint8), *(e.channels[e.weights > 0] for e in examples)])
    runs = tree.runs_of(np.arange(len(tree), dtype=np.int32))
    assert runs.tolist() == list(range(len(tree.run_start)))
    assert tree.tokens_by_channel(runs)[1:].tolist() == np.bincount(everything, minlength=4)[1:].tolist()
    weighted = runs[tree.run_weight > 0]
    assert tree.tokens_by_channel(weighted).tolist() == np.bincount(trained, minlength=4).tolist()


def chat(turns: int) -> Conversation:
    said = [(f"question {n}?", f"answer {n}.") for n in range(turns)]
    messages = [
        message
        for asked, answer in said
        for message in (Message("user", asked), Message("assistant", answer, channel="final"))
    ]
    return Conversation(tuple(messages), source="long.jsonl:1")


def test_what_turns_share_is_held_once() -> None:
    """16,000 turns of 10 tokens are 1.3 billion tokens as separate examples."""
    tree, _ = FORMS[0].tree(chat(16_000))
    assert len(tree) == 16_000
    assert int(tree.lengths.sum(dtype=np.int64)) > 1_000_000_000
    assert len(tree.ids) < 16_000 * 24
    assert len(tree.node_length) < 16_000 * 3
